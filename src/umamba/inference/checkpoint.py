"""Reads checkpoints, ours and official ones, without running anything in them: tensors and plain types only."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from umamba.inference.official import SAFE_GLOBALS, from_official
from umamba.io import UserError

FORMAT = 1
_KEYS = ("plan", "configuration", "architecture", "labels", "channel_names", "file_ending", "recipe")
_ACCEPTED = (
    "Give a .ckpt file that train.py wrote (checkpoints/last.ckpt or best.ckpt of a run), or the checkpoint_final.pth "
    "of nnU-Net or U-Mamba."
)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a run's checkpoint, tensors on the CPU; see the key "umamba" for plan, labels and settings.

    A checkpoint of nnU-Net or U-Mamba is returned in the same form (see `from_official`).

    Raises:
        UserError: the file is missing, damaged, holds anything but tensors and plain types, or is no checkpoint of
            this project, of this version of it, or of nnU-Net or U-Mamba. Nothing in the file is executed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. {_ACCEPTED}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(SAFE_GLOBALS):
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # such files are refused below or load well
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{path}: not loaded, because it is no checkpoint or holds more than weights and plain values, which could "
            f"run foreign code ({reason}). {_ACCEPTED}"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: cannot be read as a checkpoint, it is damaged or no checkpoint ({reason}). {_ACCEPTED}"
        ) from None
    if isinstance(content, dict) and "network_weights" in content:
        return from_official(path, content)
    if not isinstance(content, dict) or not isinstance(content.get("umamba"), dict) or "state_dict" not in content:
        raise UserError(f"{path}: holds weights, but not the plan and labels to use them with. {_ACCEPTED}")
    record = content["umamba"]
    if record.get("format") != FORMAT:
        raise UserError(
            f"{path}: has checkpoint format {record.get('format')}, this version reads {FORMAT}. Use the version of "
            "this project that wrote it."
        )
    missing = [key for key in _KEYS if key not in record]
    if missing:
        raise UserError(f"{path}: the checkpoint lacks {', '.join(missing)}. {_ACCEPTED}")
    return content
