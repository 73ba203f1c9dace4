"""Show the progress of training: a line for each epoch; within epochs a bar or, without a terminal, a line a minute.

Epochs and steps are counted from 1 to the total; times are h:mm:ss and seconds. The time left is that of the whole run.
"""

import logging
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from umamba.training.budget import BudgetSchedule
from umamba.training.stopping import TimeBudget
from umamba.training.time_left import TimeLeft

log = logging.getLogger(__name__)

_LINE_S = 60.0  # without a bar there is a line at least this often
_REFRESH_S = 1.0  # reading the loss makes a GPU wait, so that the bar does it rarely


class EpochLines(Callback):
    """Reports a line for each epoch, shows a bar or a line a minute within epochs, and logs the seconds per step.

    Args:
        bar: whether to show a bar; otherwise a line follows the first step, and then one at least every minute.
        steps_after: validation steps whose forward passes the prediction after training needs.
        recent_epochs: epochs over which the time beside training steps is averaged.
    """

    def __init__(self, bar: bool = False, steps_after: float = 0.0, recent_epochs: int = 1) -> None:
        self.bar = bar
        self.steps_after = steps_after
        self.recent_epochs = recent_epochs
        self.epoch_start = self.mark = self.said = 0.0
        self.training_s = 0.0
        self.steps_seen = 0
        self.time_left: TimeLeft | None = None
        self.progress: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the bar."""
        self.time_left = TimeLeft(
            trainer.max_epochs or 0,
            int(trainer.num_training_batches),
            sum(int(number) for number in trainer.num_val_batches),
            self.steps_after,
            self.recent_epochs,
        )
        if self.bar and trainer.is_global_zero:
            text = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
            where = TextColumn("{task.description}", table_column=Column(no_wrap=True))
            self.progress = Progress(where, BarColumn(bar_width=12), text, console=Console(), transient=True)
            self.progress.add_task("", total=trainer.num_training_batches, text="")
            self.progress.start()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clocks."""
        self.epoch_start = self.mark = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the step; show it if the last sign of life is old enough."""
        now = time.perf_counter()
        self.steps_seen += 1
        if self.time_left is not None and (self.steps_seen > 1 or batch_idx + 1 == trainer.num_training_batches):
            self.time_left.step_s.append(now - self.mark)  # the first step also starts workers and allocates memory
        self.mark = now
        if batch_idx + 1 == trainer.num_training_batches:
            self.training_s = now - self.epoch_start
            pl_module.log(
                "time/iteration_s", self.training_s / (batch_idx + 1), on_step=False, on_epoch=True, batch_size=1
            )
        due = now - self.said > (_REFRESH_S if self.progress is not None else _LINE_S)
        if trainer.is_global_zero and (due or (self.progress is None and self.steps_seen == 1)):
            self.said = now
            self._show(trainer, batch_idx + 1, outputs)

    def _show(self, trainer: lightning.Trainer, step: int, outputs: Any) -> None:
        where = _numbered(trainer)
        steps = f"step {step}/{trainer.num_training_batches}"
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs  # divided by the batches of a step
        batches = trainer.accumulate_grad_batches
        words = [f"loss {float(loss) * batches:.3f}"] if isinstance(loss, torch.Tensor) else []
        if self.time_left is not None and self.time_left.step_s:
            words += [f"{self.time_left.seconds_per_step:.3g} s/it", f"{self._left(trainer, step)} left"]
        if self.progress is not None:
            text = f"{step}/{trainer.num_training_batches} " + " ".join(words)
            self.progress.update(self.progress.task_ids[0], description=where, completed=step, text=text)
        else:
            log.info("%s", ", ".join([f"{where}: {steps}", *words]))

    def _left(self, trainer: lightning.Trainer, step: int, epochs: int | None = None) -> str:
        if self.time_left is None:
            return "?"
        limit, used = self._limit(trainer, step)
        done = trainer.current_epoch if epochs is None else epochs
        return duration(self.time_left.left(done, step, used, limit))

    def _limit(self, trainer: lightning.Trainer, step: int) -> tuple[float | None, float]:
        """Return the time limit of the training, None without one, and the seconds of it that are used."""
        timed = _budget_of(trainer)
        if timed is not None:
            return timed.seconds, timed.used
        budget = next((callback for callback in trainer.callbacks if isinstance(callback, TimeBudget)), None)  # type: ignore[attr-defined]
        if budget is None:
            return None, 0.0
        return budget.seconds, budget.used + (time.perf_counter() - self.epoch_start if step else 0.0)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Name the validation in the bar."""
        if self.progress is not None and not trainer.sanity_checking:
            where = _numbered(trainer)
            self.progress.update(self.progress.task_ids[0], description=where, text="validation")

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Start the clock of a validation step."""
        self.mark = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a validation step."""
        if self.time_left is not None and not trainer.sanity_checking:
            self.time_left.val_step_s.append(time.perf_counter() - self.mark)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Report the epoch."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}  # a collective operation
        if not trainer.is_global_zero or self.time_left is None:
            return
        now = time.perf_counter()
        self.time_left.rest_s.append(now - self.epoch_start - self.training_s)
        self.said = now
        checked = next((name for name in ("val", "seen") if f"{name}/loss" in metrics), None)
        of_checked = (
            "" if checked is None else f", {checked} {metrics[f'{checked}/loss']:.2f}{_scores(metrics, checked)}"
        )
        skipped = metrics.get("train/skipped_steps", 0)
        done = trainer.current_epoch + 1
        log.info(
            "%s",
            f"{_numbered(trainer)}: loss {metrics.get('train/loss', float('nan')):.2f}"
            f"{of_checked}"
            f", {metrics.get('time/iteration_s', float('nan')):.3g} s/it"
            f", {self._left(trainer, 0, done)} left"
            + (f", {skipped:.0f} steps skipped (not finite)" if skipped else ""),
        )

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar."""
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def _budget_of(trainer: lightning.Trainer) -> BudgetSchedule | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, BudgetSchedule)), None)


def _numbered(trainer: lightning.Trainer) -> str:
    """Return the epoch's number with the number of all epochs or, under a time budget, the share of it that is used."""
    timed, number = _budget_of(trainer), trainer.current_epoch + 1
    if timed is None:
        return f"epoch {number}/{trainer.max_epochs}"
    return f"epoch {number} ({min(1.0, timed.used / max(timed.seconds, 1e-9)):.0%} of the time)"


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss; a question mark if they are not known.

    >>> duration(3725.4), duration(float("nan"))
    ('1:02:05', '?')
    """
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _scores(metrics: dict[str, float], checked: str) -> str:
    """Return the scores that an epoch has: patch Dice, and the share of patches that a head classifies right."""
    prefix = f"{checked}/case_accuracy/"
    right = [f", {name.removeprefix(prefix)} right {value:.0%}" for name, value in metrics.items() if prefix in name]
    dice = metrics.get(f"{checked}/patch_dice")  # none in a pretraining
    return ("" if dice is None or (right and dice != dice) else f", patch Dice {dice:.3f}") + "".join(right)
