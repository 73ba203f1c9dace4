"""A trained U-Net as a results folder that nnU-Net 2.8 predicts with.

OUTPUT/<dataset>/nnUNetTrainer__<plans>__<configuration>/plans.json, dataset.json, fold_0/checkpoint_final.pth: where
nnU-Net looks for it when OUTPUT is its results folder. Optimiser and curves are left out, so that nnU-Net can predict
with it and start from its weights (-pretrained_weights), but not continue the training.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from umamba.inference.checkpoint import load_checkpoint
from umamba.inference.official import FILE_NAME
from umamba.io import UserError, atomic_path, read_json, write_json
from umamba.labels import LabelSet
from umamba.networks import to_official_state_dict
from umamba.planning import Plan, to_nnunet_plans

_TRAINER = "nnUNetTrainer"
_RESIDUAL = {"unet": False, "resenc_unet": True}  # architectures of nnU-Net -> whether their encoder is residual


def export_to_nnunet(checkpoint: Path, output: Path, fold: int | str = 0) -> Path:
    """Write a run's U-Net as nnU-Net's trainer would have; return the folder that holds plans.json.

    Args:
        checkpoint: a run's checkpoint.
        output: folder of nnU-Net's results.
        fold: number of the fold, or "all", in nnU-Net's folder; other folds of the same plan may be there already.

    Raises:
        UserError: the architecture is none of nnU-Net's, this fold is there already, or the folder has another plan.
    """
    content = load_checkpoint(checkpoint)
    record: dict[str, Any] = content["umamba"]
    name = record["architecture"].get("name")
    if name not in _RESIDUAL:
        raise UserError(
            f"{checkpoint}: is a network of architecture {name}; nnU-Net itself has {' and '.join(_RESIDUAL)} only. "
            "Predict with predict.py instead, which needs nothing but the checkpoint."
        )
    if fold != "all" and not (isinstance(fold, int) and fold >= 0):
        raise UserError(f"fold={fold}: give a number from 0 on, or all.")
    plans = _plans(record, _RESIDUAL[name])
    dataset = _dataset(record)
    folder = output / plans["dataset_name"] / f"{_TRAINER}__{plans['plans_name']}__{record['configuration']}"
    target = folder / f"fold_{fold}" / FILE_NAME
    if target.exists():
        raise UserError(f"{target}: is there already. Delete it, or give another output or fold.")
    for path, ours in ((folder / "plans.json", plans), (folder / "dataset.json", dataset)):
        if path.exists() and read_json(path) != ours:
            raise UserError(f"{path}: is of another plan or dataset. Give another output.")
        write_json(path, ours)
    mirror_axes = record.get("mirror_axes")
    exported = {
        "network_weights": to_official_state_dict(
            {
                key.removeprefix("network."): value
                for key, value in content["state_dict"].items()
                if key.startswith("network.")
            }
        ),
        "init_args": {
            "plans": plans,
            "configuration": record["configuration"],
            "fold": fold,
            "dataset_json": dataset,
            "device": torch.device("cpu"),
        },
        "trainer_name": _TRAINER,
        "inference_allowed_mirroring_axes": tuple(mirror_axes) if mirror_axes else None,
    }
    with atomic_path(target) as temporary:
        torch.save(exported, temporary)
    return folder


def _plans(record: Mapping[str, Any], residual: bool) -> dict[str, Any]:
    """Return nnU-Net's plans with the network that was trained, whichever the plan had in mind."""
    plan = Plan.from_json(record["plan"])
    configurations = {
        key: replace(entry, residual_encoder=residual) if key == record["configuration"] else entry
        for key, entry in plan.configurations.items()
    }
    written = to_nnunet_plans(replace(plan, configurations=configurations), record["file_ending"])
    return dict(json.loads(json.dumps(written)))


def _dataset(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return nnU-Net's dataset.json, as far as prediction needs it."""
    labels = LabelSet.from_json(record["labels"]).to_json()
    dataset = {
        "channel_names": {str(index): name for index, name in enumerate(record["channel_names"])},
        "labels": labels["labels"],
        "file_ending": record["file_ending"],
    }
    return dataset if labels["regions_class_order"] is None else {**dataset, **labels}
