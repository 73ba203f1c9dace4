"""The learning curves of a report as PNG bytes: one plot for each loss or score, narrow enough for a phone."""

import io
from dataclasses import dataclass

import pandas
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umamba.reporting.names import method_name
from umamba.reporting.results import Results

_INCHES = (3.6, 2.6)
_DPI = 200
# Columns of metrics.csv and their title; the first existing column is drawn. "seen": patches of training cases, which
# are validated if fold=all leaves no validation case.
_CURVES = (
    (("train/loss",), "Training loss"),
    (("val/loss", "seen/loss"), "Validation loss"),
    (("val/ema_patch_dice", "seen/ema_patch_dice"), "Patch Dice, smoothed"),
)
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#6a3d9a",
    "#4d4d4d",
    "#8c510a",
    "#000000",
)
_DASHES = ("solid", "dashed", "dotted", "dashdot")


@dataclass(frozen=True)
class Curves:
    """The learning curves of a dataset.

    Attributes:
        plots: title and PNG file of each plot.
        lines: name, colour and dashes (solid, dashed, dotted, dashdot) of each line.
    """

    plots: tuple[tuple[str, bytes], ...]
    lines: tuple[tuple[str, str, str], ...]


def learning_curves(results: Results, dataset: str) -> Curves | None:
    """Draw the losses and the patch Dice of each run over the epochs: a colour a method, dashes for its runs.

    Args:
        results: the results of the study.
        dataset: the benchmark.

    Returns:
        The plots; None if no run has begun.
    """
    states = [state for state in results.states if state.run.dataset == dataset and state.run.folder in results.curves]
    if not states:
        return None
    methods = results.methods(dataset)
    lines: list[tuple[str, str, str]] = []
    curves: list[pandas.DataFrame] = []
    for index, state in enumerate(states):
        run = state.run
        number = sum(other.run.method == run.method for other in states[:index])
        name = f"{method_name(run.method)}, fold {run.fold}, seed {run.seed}"
        lines.append((name, _COLOURS[methods.index(run.method) % len(_COLOURS)], _DASHES[number % len(_DASHES)]))
        curves.append(results.curves[run.folder])
    plots = []
    for columns, title in _CURVES:
        drawn = [next((curve[column] for column in columns if column in curve), None) for curve in curves]
        if any(values is not None and values.notna().any() for values in drawn):
            plots.append((title, _plot(curves, drawn, lines)))
    return Curves(tuple(plots), tuple(lines)) if plots else None


def _plot(
    curves: list[pandas.DataFrame], drawn: list[pandas.Series | None], lines: list[tuple[str, str, str]]
) -> bytes:
    figure = Figure(figsize=_INCHES, layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for curve, values, (_, colour, dashes) in zip(curves, drawn, lines, strict=True):
        if values is not None:
            marker = "." if len(curve) < 20 else ""
            axes.plot(curve["epoch"] + 1, values, color=colour, linestyle=dashes, marker=marker, linewidth=1.2)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.grid(alpha=0.3)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
