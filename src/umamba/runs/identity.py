"""What the checkpoints of a run record beside the weights, and what a continued run must not change."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from umamba.io import file_digest, provenance
from umamba.planning import fold_cases
from umamba.records import CheckpointRecord, find_checkpoint
from umamba.records.identity import learnt_settings
from umamba.runs.case_heads import case_heads, heads_identity
from umamba.runs.cases import run_cases, splits_file
from umamba.runs.first_stage import first_stage
from umamba.runs.preparation import PlannedDataset, PreparedDataset
from umamba.runs.trainer import processes
from umamba.settings import PretrainSettings, TrainSettings
from umamba.settings.training import Fold


def checkpoint_record(settings: TrainSettings, planned: PlannedDataset) -> CheckpointRecord:
    """Return the record that each checkpoint of a run holds beside the weights: architecture, plan, labels, recipe.

    Args:
        settings: the settings of the run.
        planned: the dataset with its plan.
    """
    return CheckpointRecord(
        plan=planned.plan,
        configuration_name=planned.configuration.name,
        architecture=settings.architecture,
        labels=planned.labels,
        channel_names=tuple(planned.dataset.channel_names),
        file_ending=planned.dataset.file_ending,
        recipe=settings.recipe,
        pretrained=next((str(path) for path in (settings.pretrained, settings.teacher) if path is not None), None),
        mirror_axes=settings.augmentation.mirrored_axes(planned.configuration.dim),
        provenance=provenance() | _first_stage_of(settings),
        fingerprint_hash=planned.digest,
        heads=case_heads(settings, planned),
        masking=settings.masking if isinstance(settings, PretrainSettings) else None,
    )


def _first_stage_of(settings: TrainSettings) -> dict[str, str]:
    """Return where the first stage of a cascade is, for those who predict with the second; empty for other runs."""
    stage = first_stage(settings)
    return {} if stage is None else {"previous_stage": str(stage.folder.absolute())}


def run_identity(settings: TrainSettings, prepared: PreparedDataset, record: CheckpointRecord) -> dict[str, Any]:
    """Return everything that changes what a run learns; a continued run must not change it.

    Args:
        settings: the settings of the run.
        prepared: the dataset, whose cases are split into training and validation.
        record: the record of its checkpoints: architecture, plan, labels and dataset.
    """
    train_cases, val_cases = run_cases(settings, prepared)
    heads = heads_identity(settings, record.heads, {*train_cases, *val_cases})
    split = split_name(settings, prepared, settings.fold)
    parts = {"split": split, "groups": groups_name(prepared.dataset.groups), **heads}
    own = {**record.identity(), **learnt_settings(settings, processes(settings)), **parts}
    if prepared.dataset.annotated:
        own["partly_labelled"] = True
    if prepared.store.previous is not None:
        own["previous_stage"] = prepared.store.previous.name
    if settings.teacher is None:
        return {**own, "teacher": None}
    return {**own, "pretrained": None, "teacher": file_digest(find_checkpoint(settings.teacher))}  # wherever it lies


def split_name(settings: TrainSettings, planned: PlannedDataset, fold: Fold) -> str:
    """Return a text that differs between splits into training and validation cases; groups are named apart.

    Args:
        settings: `paths.preprocessed` (which may hold a splits file), and `dataset.num_training` with `seed`.
        planned: the dataset.
        fold: number of the fold, or all.
    """
    names = [case.case_id for case in planned.dataset.training]
    if settings.dataset.num_training is not None or isinstance(settings, PretrainSettings):
        train_cases, val_cases = run_cases(replace(settings, fold=fold), planned)
    else:
        train_cases, val_cases = fold_cases(names, fold, splits_file(settings, planned))
    text = "\n".join([*sorted(train_cases), "", *sorted(val_cases)])
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{len(train_cases)} to train, {len(val_cases)} to validate ({digest})"


def groups_name(groups: Mapping[str, str]) -> str | None:
    """Return a text that differs between groupings of the cases; None: they are not grouped.

    Args:
        groups: case -> its group.
    """
    if not groups:
        return None
    digest = hashlib.blake2b(json.dumps(sorted(groups.items())).encode(), digest_size=4).hexdigest()
    return f"{len(set(groups.values()))} groups ({digest})"
