"""Show the progress of training: a line for each epoch, and Lightning's progress bar in a terminal."""

import logging
import time

import lightning
from lightning.pytorch.callbacks import Callback, RichProgressBar

log = logging.getLogger(__name__)


class EpochLines(Callback):
    """Reports a line for each epoch (loss, patch Dice, seconds per iteration, time left) and logs the seconds."""

    def __init__(self) -> None:
        self.epoch_start = 0.0
        self.epoch_seconds: list[float] = []

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self.epoch_start = time.perf_counter()

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the seconds per training iteration, without validation."""
        if not trainer.sanity_checking:
            elapsed = time.perf_counter() - self.epoch_start
            iterations = max(1, trainer.fit_loop.epoch_loop.batch_idx + 1)
            pl_module.log("time/iteration_s", elapsed / iterations)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Report the epoch."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}  # a collective operation
        if not trainer.is_global_zero:
            return
        self.epoch_seconds.append(time.perf_counter() - self.epoch_start)
        checked = "val" if "val/loss" in metrics else "seen"
        skipped = metrics.get("train/skipped_steps", 0)
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        mean_seconds = sum(self.epoch_seconds) / len(self.epoch_seconds)
        log.info(
            f"epoch {done}/{total}  loss {metrics.get('train/loss', float('nan')):.4f}"
            f"  {checked} loss {metrics.get(f'{checked}/loss', float('nan')):.4f}"
            f"  patch Dice {metrics.get(f'{checked}/patch_dice', float('nan')):.4f}"
            f"  {metrics.get('time/iteration_s', float('nan')):.2f} s/it"
            f"  {duration(mean_seconds * (total - done))} left"
            + (f"  {skipped:.0f} steps skipped (not finite)" if skipped else "")
        )


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def progress_callbacks(bar: bool) -> list[Callback]:
    """Return the callbacks that show the progress of training.

    Args:
        bar: whether to add Lightning's rich progress bar to the line for each epoch.
    """
    return [EpochLines(), RichProgressBar(leave=False)] if bar else [EpochLines()]
