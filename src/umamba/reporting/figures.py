"""Plots of a report as PNG bytes: box plots over cases and learning curves."""

import io

import pandas
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umamba.io.escape import mathtext
from umamba.reporting.results import Results

_DPI = 110
# Columns of metrics.csv and their title; the first existing column is drawn. "seen": patches of training cases, which
# are validated if fold=all leaves no validation case.
_CURVES = (
    (("train/loss",), "training loss"),
    (("val/loss", "seen/loss"), "validation loss"),
    (("val/ema_patch_dice", "seen/ema_patch_dice"), "patch Dice, smoothed"),
)


def box_plot(results: Results, dataset: str, metric: str) -> bytes | None:
    """Draw the cases' means over labels, a box for each method.

    Args:
        results: the results of the study.
        dataset: the benchmark.
        metric: name of the score.

    Returns:
        The plot; None if nothing is measured.
    """
    rows = results.scores[(results.scores["dataset"] == dataset) & (results.scores["metric"] == metric)]
    means = rows.groupby(["method", "seed", "fold", "case"])["value"].mean()
    methods = [method for method in results.methods(dataset) if method in set(means.index.get_level_values("method"))]
    if not methods:
        return None
    figure = Figure(figsize=(7.0, 1.0 + 0.45 * len(methods)), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    values = [means.xs(method, level="method").to_numpy() for method in reversed(methods)]
    names = [mathtext(method) for method in reversed(methods)]
    axes.boxplot(values, orientation="horizontal", tick_labels=names, showmeans=True, widths=0.6)
    for row, points in enumerate(values, start=1):
        axes.plot(points, [row] * len(points), "|", color="tab:blue", alpha=0.5, markersize=8)
    axes.set_xlabel(f"{metric.upper()} of a case, mean over labels (line: median, triangle: mean)")
    axes.grid(axis="x", alpha=0.3)
    return _png(figure)


def learning_curves(results: Results, dataset: str) -> bytes | None:
    """Draw the losses and the patch Dice of each run over the epochs.

    Args:
        results: the results of the study.
        dataset: the benchmark.

    Returns:
        The plot; None if no run has begun.
    """
    curves = {
        f"{state.run.method} fold {state.run.fold} seed {state.run.seed}": results.curves[state.run.folder]
        for state in results.states
        if state.run.dataset == dataset and state.run.folder in results.curves
    }
    if not curves:
        return None
    figure = Figure(figsize=(7.0, 8.0), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(_CURVES), 1, sharex=True)
    for axes, (columns, title) in zip(grid, _CURVES, strict=True):
        _draw_curves(axes, curves, columns, title)
    grid[-1].set_xlabel("epoch")
    grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    names = [mathtext(name) for name in curves]
    figure.legend(grid[0].get_lines(), names, loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return _png(figure)


def _draw_curves(axes: Axes, curves: dict[str, pandas.DataFrame], columns: tuple[str, ...], title: str) -> None:
    for curve in curves.values():
        column = next((column for column in columns if column in curve), None)
        values = curve["epoch"] * float("nan") if column is None else curve[column]
        axes.plot(curve["epoch"] + 1, values, marker="." if len(curve) < 20 else "", linewidth=1)
    axes.set_ylabel(title, fontsize=8)
    axes.grid(alpha=0.3)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
