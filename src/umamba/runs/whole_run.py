"""One run from its settings to its scores: prepare, train, predict, score, draw."""

import json
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from umamba.evaluation import score_table, worst_median_best
from umamba.evaluation.overlay import case_score
from umamba.evaluation.score import TITLES, metrics_of
from umamba.io import atomic_path
from umamba.io.voice import shown
from umamba.records import RunFolder
from umamba.records.tables import read_curves, read_scores
from umamba.runs.fit import check_fold, check_network, checkpoint_record, fit
from umamba.runs.preparation import PreparedDataset, plan_of, preprocess
from umamba.runs.score import check_scoring, draw_cases, predict_and_score
from umamba.runs.smoke import smoke_test
from umamba.runs.trainer import check_trainer, is_first_process
from umamba.settings import TrainSettings, plain
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
    finished run returns its scores.

    Args:
        settings: the settings of the run.
        progress: print messages and show progress bars.

    Raises:
        UserError: a mistake in the dataset or the settings; the run folder is in use, or holds another run.
    """
    with shown(progress):
        if settings.smoke:
            settings = smoke_test(settings)
        check_trainer(settings)
        planned = plan_of(settings)
        check_fold(settings, planned)
        check_network(settings, planned)
        check_scoring(settings, planned)
        return run(settings, preprocess(planned, settings), RunFolder.of(settings))


def run(settings: TrainSettings, prepared: PreparedDataset, folder: RunFolder) -> RunResult:
    """Train a network on a prepared dataset, then predict, score and draw.

    If several processes train one run, only rank 0 predicts and scores after training; the others return no scores.

    Args:
        settings: the settings of the run.
        prepared: the dataset, its plan and its preprocessed cases.
        folder: the run folder, which is locked during the run and, with restart=true, emptied first.

    Returns:
        The folder and the scores; for a run that is already finished, the scores on disk.

    Raises:
        UserError: as `train`.
    """
    max_epochs, max_seconds = settings.trainer.max_epochs, settings.trainer.max_seconds
    first = is_first_process()
    with folder.lock() if first else nullcontext(), LeaveOnSignal(folder.path).installed():
        if settings.restart and first:
            folder.clear()
        if folder.is_finished(max_epochs, max_seconds):
            log.info("This run is finished: %s. Train it again with restart=true.", folder.path)
            result = finished(folder)
            if result.scores is not None:
                log.info(score_table(result.scores))
            return result
        record = checkpoint_record(settings, prepared)
        if first:
            folder.begin(record, max_epochs, max_seconds)
            with atomic_path(folder.config) as temporary:
                OmegaConf.save(OmegaConf.create(json.loads(json.dumps(plain(settings)))), temporary)
        try:
            loggers = fit(settings, prepared, folder, record)
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
        log_pictures(loggers, "test", draw_cases(prepared, scores, folder), captions)
        log.info(score_table(scores))
    folder.set_status(state="finished")
    return RunResult(folder, validation, scores)


def _outcome(result: RunResult) -> str:
    """Return the mean scores of a run in a sentence."""
    tables = {"Test images": result.scores, "Validation": result.validation}
    parts = [
        f"{name}: " + ", ".join(f"{TITLES[metric]} {table[metric].mean():.3f}" for metric in metrics_of(table))
        for name, table in tables.items()
        if table is not None
    ]
    return ". ".join(parts) or "No case has a reference, so nothing was scored"


def finished(folder: RunFolder) -> RunResult:
    """Read the result of a finished run from its folder.

    Args:
        folder: the run folder.
    """
    validation, scores = read_scores(folder.validation_scores), read_scores(folder.scores)
    return RunResult(folder, None if validation.empty else validation, None if scores.empty else scores)
