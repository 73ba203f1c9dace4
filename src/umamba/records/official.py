"""Checkpoints of nnU-Net and U-Mamba, converted to this project's names of weights, plan and labels.

Their results folder is RESULTS/plans.json, RESULTS/dataset.json, RESULTS/fold_0/checkpoint_final.pth. Where these two
JSON files are missing, the copies inside the checkpoint are read.
"""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umamba.datasets.declared import declared_channels, declared_labels, json_finding
from umamba.datasets.findings import Finding
from umamba.io import UserError, read_json
from umamba.io.documents import check_values
from umamba.networks import official_architecture, official_state_dict
from umamba.planning import foreign_settings, parse_nnunet_plans
from umamba.records.run_folder import LAST, RunFolder
from umamba.records.zoo import zoo_weights
from umamba.settings.wording import shown

FILE_NAME = "checkpoint_final.pth"
_NUMBERS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u1": "B", "b1": "?"}


class NumpyType:
    """Replaces numpy.dtype while a pickle is read; it accepts only the types of plain numbers, such as f8."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in _NUMBERS:
            raise pickle.UnpicklingError(f"numpy's type {name} is no plain number")
        self.code, self.order = _NUMBERS[name], "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.order = str(state[1])


def number(kind: NumpyType, data: bytes) -> int | float | bool:
    """Convert a number that numpy pickled to a plain Python number.

    Args:
        kind: its type.
        data: its bytes.
    """
    (value,) = struct.unpack(kind.order + kind.code, data)
    return value  # type: ignore[no-any-return]


# The curves in official checkpoints are numpy numbers; the class and the function above read them.
SAFE_GLOBALS: list[Any] = [
    (number, "numpy.core.multiarray.scalar"),
    (number, "numpy._core.multiarray.scalar"),
    (NumpyType, "numpy.dtype"),
]


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint file of a path.

    Args:
        path: the file itself, the name zoo:NAME of a trained network, the folder of a run, which stands for its
            last.ckpt, or a results or fold folder of nnU-Net or U-Mamba that holds a single one.

    Raises:
        UserError: the folder holds no checkpoint, or those of several folds.
    """
    path = Path(path)
    if not path.is_dir():
        files = zoo_weights(path)
        if len(files) > 1:
            raise UserError(
                f"{path}: is the mean of {len(files)} networks, and this needs one. Give one of their files, such as "
                f"{files[0]}."
            )
        return files[0]
    for file in (RunFolder(path).last, path / LAST, path / FILE_NAME):
        if file.is_file():
            return file
    found = sorted(path.glob(f"fold_*/{FILE_NAME}"))
    if not found:
        raise UserError(
            f"{path}: no checkpoint in this folder. Give a checkpoint file, the folder of a run (checkpoints/{LAST}), "
            f"or a results folder of nnU-Net or U-Mamba (plans.json, dataset.json, fold_0/{FILE_NAME})."
        )
    if len(found) > 1:
        raise UserError(
            f"{path}: holds checkpoints of {', '.join(file.parent.name for file in found)}. Give one of them, such as "
            f"{found[0]}."
        )
    return found[0]


def from_official(path: Path, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert an official checkpoint.

    The names of the weights decide which network it is, because trainers of many names share a network. plans.json and
    dataset.json of the results folder are read, or the copies in the checkpoint if they are missing.

    Args:
        path: the file; its folder's parent is the results folder.
        content: of the file, safely loaded.

    Returns:
        The record in plain values, as `CheckpointRecord.from_json` reads them, and the weights.

    Raises:
        UserError: a part is missing, the network is unknown, or the plan asks for something that is not implemented.
    """
    arguments = content.get("init_args")
    if not isinstance(arguments, Mapping) or not isinstance(content["network_weights"], Mapping):
        raise UserError(f"{path}: holds weights, but not init_args, which name their plan and configuration.")
    weights = official_state_dict(tensors_of(path, content["network_weights"]))
    architecture = official_architecture(weights)
    trainer = shown(content.get("trainer_name", "an unknown trainer"))
    if architecture is None:
        raise UserError(
            f"{path}: its trainer {trainer} built a network that is not known here. Known are nnU-Net's plain and "
            "residual-encoder U-Net, U-Mamba Bot and Enc, SegResNet, UNETR and SwinUNETR."
        )
    results = path.absolute().parent.parent
    plans = _beside(results / "plans.json", arguments.get("plans"), path)
    dataset = _beside(results / "dataset.json", arguments.get("dataset_json"), path)
    name = shown(arguments.get("configuration"))
    plan = parse_nnunet_plans(plans, f"plan of {path}")
    plan.configuration(name)
    foreign = foreign_settings(plans, name)
    if foreign:
        raise UserError(
            f"{path}: its plan asks for something that is not implemented here: {'; '.join(foreign)}. Predict it with "
            "nnU-Net."
        )
    record = {
        "plan": plan.to_json(),
        "configuration": name,
        "architecture": {"name": architecture},
        **_dataset_entries(dataset, path),
        "recipe": {},
        "mirror_axes": content.get("inference_allowed_mirroring_axes") or (),
        "provenance": {"trainer": trainer, "epochs": content.get("current_epoch")},
    }
    check_values({name: record[name] for name in ("mirror_axes", "provenance")}, str(path), nan=True)
    return record, weights


def tensors_of(path: Path, state: Any) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, if they are plain tensors under names.

    Args:
        path: the file, for the message.
        state: what the file holds as weights.

    Raises:
        UserError: a name is no text, or a value is no tensor, or a sparse, quantised, complex or meta one.
    """
    for name, value in state.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: the weights have a name of type {type(name).__name__}, which is no text.")
        odd = not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_nested
        if odd or value.is_meta or value.is_complex() or value.dtype == torch.bool:
            raise UserError(f"{path}: {shown(name)}: is no plain tensor, as weights are.")
    return dict(state)


def _beside(file: Path, own: Any, checkpoint: Path) -> dict[str, Any]:
    """Return the content of a file of the results folder, or the checkpoint's copy if the file is missing."""
    found = read_json(file) if file.is_file() else own
    if found is own:
        check_values(own, str(checkpoint))
    if not isinstance(found, dict) or not found:
        raise UserError(f"{checkpoint}: needs {file}, which is missing or no JSON object. Put nnU-Net's file there.")
    return found


def _dataset_entries(dataset: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the entries of a checkpoint's record that nnU-Net's dataset.json decides."""
    findings: list[Finding] = []
    channels, labels = declared_channels(dataset, findings), declared_labels(dataset, findings)
    ending = dataset.get("file_ending", ".nii.gz")
    if not isinstance(ending, str):
        findings.append(json_finding(f"file_ending: {shown(ending)} is no text, like .nii.gz."))
    if findings or channels is None or labels is None:
        raise UserError(f"dataset.json of {path}: {' '.join(finding.message for finding in findings)}")
    return {"labels": labels.to_json(), "channel_names": list(channels), "file_ending": ending}
