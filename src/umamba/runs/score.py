"""After training: predict the validation cases and test images, score them, draw them."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas

from umamba.datasets import RawCase
from umamba.evaluation import Rules, score_folder, score_table, worst_median_best
from umamba.evaluation.overlay import overlay_figure
from umamba.inference import Predictor
from umamba.io import UserError, read_image, read_label
from umamba.io.voice import showing
from umamba.planning import fold_cases, number_of_folds
from umamba.records import RunFolder
from umamba.records.tables import read_scores, write_scores
from umamba.runs.fit import splits_file
from umamba.runs.preparation import PlannedDataset, PreparedDataset
from umamba.settings import PredictionSettings, TrainSettings

log = logging.getLogger(__name__)


def scoring_rules(settings: TrainSettings, planned: PlannedDataset) -> Rules:
    """Return the rules by which a run is scored.

    Args:
        settings: `dataset.protocol` and `dataset.tolerance_mm` (tolerance of the NSD in mm) are read.
        planned: the dataset, whose labels are read.

    Raises:
        UserError: the protocol is for other labels than the dataset's.
    """
    return Rules(planned.labels, settings.dataset.protocol, settings.dataset.tolerance_mm)


def check_scoring(settings: TrainSettings, planned: PlannedDataset) -> None:
    """Refuse a run whose scores could not be computed, before it is trained.

    Args:
        settings: the settings of the run. Validation cases are checked only if they will be predicted.
        planned: the dataset and its plan.

    Raises:
        UserError: the protocol is for other labels than the dataset's, or labelled cases lack their numbered cells.
    """
    rules = scoring_rules(settings, planned)
    references(planned.dataset.test, rules.protocol)
    if settings.predict.validation:
        references(planned.dataset.training, rules.protocol)


def predict_and_score(
    settings: TrainSettings, prepared: PreparedDataset, folder: RunFolder
) -> tuple[pandas.DataFrame | None, pandas.DataFrame | None]:
    """Predict the fold's validation cases and the test images, and score those that have a reference.

    Args:
        settings: the settings of the run; `predict` names the checkpoint and says how cases are segmented.
        prepared: the dataset, its plan and its preprocessed cases.
        folder: the run folder, into which segmentations and scores are written.

    Returns:
        Two tables with the columns case, label and metrics: the scores of the validation cases, and those of the test
        images. None instead of a table: no case was scored.
    """
    checkpoint = folder.checkpoint(settings.predict.checkpoint)
    held_out = validation_cases(settings, prepared) if settings.predict.validation else []
    rules, validation = scoring_rules(settings, prepared), None
    if held_out:
        predictor = Predictor.from_checkpoint(checkpoint)
        validation = score_cases(
            predictor, held_out, folder.validation, folder.validation_scores, rules, settings.predict.prediction
        )
        log.info("Validation cases of fold %s, whole:", settings.fold)
        if validation is not None:
            log.info(score_table(validation))
        pool_folds(folder, number_of_folds(splits_file(settings, prepared)))
    test = prepared.dataset.test
    if not test:
        log.info("No test images (imagesTs): nothing to predict.")
        return validation, None
    predictor = Predictor.from_checkpoint(checkpoint)
    scores = score_cases(predictor, test, folder.predictions, folder.scores, rules, settings.predict.prediction)
    if scores is None:
        log.info("The test images have no labels (labelsTs): predicted, not scored.")
    return validation, scores


def validation_cases(settings: TrainSettings, prepared: PreparedDataset) -> list[RawCase]:
    """Return the raw cases of the fold's validation split that are not trained on; none with fold=all.

    Args:
        settings: `fold` and `paths.preprocessed` (which may hold a splits file) are read.
        prepared: the dataset and its preprocessed cases.
    """
    train, val = fold_cases(prepared.store.case_ids, settings.fold, splits_file(settings, prepared))
    held_out = set(val) - set(train)
    return [case for case in prepared.dataset.training if case.case_id in held_out]


def score_cases(
    predictor: Predictor,
    cases: Sequence[RawCase],
    predictions: Path,
    output: Path,
    rules: Rules,
    settings: PredictionSettings,
) -> pandas.DataFrame | None:
    """Predict cases, and score those that have a reference.

    Args:
        predictor: the trained network or ensemble.
        cases: the raw cases.
        predictions: folder into which the segmentations are written.
        output: CSV file of the scores, which is not written if no case has a reference.
        rules: the labels and the scoring protocol.
        settings: how cases are segmented.

    Returns:
        A table with the columns case, label and metrics; None if no case has a reference.
    """
    predictor.predict_cases(cases, predictions, settings, progress=showing())
    truths = references(cases, rules.protocol)
    if not truths:
        return None
    table = score_folder(predictions, truths, rules, predictor.file_ending)
    write_scores(output, table)
    return table


def references(cases: Sequence[RawCase], protocol: str) -> dict[str, Path]:
    """Return the reference file of each labelled case: its label, or its numbered cells for protocol=cell.

    Numbered cells are NAME_label.tiff, .tif or .png in instancesTr or instancesTs, beside labelsTr or labelsTs.

    Args:
        cases: the raw cases; those without a label are left out.
        protocol: generic, abdomen, endoscopy or cell.

    Returns:
        Case -> file.

    Raises:
        UserError: protocol=cell, and a labelled case has no numbered cells.
    """
    found = {case.case_id: case.label for case in cases if case.label is not None}
    if protocol != "cell":
        return found
    numbered = {case_id: _numbered_cells(label) for case_id, label in found.items()}
    missing = [case_id for case_id, file in numbered.items() if file is None]
    if missing:
        wanted = f"{found[missing[0]].parent.name.replace('labels', 'instances')}/{missing[0]}_label.tiff"
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


def draw_cases(prepared: PreparedDataset, scores: pandas.DataFrame, folder: RunFolder) -> dict[str, Path]:
    """Draw image, reference and prediction of the test cases with the lowest, median and highest score.

    Args:
        prepared: the dataset with its test cases.
        scores: scores of the test cases: columns case, label and metrics.
        folder: the run folder, from which segmentations are read and into which the pictures are written.

    Returns:
        The PNG files of the drawn cases, with the keys worst, median and best; a case without a label is left out.
    """
    known = {case.case_id: case for case in prepared.dataset.test}
    pictures = {}
    for rank, case_id in worst_median_best(scores).items():
        case = known[case_id]
        if case.label is None:
            continue
        pictures[rank] = folder.overlays / f"{rank}_{case_id}.png"
        image, truth = read_image(case.images), read_label(case.label)
        prediction = read_label(folder.predictions / f"{case_id}{prepared.dataset.file_ending}")
        overlay_figure(
            image.array,
            truth.array[0],
            prediction.array[0],
            image.geometry.spacing,
            prepared.labels,
            pictures[rank],
        )
    return pictures


def pool_folds(folder: RunFolder, num_folds: int) -> pandas.DataFrame | None:
    """Write and report the validation scores of all folds of this experiment and seed that have been scored.

    Args:
        folder: the run folder of one fold. The table is written to its `cross_validation_scores`.
        num_folds: folds of the split. Random splits, which have higher numbers, share cases with the folds and are
            left out, because a case counts once.

    Returns:
        The scores with a further column `fold`; None if fewer than two folds have scores.
    """
    tables = [
        read_scores(other.validation_scores).assign(fold=other.fold)
        for other in folder.other_folds()
        if other.validation_scores.exists() and other.fold.isdigit() and int(other.fold) < num_folds
    ]
    if len(tables) < 2 or folder.fold not in {str(fold) for fold in range(num_folds)}:
        return None
    pooled = pandas.concat(tables, ignore_index=True)
    write_scores(folder.cross_validation_scores, pooled)
    folds = ", ".join(pooled["fold"].unique())
    log.info("Cross-validation, folds %s so far (%s):", folds, folder.cross_validation_scores)
    log.info(score_table(pooled))
    return pooled
