"""A trained U-Net as a results folder that nnU-Net 2.8 predicts with.

OUTPUT/<dataset>/nnUNetTrainer__<plans>__<configuration>/plans.json, dataset.json, fold_0/checkpoint_final.pth: where
nnU-Net looks for it when OUTPUT is its results folder. Optimiser and curves are left out. nnU-Net can therefore predict
with it and start from its weights (-pretrained_weights), but not continue the training.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from umamba.inference.exported_heads import refuse_heads
from umamba.io import UserError, atomic_path, below, read_json, write_json
from umamba.networks import to_official_state_dict
from umamba.planning import to_nnunet_plans
from umamba.records import CheckpointRecord, read_checkpoint
from umamba.records.official import FILE_NAME
from umamba.records.torch_file import write_torch

_TRAINER = "nnUNetTrainer"
_RESIDUAL = {"unet": False, "resenc_unet": True}  # architectures of nnU-Net -> whether their encoder is residual


def export_to_nnunet(checkpoint: Path, output: Path, fold: int | str = 0, *, segmentation_only: bool = False) -> Path:
    """Write a run's U-Net as nnU-Net's trainer would have written it.

    Args:
        checkpoint: a run's checkpoint.
        output: folder of nnU-Net's results.
        fold: number of the fold, or "all", in nnU-Net's folder; it may hold other folds of the same plan already.
        segmentation_only: leave out a classification head, which nnU-Net does not have.

    Returns:
        The folder that holds plans.json.

    Raises:
        UserError: the architecture is none of nnU-Net's, the network has a classification head, the fold exists
            already, or the folder has another plan.
    """
    read = read_checkpoint(checkpoint, trust=None)
    record, name = read.record, read.record.architecture.name
    refuse_heads(checkpoint, record, segmentation_only)
    if name not in _RESIDUAL:
        raise UserError(
            f"{checkpoint}: is a network of architecture {name}; nnU-Net itself has {' and '.join(_RESIDUAL)} only. "
            "Predict with predict.py instead, which needs nothing but the checkpoint."
        )
    if fold != "all" and not (isinstance(fold, int) and fold >= 0):
        raise UserError(f"fold={fold}: give a number from 0 on, or all.")
    plans = _plans(record, _RESIDUAL[name])
    dataset = _dataset(record)
    network = f"{_TRAINER}__{plans['plans_name']}__{record.configuration_name}"
    folder = below(output, plans["dataset_name"], network)
    target = folder / f"fold_{fold}" / FILE_NAME
    if target.exists():
        raise UserError(f"{target}: exists already. Delete it, or give another output or fold.")
    for path, ours in ((folder / "plans.json", plans), (folder / "dataset.json", dataset)):
        if path.exists() and read_json(path) != ours:
            raise UserError(f"{path}: belongs to another plan or dataset. Give another output.")
        write_json(path, ours)
    exported = {
        "network_weights": to_official_state_dict(read.weights),
        "init_args": {
            "plans": plans,
            "configuration": record.configuration_name,
            "fold": fold,
            "dataset_json": dataset,
            "device": torch.device("cpu"),
        },
        "trainer_name": _TRAINER,
        "inference_allowed_mirroring_axes": record.mirror_axes or None,
    }
    with atomic_path(target) as temporary:
        write_torch(exported, temporary)
    return folder


def _plans(record: CheckpointRecord, residual: bool) -> dict[str, Any]:
    """Return nnU-Net's plans with the network that was trained, even where it is not the one that was planned."""
    trained = replace(record.configuration, residual_encoder=residual)
    configurations = dict(record.plan.configurations)
    if trained != record.configuration or record.configuration_name in configurations:
        configurations[record.configuration_name] = trained
    written = to_nnunet_plans(replace(record.plan, configurations=configurations), record.file_ending)
    return dict(json.loads(json.dumps(written)))


def _dataset(record: CheckpointRecord) -> dict[str, Any]:
    """Return the entries of nnU-Net's dataset.json that prediction needs."""
    labels = record.labels.to_json()
    dataset = {
        "channel_names": {str(index): name for index, name in enumerate(record.channel_names)},
        "labels": labels["labels"],
        "file_ending": record.file_ending,
    }
    return dataset if labels["regions_class_order"] is None else {**dataset, **labels}
