"""One run from preprocessed cases to scores: train, predict the test images, score them, draw them."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from rich.console import Console

from umamba.config import TrainConfig
from umamba.datasets import RawCase
from umamba.evaluation import Rules, score_folder, score_table, worst_median_best
from umamba.evaluation.overlay import overlay_figure
from umamba.fitting import fit, is_first_process, splits_file
from umamba.inference import Predictor
from umamba.io import UserError, atomic_path, provenance, read_image, read_label, write_json
from umamba.patches import mirrored_axes
from umamba.pipeline import Prepared
from umamba.planning import fold_cases
from umamba.training.loggers import log_pictures, upload_model
from umamba.training.run_folder import RunFolder
from umamba.training.stopping import LeaveOnSignal, budget_seconds

console = Console(soft_wrap=True)


def checkpoint_record(config: TrainConfig, prepared: Prepared) -> dict[str, Any]:
    """Return what each checkpoint carries beside the weights, so that it can be used alone (plain types only)."""
    dataset = prepared.dataset
    record = {
        "format": 1,
        "plan": prepared.plan.to_json(),
        "configuration": prepared.configuration.name,
        "architecture": config.architecture,
        "labels": dataset.labels.to_json(),
        "channel_names": list(dataset.channel_names),
        "file_ending": dataset.file_ending,
        "recipe": config.recipe,
        "pretrained": config.pretrained,
        "mirror_axes": mirrored_axes(config.augmentation, prepared.configuration.dim),
        "provenance": provenance(),
        "fingerprint_hash": prepared.digest,
    }
    return dict(json.loads(json.dumps(record)))  # what JSON cannot hold, a safe loader would refuse


def run_training(config: TrainConfig, prepared: Prepared, folder: RunFolder) -> None:
    """Train, predict, score and draw; whatever is already done in the folder is not done again.

    Of several processes that train together, the first one alone writes, predicts and scores.

    Raises:
        UserError: the folder is in use, or holds another run; a value of the configuration cannot be used.
    """
    max_epochs = config.trainer.get("max_epochs")
    if not isinstance(max_epochs, int) or max_epochs < 1:
        raise UserError(f"trainer.max_epochs={max_epochs}: give the number of epochs, at least 1.")
    max_seconds = budget_seconds(config.trainer.get("max_time"))
    first = is_first_process()
    with folder.lock() if first else nullcontext(), LeaveOnSignal(folder.path).installed():
        if config.restart and first:
            folder.clear()
        if folder.is_finished(max_epochs, max_seconds):
            console.print(f"This run is finished: {folder.path}. Train it again with restart=true.")
            show_scores(folder)
            return
        record = checkpoint_record(config, prepared)
        if first:
            folder.begin(record, max_epochs, max_seconds)
            write_json(folder.path / "plan.json", record["plan"])
            with atomic_path(folder.path / "config.yaml") as temporary:
                OmegaConf.save(OmegaConf.structured(config), temporary)
        loggers = fit(config, prepared, folder, record)
        if not first:
            return
        if config.logger.upload_model:
            upload_model(loggers, folder)
        folder.set_status(state="predicting")
        predict_and_score(config, prepared, folder, loggers)
        folder.set_status(state="finished")
        console.print(f"Run folder: {folder.path}")


def predict_and_score(config: TrainConfig, prepared: Prepared, folder: RunFolder, loggers: Sequence[Logger]) -> None:
    """Predict the fold's validation cases and the test images; score those with a reference, and draw three of them."""
    checkpoint = {"last": folder.last, "best": folder.best}[config.predict.checkpoint]
    held_out = validation_cases(config, prepared) if config.predict.validation else []
    if held_out:
        predictor = Predictor.from_checkpoint(checkpoint)
        score_cases(config, prepared, predictor, held_out, folder.validation, folder.validation_scores)
        console.print(f"Validation cases of fold {config.fold}, whole:")
        console.print(score_table(pandas.read_csv(folder.validation_scores)))
        show_cross_validation(folder)
    test = prepared.dataset.test
    if not test:
        console.print("No test images (imagesTs): nothing to predict.")
        return
    predictor = Predictor.from_checkpoint(checkpoint)
    scores = score_cases(config, prepared, predictor, test, folder.path / "predictions", folder.path / "scores.csv")
    if scores is None:
        console.print("The test images have no labels (labelsTs): predicted, not scored.")
        return
    log_pictures(loggers, "test", draw_cases(prepared, test, scores, folder))
    show_scores(folder)


def validation_cases(config: TrainConfig, prepared: Prepared) -> list[RawCase]:
    """Return the raw cases that the run did not train on; none with fold=all."""
    train, val = fold_cases(prepared.store.case_ids, config.fold, splits_file(config, prepared))
    held_out = set(val) - set(train)
    return [case for case in prepared.dataset.training if case.case_id in held_out]


def score_cases(
    config: TrainConfig,
    prepared: Prepared,
    predictor: Predictor,
    cases: Sequence[RawCase],
    predictions: Path,
    output: Path,
) -> pandas.DataFrame | None:
    """Predict cases into a folder and write the scores of those that have a reference; None: none has."""
    settings = config.predict
    predictor.predict_cases(
        cases, predictions, tile_step_size=settings.tile_step_size, tta=settings.tta, overwrite=True
    )
    rules = Rules(prepared.dataset.labels, config.dataset.protocol, config.dataset.tolerance_mm)
    truths = references(cases, rules.protocol)
    if not truths:
        return None
    return score_folder(predictions, truths, rules, prepared.dataset.file_ending, output=output)


def references(cases: Sequence[RawCase], protocol: str) -> dict[str, Path]:
    """Return the file that each case is scored against: its label, or for protocol=cell its numbered cells.

    Those stand in instancesTr or instancesTs beside the labels, as NAME_label.tiff.

    Raises:
        UserError: protocol=cell, and a labelled case has no numbered cells.
    """
    found = {case.case_id: case.label for case in cases if case.label is not None}
    if protocol != "cell":
        return found
    numbered = {case_id: _numbered_cells(label) for case_id, label in found.items()}
    missing = [case_id for case_id, file in numbered.items() if file is None]
    if missing:
        wanted = f"instancesTs/{missing[0]}_label.tiff"
        raise UserError(
            f"dataset.protocol=cell: there are no numbered cells for {', '.join(missing[:5])}, such as {wanted}. "
            "Put them there, or score the classes with dataset.protocol=generic."
        )
    return {case_id: file for case_id, file in numbered.items() if file is not None}


def _numbered_cells(label: Path) -> Path | None:
    folder = label.parent.with_name(label.parent.name.replace("labels", "instances"))
    name = label.name.removesuffix(label.suffix)
    files = (folder / f"{name}_label{ending}" for ending in (".tiff", ".tif", ".png"))
    return next((file for file in files if file.exists()), None)


def draw_cases(
    prepared: Prepared, cases: Sequence[RawCase], scores: pandas.DataFrame, folder: RunFolder
) -> dict[str, Path]:
    """Draw the worst, median and best test case; return the pictures by rank."""
    by_name = {case.case_id: case for case in cases}
    pictures = {}
    for rank, case_id in worst_median_best(scores).items():
        pictures[rank] = folder.path / "overlays" / f"{rank}_{case_id}.png"
        case = by_name[case_id]
        assert case.label is not None
        image, truth = read_image(case.images), read_label(case.label)
        prediction = read_label(folder.path / "predictions" / f"{case_id}{prepared.dataset.file_ending}")
        overlay_figure(
            image.array,
            truth.array[0],
            prediction.array[0],
            image.geometry.spacing,
            prepared.dataset.labels,
            pictures[rank],
        )
    return pictures


def show_scores(folder: RunFolder) -> None:
    """Print the table of scores.csv, if the run has one."""
    path = folder.path / "scores.csv"
    if path.exists():
        console.print(score_table(pandas.read_csv(path)))


def show_cross_validation(folder: RunFolder) -> None:
    """Print and write the scores of all folds that are there, if there are several: every case scored once.

    The file is cross_validation_<seed>.csv beside the folders of the folds, with a column `fold`.
    """
    seed, configuration = folder.path.name, folder.path.parent.parent
    found = sorted(configuration.glob(f"fold_*/{seed}/{folder.validation_scores.name}"))
    if len(found) < 2:
        return
    tables = [pandas.read_csv(path).assign(fold=path.parent.parent.name.removeprefix("fold_")) for path in found]
    pooled = pandas.concat(tables, ignore_index=True)
    output = configuration / f"cross_validation_{seed}.csv"
    with atomic_path(output) as temporary:
        pooled.to_csv(temporary, index=False)
    console.print(f"Cross-validation, folds {', '.join(pooled['fold'].unique())} so far ({output}):")
    console.print(score_table(pooled))
