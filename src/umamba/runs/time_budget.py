"""Give a run its time budget: measure its speed once, record the plan in run.json, and forecast at the end."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import lightning

from umamba.io import UserError
from umamba.io.resources import available_cpus
from umamba.records import RunFolder
from umamba.records.tables import read_metrics
from umamba.runs.preparation import PreparedDataset
from umamba.runs.trainer import build_datamodule, patch_workers
from umamba.settings import TrainSettings
from umamba.settings.duration import SHORTEST_S, duration_seconds, next_time
from umamba.settings.validate import read_record
from umamba.training.budget import BudgetPlan, Speed, needed_workers, plan_budget
from umamba.training.forecast import curve, forecast
from umamba.training.measuring import measured_speed
from umamba.training.module import SegmentationModule
from umamba.training.workers import explain_worker_error

log = logging.getLogger(__name__)

_MEASURING_SHARE, _MOST_MEASURING_S = 0.03, 30.0


def end_of_training(settings: TrainSettings, now: datetime | None = None) -> float | None:
    """Return when the training ends, in seconds since 1970; None: finish_by is not given.

    Args:
        settings: the settings of the run.
        now: local time at which the command began; None: the present.
    """
    if settings.finish_by is None:
        return None
    moment = next_time(settings.finish_by, datetime.now() if now is None else now)
    assert moment is not None  # the settings were checked
    return moment.timestamp()


def check_end(settings: TrainSettings, folder: RunFolder, ends: float | None) -> None:
    """Refuse a new run that would end before its training could begin; a run that has begun is continued at any time.

    Args:
        settings: the settings of the run.
        folder: the run folder.
        ends: when training ends, in seconds since 1970; None: no such time.

    Raises:
        UserError: there is no time left.
    """
    if ends is None or settings.finish_by is None or (folder.last.exists() and not settings.restart):
        return
    left = ends - time.time()
    if left < SHORTEST_S:
        raise UserError(f"finish_by={settings.finish_by}: {_left(left)} Give a later time.")


def _left(seconds: float) -> str:
    return f"{max(0.0, seconds):.0f} s are left for the training, which is too short (at least {SHORTEST_S:.0f} s)."


def untimed(settings: TrainSettings) -> TrainSettings:
    """Return settings without their time budget, for a test of a few batches.

    Args:
        settings: the settings of a run.
    """
    return replace(settings, budget=None, finish_by=None)


def spent(settings: TrainSettings, plan: BudgetPlan) -> TrainSettings:
    """Return settings whose epochs, validation and workers are those of a plan.

    Args:
        settings: the settings of a run with a time budget.
        plan: how the budget is spent.
    """
    data = replace(
        settings.data,
        iterations_per_epoch=plan.iterations,
        val_iterations=plan.val_iterations,
        num_workers=plan.workers,
    )
    trainer = replace(settings.trainer, limit_train_batches=None, limit_val_batches=None)
    return replace(untimed(settings), data=data, trainer=trainer)


def budget_plan(
    settings: TrainSettings,
    prepared: PreparedDataset,
    folder: RunFolder,
    module: SegmentationModule,
    trainer: lightning.Trainer,
    cases: tuple[list[str], list[str]],
    *,
    continued: bool,
    ends: float | None,
) -> BudgetPlan:
    """Return how a run spends its time budget: as run.json records it, or measured now and recorded there.

    Args:
        settings: the settings of the run.
        prepared: the dataset.
        folder: the run folder.
        module: the module, which trains some steps and gets its weights back.
        trainer: the Trainer of the run.
        cases: names of the training and the validation cases.
        continued: whether the run continues from a checkpoint.
        ends: when training ends, in seconds since 1970; None: as settings.budget says.

    Raises:
        UserError: there is no time left.
    """
    recorded = folder.status().get("budget")
    if continued and recorded is not None:
        return _recorded(folder, recorded)
    seconds = ends - time.time() if ends is not None else duration_seconds(str(settings.budget))
    assert seconds is not None  # the settings were checked
    if seconds < SHORTEST_S:
        raise UserError(
            f"finish_by={settings.finish_by}: after the preparation {_left(seconds)} Give a later time; what was "
            "prepared stays."
        )
    log.info("Measuring the speed of a training step, of which the time budget is made.")
    duration = min(_MEASURING_SHARE * seconds, _MOST_MEASURING_S)
    datamodule = build_datamodule(settings, prepared, trainer, *cases)
    try:
        speed = measured_speed(module, datamodule, trainer, duration)
    except RuntimeError as error:
        explained = explain_worker_error(error, datamodule)
        if explained is None:
            raise
        raise UserError(explained) from error
    plan = _plan(settings, trainer, seconds, ends, speed)
    folder.set_status(budget=asdict(plan))
    schedule, finetune = settings.recipe.schedule, settings.recipe.finetune
    begins = (
        f"follows recipe.finetune in the first {100 * (finetune.frozen + finetune.warm_up):g} %"
        if finetune.on
        else f"rises in the first {100 * schedule.warm_up:g} %"
    )
    log.info(
        "%s The learning rate %s of the time and falls to 0 in the last %g %%%s (recipe.schedule.name=wsd, which takes "
        "the place of the recipe's own schedule).",
        plan.sentence(),
        begins,
        100 * schedule.decay,
        " of the rest" if finetune.on else "",
    )
    return plan


def _plan(
    settings: TrainSettings, trainer: lightning.Trainer, seconds: float, ends: float | None, speed: Speed
) -> BudgetPlan:
    workers, given = patch_workers(settings, trainer), settings.data.num_workers is not None
    limits = settings.trainer
    kept = limits.limit_val_batches is not None or not settings.val_batches
    return plan_budget(
        seconds,
        ends,
        speed,
        workers=workers if given else needed_workers(workers, speed, available_cpus()),
        iterations=None if limits.limit_train_batches is None else settings.train_batches,
        val_iterations=settings.val_batches if kept else None,
    )


def _recorded(folder: RunFolder, content: Mapping[str, Any]) -> BudgetPlan:
    try:
        return read_record(BudgetPlan, content, "budget")
    except UserError as error:
        raise UserError(
            f"{folder.status_file}: {error} Put back a copy of the file, or begin afresh with restart=true."
        ) from None


def report_forecast(folder: RunFolder) -> None:
    """Say and record what twice the time would probably bring.

    Args:
        folder: the run folder, whose metrics.csv holds the run's curve.
    """
    found = forecast(*curve(read_metrics(folder.metrics)))
    if found is None:
        log.info("The run has too few epochs with a patch Dice to say what twice the time would bring.")
        return
    folder.set_status(forecast=asdict(found))
    log.info(found.sentence())
