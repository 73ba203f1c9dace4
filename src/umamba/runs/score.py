"""After training: predict the validation cases and test images, score them, draw them."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas
from rich.table import Table

from umamba.datasets import RawCase
from umamba.evaluation import Rules, rules_sentence, score_folder, score_table, worst_median_best
from umamba.evaluation.overlay import case_figure, write_overlay
from umamba.inference import Predictor
from umamba.inference.first_stage import segment_first
from umamba.inference.outputs import CLASSES
from umamba.inference.problems import UnsegmentedCases
from umamba.io import UserError, oriented_like, read_image, read_label
from umamba.io.voice import showing
from umamba.records import RunFolder
from umamba.records.tables import read_scores, write_scores
from umamba.runs.cases import run_cases
from umamba.runs.first_stage import first_stage
from umamba.runs.preparation import PlannedDataset, PreparedDataset
from umamba.settings import PredictionSettings, TrainSettings
from umamba.settings.dataset import CELL_PROTOCOLS
from umamba.settings.entry_points import module_of

log = logging.getLogger(__name__)


def scoring_rules(settings: TrainSettings, planned: PlannedDataset) -> Rules:
    """Return the rules by which a run is scored.

    Args:
        settings: `dataset.protocol` and `dataset.tolerance_mm` (tolerance of the NSD in mm) are read.
        planned: the dataset, whose labels are read.

    Raises:
        UserError: the protocol is for other labels than the dataset's.
    """
    dataset = settings.dataset
    annotated = planned.dataset.annotated
    return Rules(planned.labels, dataset.protocol, dataset.tolerance_mm, annotated=annotated)


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
    if settings.heads.alone:
        for cases, where in ((held_out, folder.validation), (prepared.dataset.test, folder.predictions)):
            if cases:
                _classify_cases(_predictor(settings, checkpoint), cases, where, settings.predict.prediction)
        report_classes(settings, folder)
        return None, None
    if held_out:
        predictor = _predictor(settings, checkpoint)
        asked = _settings_for(settings, predictor, held_out, folder.previous_stage / "validation")
        validation = score_cases(predictor, held_out, folder.validation, folder.validation_scores, rules, asked)
        if validation is not None:
            log.info(score_table(validation, f"Validation of fold {settings.fold}, whole", rules.sentence))
        pool_folds(folder, rules.sentence)
    test = prepared.dataset.test
    if not test:
        report_classes(settings, folder)
        log.info("No test images (imagesTs): nothing to predict.")
        return validation, None
    predictor = _predictor(settings, checkpoint)
    asked = _settings_for(settings, predictor, test, folder.previous_stage / "predictions")
    scores = score_cases(predictor, test, folder.predictions, folder.scores, rules, asked)
    if scores is None:
        log.info("The test images have no labels (labelsTs): predicted, not scored.")
    report_classes(settings, folder)
    return validation, scores


def _settings_for(
    settings: TrainSettings, predictor: Predictor, cases: Sequence[RawCase], output: Path
) -> PredictionSettings:
    """Return how a run's network segments cases; the first stage of a cascade segments them before, into `output`.

    It is that of the same fold, which was trained on the same cases; with fold=all, the mean of all folds.
    """
    stage = first_stage(settings)
    if stage is None:
        return settings.predict.prediction
    checkpoints = stage.checkpoints if settings.fold == "all" else [stage.checkpoint(settings.fold)]
    trust, engine = module_of(settings.architecture.name), settings.predict.engine
    wanted = settings.predict.prediction
    return segment_first(predictor, checkpoints, cases, output, wanted, engine=engine, trust=trust)


def _classify_cases(predictor: Predictor, cases: Sequence[RawCase], where: Path, settings: PredictionSettings) -> None:
    try:
        predictor.predict_cases(cases, where, settings, progress=showing())
    except UnsegmentedCases as error:
        log.warning("%s\nThe scores are those of the other images.", error)


def report_classes(settings: TrainSettings, folder: RunFolder) -> None:
    """Score and report the classes of the validation cases and test images; nothing without a classification head.

    Args:
        settings: `heads.case` is the table of the true classes.
        folder: the run folder, into which the scores are written.
    """
    if settings.heads.case is None:
        return
    from umamba.evaluation.classification import class_table, write_class_scores

    folds = [other.validation / CLASSES for other in sorted(folder.other_folds(), key=lambda each: each.fold)]
    pooled = [path for path in folds if path.exists()]
    for title, predicted, output in (
        (
            f"Classes of the validation cases of fold {settings.fold}",
            [folder.validation / CLASSES],
            folder.validation_classes,
        ),
        (f"Classes of the validation cases of {len(pooled)} folds so far", pooled, folder.cross_validation_classes),
        ("Classes of the test images", [folder.predictions / CLASSES], folder.classes),
    ):
        if not predicted or not predicted[0].exists() or (predicted is pooled and len(pooled) < 2):
            continue
        try:
            log.info(class_table(write_class_scores(predicted, settings.heads.case, output), title))
        except UserError as error:
            log.info("%s: predicted, not scored. %s", title, error)


def _predictor(settings: TrainSettings, checkpoint: Path) -> Predictor:
    return Predictor.from_checkpoint(
        checkpoint,
        trust=module_of(settings.architecture.name),
        engine=settings.predict.engine,
        tile_scale=settings.predict.tile_scale,
    )


def validation_cases(settings: TrainSettings, prepared: PreparedDataset) -> list[RawCase]:
    """Return the raw cases of the fold's validation split that are not trained on; none with fold=all.

    Args:
        settings: `fold` and `paths.preprocessed` (which may hold a splits file) are read.
        prepared: the dataset and its preprocessed cases.
    """
    train, val = run_cases(settings, prepared)
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
        A table with the columns case, label and metrics; None if no case has a reference. An image that cannot be
        segmented is named in a warning and has no scores.
    """
    truths = references(cases, rules.protocol)
    try:
        predictor.predict_cases(cases, predictions, settings, progress=showing())
    except UnsegmentedCases as error:
        log.warning("%s\nThe scores are those of the other images.", error)
        written = {case.case_id for case in cases if (predictions / f"{case.case_id}{predictor.file_ending}").exists()}
        truths = {case_id: file for case_id, file in truths.items() if case_id in written}
    if not truths:
        return None
    table = score_folder(predictions, truths, rules, predictor.file_ending)
    write_scores(output, table)
    return table


def references(cases: Sequence[RawCase], protocol: str) -> dict[str, Path]:
    """Return the reference file of each labelled case: its label, or its numbered cells where these are scored.

    Numbered cells are NAME_label.tiff, .tif or .png in instancesTr or instancesTs, beside labelsTr or labelsTs.

    Args:
        cases: the raw cases; those without a label are left out.
        protocol: of `dataset.protocol`.

    Returns:
        Case -> file.

    Raises:
        UserError: cells are scored, and a labelled case has no numbered ones.
    """
    found = {case.case_id: case.label for case in cases if case.label is not None}
    if protocol not in CELL_PROTOCOLS:
        return found
    numbered = {case_id: _numbered_cells(label) for case_id, label in found.items()}
    missing = [case_id for case_id, file in numbered.items() if file is None]
    if missing:
        wanted = f"{found[missing[0]].parent.name.replace('labels', 'instances')}/{missing[0]}_label.tiff"
        raise UserError(
            f"dataset.protocol={protocol}: there are no numbered cells for {', '.join(missing[:5])}, such as {wanted}. "
            "Put them there, or score the classes with dataset.protocol=generic."
        )
    return {case_id: file for case_id, file in numbered.items() if file is not None}


def _numbered_cells(label: Path) -> Path | None:
    folder = label.parent.with_name(label.parent.name.replace("labels", "instances"))
    name = label.name.removesuffix(label.suffix)
    files = (folder / f"{name}_label{ending}" for ending in (".tiff", ".tif", ".png"))
    return next((file for file in files if file.exists()), None)


def draw_cases(
    settings: TrainSettings, prepared: PreparedDataset, scores: pandas.DataFrame, folder: RunFolder
) -> dict[str, Path]:
    """Draw image, reference and prediction of the test cases with the lowest, median and highest score.

    Args:
        settings: the settings of the run, whose rules of the scores are read.
        prepared: the dataset with its test cases.
        scores: scores of the test cases: columns case, label and metrics.
        folder: the run folder, from which segmentations are read and into which the pictures are written.

    Returns:
        The PNG files of the drawn cases, with the keys worst, median and best; a case without a label is left out.
    """
    rules = scoring_rules(settings, prepared)
    known = {case.case_id: case for case in prepared.dataset.test}
    truths = references(prepared.dataset.test, rules.protocol)
    pictures = {}
    for rank, case_id in worst_median_best(scores).items():
        if case_id not in truths:
            continue
        pictures[rank] = folder.overlays / f"{rank}_{case_id}.png"
        image = read_image(known[case_id].images, turn_channels=prepared.plan.reader is not None)
        truth = oriented_like(read_label(truths[case_id]), image.geometry)
        prediction = read_label(folder.predictions / f"{case_id}{prepared.dataset.file_ending}")
        figure = case_figure(image, truth.array[0], prediction.array[0], rules, scores, case_id)
        write_overlay(figure, pictures[rank])
    return pictures


def table_of_test_images(scores: pandas.DataFrame, settings: TrainSettings) -> Table:
    """Return the printable table of the scores of a run's test images.

    Args:
        scores: columns case, label and metrics.
        settings: the settings of the run, whose rules of the scores the caption names.
    """
    dataset = settings.dataset
    return score_table(scores, "Test images", rules_sentence(dataset.protocol, dataset.tolerance_mm))


def pool_folds(folder: RunFolder, rules: str | None = None) -> pandas.DataFrame | None:
    """Write and report the validation scores of all folds of this experiment and seed that have been scored.

    Every case counts once: a fold that validates a case of a fold with a smaller number is left out. That is so for
    numbers beyond the splits, which are random splits of all cases.

    Args:
        folder: the run folder of one fold. The table is written to its `cross_validation_scores`.
        rules: sentence on the rules of the scores.

    Returns:
        The scores with a further column `fold`; None if fewer than two folds have scores.
    """
    tables: list[pandas.DataFrame] = []
    counted: set[str] = set()
    for other in sorted(folder.other_folds(), key=lambda other: (len(other.fold), other.fold)):
        if not other.validation_scores.exists():
            continue
        try:
            table = read_scores(other.validation_scores)
        except UserError as error:
            log.warning("Fold %s is left out of the cross-validation. %s", other.fold, error)
            continue
        twice = sorted(counted & set(table["case"]))
        if twice:
            message = "Fold %s is left out of the cross-validation: %d of its cases, such as %s, are in other folds."
            log.warning(message, other.fold, len(twice), twice[0])
            continue
        counted |= set(table["case"])
        tables.append(table.assign(fold=other.fold))
    if len(tables) < 2:
        return None
    pooled = pandas.concat(tables, ignore_index=True)
    write_scores(folder.cross_validation_scores, pooled)
    folds = ", ".join(pooled["fold"].unique())
    log.info(score_table(pooled, f"Cross-validation, folds {folds} so far", rules))
    log.info("All scores of the cross-validation: %s", folder.cross_validation_scores)
    return pooled
