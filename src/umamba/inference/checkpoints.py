"""Finds the checkpoints that a path stands for: a file, a run's folder, the folds of an experiment."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from umamba.io import UserError
from umamba.records.official import FILE_NAME
from umamba.records.run_folder import LAST, RunFolder
from umamba.records.zoo import zoo_weights

log = logging.getLogger(__name__)

_DEPTH = 5  # most folders between the given one and `checkpoints`: experiment, configuration, fold, seed, and one more
_LISTED = 20  # runs that a message names
_FOLD = re.compile(r"fold_.+")


def find_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """Return the checkpoints that paths stand for.

    A folder stands for the `last.ckpt` of the run that it is or holds; where it holds several, they must be folds of
    one experiment. A results folder of nnU-Net or U-Mamba stands for the checkpoint_final.pth of all its folds.

    Args:
        paths: files and folders; zoo:NAME stands for the checkpoints of a trained network.

    Returns:
        Files, in the order of the paths and their folds.

    Raises:
        UserError: a folder holds no checkpoint, or those of different networks or seeds.
    """
    found = []
    for path in map(Path, paths):
        own = _in_folder(path) if path.is_dir() else zoo_weights(path)
        if len(own) > 1:
            log.info(
                "%s: the mean of %d networks, %s", path, len(own), ", ".join(_run_name(path, file) for file in own)
            )
        found += own
    return found


def _in_folder(folder: Path) -> list[Path]:
    for pattern in (f"checkpoints/{LAST}", LAST, FILE_NAME):
        if (folder / pattern).is_file():
            return [warned_if_unfinished(folder / pattern)]
    official = sorted(folder.glob(f"fold_*/{FILE_NAME}"))
    if official:
        return official
    found: list[Path] = []
    for depth in range(1, _DEPTH + 1):
        files = folder.glob("*/" * depth + f"checkpoints/{LAST}")
        # Hidden folders hold what is moved aside.
        found += [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not found:
        raise UserError(
            f"checkpoint={folder}: no checkpoints/{LAST} and no {FILE_NAME} in this folder. Give a checkpoint file, "
            "the folder of a trained run, or a results folder of nnU-Net or U-Mamba."
        )
    kinds: dict[tuple[str, ...], list[Path]] = {}
    for file in sorted(found):
        parts = file.relative_to(folder).parts[:-2]
        kinds.setdefault(tuple("fold" if _FOLD.fullmatch(part) else part for part in parts), []).append(file)
    if len(kinds) > 1:
        folders = [f"  {file.parents[1]}" for files in kinds.values() for file in files]
        more = [f"  and {len(folders) - _LISTED} more"] if len(folders) > _LISTED else []
        runs = "\n".join(folders[:_LISTED] + more)
        raise UserError(
            f"checkpoint={folder}: holds runs of different configurations or seeds:\n{runs}\nGive one of these "
            "folders, or several as checkpoint=[a,b]."
        )
    return [warned_if_unfinished(file) for file in next(iter(kinds.values()))]


def warned_if_unfinished(checkpoint: Path) -> Path:
    """Warn if the run of a checkpoint still trains or was interrupted.

    Args:
        checkpoint: a file; one that belongs to no run is not judged.

    Returns:
        The file.
    """
    run = RunFolder(checkpoint.parents[1])
    if checkpoint.parent.name == "checkpoints" and run.status_file.exists():
        try:
            state = run.status().get("state")
        except UserError as error:
            log.warning("%s", error)
            return checkpoint
        if state not in ("predicting", "finished"):
            log.warning("%s: its training is not finished; the checkpoint of its last epoch is used.", run.path)
    return checkpoint


def _run_name(folder: Path, checkpoint: Path) -> str:
    run = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    if folder in run.parents:
        return run.relative_to(folder).as_posix()
    return run.name if run == folder else checkpoint.name
