"""The labels that the first stage of a cascade finds in the cases that its networks were not trained on.

As in nnU-Net (`nnUNetTrainer.perform_actual_validation`), the logits of the first stage are resampled to the grid of
the second one, and decide the labels there. All folds of the first stage must be trained, because the second one sees
every case.
"""

import logging
from dataclasses import replace

import numpy as np
import torch

from umamba.datasets import RawCase
from umamba.inference import Model, choose_device, decide_labels, tile_forward, tile_window, whole_logits
from umamba.inference.memory import sums_device
from umamba.io import UserError, file_digest, read_image, read_label
from umamba.planning import held_out_cases
from umamba.planning.plan import LOWRES
from umamba.preprocessing import preprocess_case, resample_image
from umamba.preprocessing.previous import previous_folder, with_previous
from umamba.records import RunFolder, read_checkpoint
from umamba.records.identity import former_settings
from umamba.runs.cases import splits_file
from umamba.runs.first_stage import FirstStage, first_stage
from umamba.runs.identity import split_name
from umamba.runs.preparation import PlannedDataset, PreparedDataset
from umamba.runs.trainer import trains_on_cuda
from umamba.settings import PredictionSettings, TrainSettings
from umamba.settings.entry_points import module_of

log = logging.getLogger(__name__)


def check_first_stage(settings: TrainSettings, planned: PlannedDataset) -> None:
    """Refuse a cascade whose first stage is not trained, or for other data, before any preprocessing.

    Args:
        settings: the settings of the run.
        planned: the dataset with its plan.

    Raises:
        UserError: a fold is missing, or was trained on other images, labels or splits.
    """
    stage = first_stage(settings)
    if stage is None:
        return
    _held_by(stage, settings, planned)
    if settings.fold != "all":
        stage.checkpoint(settings.fold)
    for fold, run in stage.runs.items():
        record = read_checkpoint(run.last, trust=None).record
        split = split_name(settings, planned, fold)
        others = {
            "other labels": record.labels != planned.labels,
            "other channels": record.channel_names != tuple(planned.dataset.channel_names),
            "other images": record.fingerprint_hash != planned.digest,
            "another split into folds": run.status().get("identity", {}).get("split", split) != split,
            f"the configuration {record.configuration_name}": record.configuration.previous_stage is not None
            or record.configuration.dim != 3,
        }
        wrong = [name for name, differs in others.items() if differs]
        if wrong:
            raise UserError(
                f"previous_stage: {run.path} was trained with {' and '.join(wrong)}, so it is not the first stage of "
                f"this cascade. Train that with plan.configuration={LOWRES} on the same dataset and folds."
            )


def with_first_stage(settings: TrainSettings, prepared: PreparedDataset) -> PreparedDataset:
    """Return a prepared dataset whose cases also have the first stage's labels; unchanged if the run is no cascade.

    Args:
        settings: the settings of the run; `predict`, of a run that has begun as it was then, says how the first stage
            segments.
        prepared: the dataset and its preprocessed cases.

    Raises:
        UserError: as `check_first_stage`; or the run folder holds a run that was trained with other labels.
    """
    stage = first_stage(settings)
    if stage is None or prepared.store.previous is not None:
        return prepared
    run = RunFolder.of(settings)
    begun = run.trained() and not settings.restart
    # A run that has begun keeps the labels it began with, however its own segmentations are made now.
    former = former_settings(run.config, settings) if begun else None
    predict = (settings if former is None else former).predict
    held_by = _held_by(stage, settings, prepared)
    cases = {case.case_id: case for case in prepared.dataset.training}
    device = choose_device("cuda" if trains_on_cuda(settings) else "cpu")
    models: dict[int, Model] = {}

    def find(case_id: str) -> np.ndarray:
        fold = held_by[case_id]
        if fold not in models:
            trust = module_of(settings.architecture.name)
            models[fold] = Model.from_checkpoint(stage.checkpoint(fold), device, trust=trust, engine="torch")
        shape = prepared.store.load(case_id).image.shape[1:]
        return labels_on_grid(models[fold], cases[case_id], shape, predict.prediction)

    made_by = {
        "checkpoints": {str(fold): file_digest(stage.checkpoint(fold)) for fold in sorted(set(held_by.values()))},
        "held_by": held_by,
        "tile_step_size": predict.tile_step_size,
        "tta": predict.tta,
    }
    known = run.status().get("identity", {}).get("previous_stage") if begun else None
    if known not in (None, previous_folder(prepared.store, made_by).name):
        raise UserError(
            f"previous_stage: {run.path} was trained with other labels of the first stage than the checkpoints in "
            f"{stage.folder} give now. Put back the checkpoints it was trained with, give the new run another name "
            "(name=...), or replace the old run with restart=true."
        )
    workers = settings.data.prepare_workers or 1
    store = with_previous(prepared.store, made_by, find, check=settings.data.check_store, workers=workers)
    log.info("First stage: %s, folds %s; its labels are in %s", stage.folder, _listed(stage), store.previous)
    return replace(prepared, store=store)


def labels_on_grid(model: Model, case: RawCase, shape: tuple[int, ...], settings: PredictionSettings) -> np.ndarray:
    """Segment a training case with the first stage, on the grid of the second one (nnU-Net: `resample_and_save`).

    Args:
        model: the first stage's network.
        case: the raw case.
        shape: (Z, Y, X) of the preprocessed case of the second stage, plan axes.
        settings: the layout of the tiles and test-time augmentation.

    Returns:
        (Z, Y, X) labels.
    """
    image = read_image(case.images, turn_channels=model.plan.reader is not None)
    label = None if case.label is None else read_label(case.label)
    data, _, _ = preprocess_case(image, label, model.plan, model.configuration, model.labels, case.case_id)
    size = 4 * data[0].size * (model.labels.num_classes + len(data))
    logits = whole_logits(
        tile_forward(
            model.network,
            model.configuration,
            model.device,
            model.precision,
            flipped_axes=model.flipped_axes(settings.tta),
        ),
        torch.from_numpy(data),
        tile_window(model.configuration),
        model.labels.num_classes,
        tile_step_size=settings.tile_step_size,
        tiles_per_pass=1,
        device=model.device,
        sums_on=sums_device(model.device, size),
    )
    found, spacing = logits.cpu().numpy(), model.configuration.spacing
    if not np.isfinite(found).all():
        raise UserError(
            f"{case.case_id}: the first stage {model.source} gave values that are not finite, so train it again."
        )

    def resampled(head: int) -> torch.Tensor:
        return torch.from_numpy(resample_image(found[head : head + 1], shape, spacing, spacing, order=1)[0])

    return decide_labels(len(found), resampled, model.labels).numpy()


def _held_by(stage: FirstStage, settings: TrainSettings, planned: PlannedDataset) -> dict[str, int]:
    """Return for each case the first fold of the first stage that was not trained on it."""
    names = [case.case_id for case in planned.dataset.training]
    found: dict[str, int] = {}
    for fold in sorted(stage.runs):
        for case_id in held_out_cases(names, fold, splits_file(settings, planned), planned.dataset.groups):
            found.setdefault(case_id, fold)
    missing = sorted(set(names) - set(found))
    if missing:
        raise UserError(
            f"previous_stage={stage.folder}: the second stage of a cascade needs the labels of the first in every "
            f"case, from a network that was not trained on it. {len(missing)} of {len(names)} cases, such as "
            f"{missing[0]}, lack one (trained folds: {_listed(stage)}). Train the other folds with "
            f"plan.configuration={LOWRES} fold=<k>."
        )
    return found


def _listed(stage: FirstStage) -> str:
    return ", ".join(map(str, sorted(stage.runs))) or "none"
