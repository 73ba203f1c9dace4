"""Plots of scores: box plots for each label and method, and Bland-Altman plots of volumes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from umamba.io import atomic_path
from umamba.labels import colours

_BOX_INCHES, _ROW_INCHES = 0.32, 3.0


def box_plots(scores: Mapping[str, pandas.DataFrame], metrics: Mapping[str, str], path: Path) -> None:
    """Draw box plots into a PNG: a row for each metric, a box for each label and method, and a dot for each case.

    Args:
        scores: method -> table with the columns case, label and the metrics.
        metrics: column -> title.
        path: the file to write, atomically.
    """
    labels = list(dict.fromkeys(label for table in scores.values() for label in table["label"]))
    width = max(6.0, _BOX_INCHES * len(labels) * (len(scores) + 1) + 1.5)
    figure = Figure(figsize=(width, _ROW_INCHES * len(metrics)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    for axes, (metric, title) in zip(
        figure.subplots(len(metrics), 1, squeeze=False)[:, 0], metrics.items(), strict=True
    ):
        for number, (table, colour) in enumerate(zip(scores.values(), colours(len(scores)) / 255, strict=True)):
            values = [table.loc[table["label"] == label, metric].dropna().to_numpy() for label in labels]
            places = np.arange(len(labels)) * (len(scores) + 1) + number
            _boxes(axes, values, places, colour)
        axes.set_xticks(
            np.arange(len(labels)) * (len(scores) + 1) + (len(scores) - 1) / 2, labels, rotation=30, ha="right"
        )
        axes.set_ylabel(title)
        axes.grid(axis="y", alpha=0.3)
    if len(scores) > 1:
        handles = [axes.plot([], [], "s", color=tuple(c / 255), label=name)[0]
                   for name, c in zip(scores, colours(len(scores)), strict=True)]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=len(scores), frameon=False)
    _save(figure, path)


def _boxes(axes: Axes, values: Sequence[np.ndarray], places: np.ndarray, colour: np.ndarray) -> None:
    drawn = axes.boxplot(
        list(values), positions=places, widths=0.7, patch_artist=True, showfliers=False, manage_ticks=False
    )
    for box in drawn["boxes"]:
        box.set(facecolor=(*colour, 0.35), edgecolor=tuple(colour))
    for line in drawn["medians"]:
        line.set(color="black")
    spread = np.random.default_rng(0)
    for place, each in zip(places, values, strict=True):
        axes.plot(place + spread.uniform(-0.2, 0.2, len(each)), each, ".", markersize=3, color=tuple(colour))


def bland_altman(scores: pandas.DataFrame, path: Path) -> None:
    """Draw Bland-Altman plots into a PNG: predicted minus true volume over the mean of both, one plot for each label.

    Lines mark the mean difference and 1.96 standard deviations on both sides.

    Args:
        scores: columns label, volume_ml and true_volume_ml (millilitres).
        path: the file to write, atomically.
    """
    labels = list(dict.fromkeys(scores["label"]))
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.7 * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, label in zip(grid, labels, strict=False):
        table = scores[scores["label"] == label]
        predicted, true = table["volume_ml"].to_numpy(), table["true_volume_ml"].to_numpy()
        difference = predicted - true
        axes.plot((predicted + true) / 2, difference, ".", color="tab:blue")
        bias, spread = difference.mean(), difference.std(ddof=1) if len(difference) > 1 else 0.0
        for height, style in ((bias, "-"), (bias - 1.96 * spread, "--"), (bias + 1.96 * spread, "--")):
            axes.axhline(height, linestyle=style, color="black", linewidth=0.8)
        axes.set_title(f"{label}: {bias:+.2f} ± {1.96 * spread:.2f} ml", fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in grid[len(labels) :]:
        axes.set_visible(False)
    figure.supxlabel("mean of predicted and true volume (ml)", fontsize=8)
    figure.supylabel("predicted - true (ml)", fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
