"""progress.png: the training curves of a run, drawn from the rows of metrics.csv in the layout of nnU-Net."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umamba.io import atomic_path
from umamba.records.tables import read_metrics
from umamba.training.metrics_csv import MetricsCsv

log = logging.getLogger(__name__)

EVERY_S = 60.0
Rows = Sequence[dict[str, str]]


class ProgressPicture(Callback):
    """Draws the curves after an epoch, at most once a minute, and at the end.

    Args:
        path: the PNG file.
        metrics: the callback that keeps the rows; it must stand before this one in the trainer's list.
    """

    def __init__(self, path: Path, metrics: MetricsCsv) -> None:
        self.path = path
        self.metrics = metrics
        self.drawn = -EVERY_S

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw if the last drawing is more than a minute old."""
        if trainer.is_global_zero and time.monotonic() - self.drawn > EVERY_S:
            self.draw()
            self.drawn = time.monotonic()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw all epochs."""
        if trainer.is_global_zero:
            self.draw()

    def draw(self) -> None:
        """Draw all rows so far; a picture that cannot be written does not end the run."""
        try:
            draw_curves(self.metrics.rows, self.path)
        except OSError as error:
            log.warning("%s could not be written: %s", self.path, error.strerror or error)


def complete_curves(metrics: Path, path: Path) -> None:
    """Draw the curves of a trained run if that failed at its end, because the disk was full.

    Args:
        metrics: metrics.csv.
        path: the PNG file.
    """
    if metrics.exists() and not (path.exists() and path.stat().st_mtime_ns >= metrics.stat().st_mtime_ns):
        draw_curves(read_metrics(metrics), path)


def draw_curves(rows: Rows, path: Path) -> None:
    """Draw losses and Dice, seconds per iteration, and the learning rate over the epochs, into a PNG.

    The patch Dice is an estimate from patches. The Dice of whole validation cases is drawn for epochs that have it.

    Args:
        rows: rows of metrics.csv, one for each epoch. Without rows nothing is drawn.
        path: the PNG file.
    """
    if not rows:
        return
    checked = "seen" if "seen/loss" in rows[-1] else "val"
    name = "validation" if checked == "val" else "patches of training cases"
    figure = Figure(figsize=(10, 12), layout="constrained", dpi=90)
    FigureCanvasAgg(figure)
    losses, times, rates = figure.subplots(3, 1, sharex=True)
    plot(losses, rows, "train/loss", "training loss", "tab:blue")
    plot(losses, rows, f"{checked}/loss", f"loss, {name}", "tab:red")
    losses.set_ylabel("loss")
    scores = losses.twinx()
    plot(scores, rows, f"{checked}/patch_dice", "patch Dice", "tab:green", style=":")
    plot(scores, rows, f"{checked}/ema_patch_dice", "patch Dice, smoothed", "tab:green")
    plot(scores, rows, "val/case_dice", "Dice of whole validation cases", "black", style="o")
    scores.set_ylabel("Dice")
    handles = [*losses.get_legend_handles_labels()[0], *scores.get_legend_handles_labels()[0]]
    losses.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    plot(times, rows, "time/iteration_s", "seconds per iteration", "tab:purple")
    times.set_ylabel("seconds per iteration")
    plot(rates, rows, "lr", "learning rate", "tab:orange")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("epoch")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))  # the axes share it
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def plot(axes: Axes, rows: Rows, key: str, label: str, colour: str, style: str = "-") -> None:
    """Plot a column over the epochs that have it."""
    points = [(int(row["epoch"]) + 1, float(row[key])) for row in rows if row.get(key)]
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, style, label=label, color=colour, markersize=4)
