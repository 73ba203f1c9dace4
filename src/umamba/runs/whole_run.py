"""One run from its settings to its scores: prepare, train, predict, score, draw."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas
from lightning.pytorch.loggers import Logger

from umamba.evaluation import worst_median_best
from umamba.evaluation.overlay import case_score
from umamba.evaluation.score import TITLES, metrics_of
from umamba.io import UserError
from umamba.io.voice import shown
from umamba.records import RunFolder
from umamba.records.begin import begin, check_same_run, scored_otherwise
from umamba.records.identity import early_stopping, scoring_settings
from umamba.records.replacement import replacing
from umamba.records.tables import read_curves, read_scores
from umamba.runs.cascade import check_first_stage, with_first_stage
from umamba.runs.checks import check_fold, check_network
from umamba.runs.fit import fit
from umamba.runs.identity import checkpoint_record, run_identity
from umamba.runs.measured_plan import with_measured_plan
from umamba.runs.preparation import PreparedDataset, plan_of, preprocess
from umamba.runs.score import check_scoring, draw_cases, predict_and_score, table_of_test_images
from umamba.runs.smoke import smoke_test
from umamba.runs.time_budget import check_end, end_of_training, untimed
from umamba.runs.trainer import check_trainer, is_first_process, processes
from umamba.settings import TrainSettings
from umamba.training.checkpoints import newest_readable
from umamba.training.curves import complete_curves
from umamba.training.loggers import close_loggers, log_pictures, log_scores, upload_model
from umamba.training.notice import send_notice
from umamba.training.stopping import LeaveOnSignal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The folder and scores of a run.

    Attributes:
        folder: the run folder; `folder.last` and `folder.best` are its checkpoints.
        validation: scores of the fold's validation cases (case, label, metrics); None: none was scored.
        scores: scores of the test images; None: none was scored.
    """

    folder: RunFolder
    validation: pandas.DataFrame | None
    scores: pandas.DataFrame | None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.folder.last

    @property
    def metrics(self) -> pandas.DataFrame:
        """The curves of training: one row for each epoch, with train/loss, val/loss, val/patch_dice and others."""
        return read_curves(self.folder.metrics)


def train(settings: TrainSettings, *, progress: bool = True) -> RunResult:
    """Train one network on one dataset, then predict, score and draw its test images.

    The run folder follows from the settings. A run that was interrupted continues after its last completed epoch; a
    finished run returns its scores. A dry run (Lightning's fast_dev_run) has its own folder and always begins anew.

    Args:
        settings: the settings of the run.
        progress: print messages and show progress bars.

    Raises:
        UserError: a mistake in the dataset or the settings; the run folder is in use, or holds another run.
    """
    with shown(progress):
        ends = end_of_training(settings)  # before the preparation, which may take longer than until this time
        if settings.smoke:
            settings = smoke_test(settings)
        if settings.trainer.dry_run:
            settings = replace(untimed(settings), restart=True)
        check_trainer(settings)
        folder = RunFolder.of(settings)
        if not settings.restart:
            folder.status()  # a damaged run.json is refused before any work
        check_end(settings, folder, ends)
        settings = with_measured_plan(settings)
        planned = plan_of(settings)
        check_fold(settings, planned)
        check_network(settings, planned)
        check_scoring(settings, planned)
        check_first_stage(settings, planned)
        return run(settings, preprocess(planned, settings), folder, ends)


def run(settings: TrainSettings, prepared: PreparedDataset, folder: RunFolder, ends: float | None = None) -> RunResult:
    """Train a network on a prepared dataset, then predict, score and draw.

    If several processes train one run, only rank 0 predicts and scores after training; the others return no scores.

    Args:
        settings: the settings of the run.
        prepared: the dataset, its plan and its preprocessed cases.
        folder: the run folder, which is locked during the run and, with restart=true, replaced.
        ends: when training ends with finish_by, in seconds since 1970; None: the next such time.

    Returns:
        The folder and the scores; for a run that is already finished, the scores on disk.

    Raises:
        UserError: as `train`.
    """
    settings = with_measured_plan(settings)  # what was measured for the preparation is kept
    first = is_first_process()
    prepared = with_first_stage(settings, prepared)
    record = checkpoint_record(settings, prepared)
    with alone(folder, settings, first):
        identity = run_identity(settings, prepared, record)
        if first:
            check_same_run(folder, identity, settings, processes(settings))
        asked = (settings.trainer.max_epochs, settings.trainer.max_seconds, early_stopping(settings))
        trained = not settings.restart and folder.is_finished(*asked)
        otherwise = scored_otherwise(folder, settings) if trained and first else []
        if trained and not otherwise:
            return _as_it_is(folder, settings)
        if first and not trained:
            begin(folder, identity, settings, completed(folder, settings), processes(settings))
        try:
            if trained:
                log.info("This run is trained, and is scored again: %s", "; ".join(otherwise))
            loggers = [] if trained else fit(settings, prepared, folder, record, ends)
            if not first:
                return RunResult(folder, None, None)
            result = _after_training(settings, prepared, folder, loggers)
        except Exception as error:
            if first:
                send_notice(settings.logger, "failed", folder.path, str(error).strip().split("\n")[0])
            raise
        log.info("Run folder: %s", folder.path)
        send_notice(settings.logger, "finished", folder.path, _outcome(result))
        close_loggers(loggers)
        return result


def _after_training(
    settings: TrainSettings, prepared: PreparedDataset, folder: RunFolder, loggers: list[Logger]
) -> RunResult:
    """Predict, score and draw what the trained network segments; send scores and pictures to the loggers."""
    if settings.logger.upload_model:
        upload_model(loggers, folder)
    folder.set_status(state="predicting")
    validation, scores = predict_and_score(settings, prepared, folder)
    log_pictures(loggers, "training", {"progress": folder.curves})
    if validation is not None:
        log_scores(loggers, "validation", validation, metrics_of(validation))
    if scores is not None:
        log_scores(loggers, "test", scores, metrics_of(scores))
        captions = {rank: f"{case}, {case_score(scores, case)}" for rank, case in worst_median_best(scores).items()}
        log_pictures(loggers, "test", draw_cases(settings, prepared, scores, folder), captions)
        log.info(table_of_test_images(scores, settings))
    complete_curves(folder.metrics, folder.curves)
    folder.set_status(state="finished", scoring=scoring_settings(settings))
    return RunResult(folder, validation, scores)


def _outcome(result: RunResult) -> str:
    """Return the mean scores of a run in a sentence: over labels, then over cases, as in the tables."""
    tables = {"Test images": result.scores, "Validation": result.validation}
    means = {
        name: table.groupby("case")[metrics_of(table)].mean().mean()
        for name, table in tables.items()
        if table is not None
    }
    parts = [
        f"{name}: " + ", ".join(f"{TITLES[m]} {value:.3f}" for m, value in mean.items()) for name, mean in means.items()
    ]
    return ". ".join(parts) or "No case has a reference, so nothing was scored"


@contextmanager
def alone(folder: RunFolder, settings: TrainSettings, first: bool) -> Iterator[None]:
    """Hold the run folder: signals end the process, and the first process locks it and moves a former run aside.

    Args:
        folder: the run folder.
        settings: `restart` is read.
        first: whether this is the first of the processes that train together.
    """
    with LeaveOnSignal(folder.path).installed():
        if not first:
            yield
            return
        with folder.lock(), replacing(folder, settings.restart):
            yield


def completed(folder: RunFolder, settings: TrainSettings) -> int:
    """Return the epochs that the run has completed; refuse fewer of them than that, which would be another schedule.

    Args:
        folder: the run folder.
        settings: the number of epochs that is asked for.

    Raises:
        UserError: the run has completed more epochs.
    """
    newest = newest_readable(folder)
    epochs = 0 if newest is None else newest[1]
    if epochs > settings.trainer.max_epochs:
        raise UserError(
            f"trainer.max_epochs={settings.trainer.max_epochs}: the run in {folder.path} has completed {epochs} epochs "
            f"already. Give {epochs} or more to continue it, another name (name=...), or restart=true."
        )
    return epochs


def _as_it_is(folder: RunFolder, settings: TrainSettings) -> RunResult:
    """Report a finished run and return its result."""
    trained = folder.status().get("max_epochs", settings.trainer.max_epochs)
    more = f" It was trained for {trained} epochs, not {settings.trainer.max_epochs}."
    log.info(
        "This run is finished: %s.%s Train it again with restart=true.",
        folder.path,
        more if trained != settings.trainer.max_epochs else "",
    )
    result = finished(folder)
    if result.scores is not None:
        log.info(table_of_test_images(result.scores, settings))
    return result


def finished(folder: RunFolder) -> RunResult:
    """Read the result of a finished run from its folder.

    Args:
        folder: the run folder.
    """
    validation, scores = read_scores(folder.validation_scores), read_scores(folder.scores)
    return RunResult(folder, None if validation.empty else validation, None if scores.empty else scores)
