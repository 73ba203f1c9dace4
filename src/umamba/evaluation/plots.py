"""Plots of scores: box plots for each label and method, and Bland-Altman plots of volumes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umamba.io import atomic_path
from umamba.io.escape import mathtext
from umamba.labels import colours
from umamba.labels.painting import new_figure

_BOX_INCHES, _ROW_INCHES = 0.32, 3.0
# More plots than these take minutes to draw, and nobody can read them. The tables have every label.
_MOST_BOX_LABELS = 40
_MOST_BLAND_ALTMAN = 16


def box_plots(scores: Mapping[str, pandas.DataFrame], metrics: Mapping[str, str], path: Path) -> None:
    """Draw box plots into a PNG: a row for each metric, a box for each label and method, and a dot for each case.

    At most 40 labels are drawn, those with the lowest mean of the first metric; the picture says so.

    Args:
        scores: method -> table with the columns case, label and the metrics.
        metrics: column -> title.
        path: the file to write, atomically.
    """
    everything = pandas.concat(scores.values(), ignore_index=True)
    labels, note = _drawn(everything, next(iter(metrics)), _MOST_BOX_LABELS, "with the lowest scores")
    width = max(6.0, _BOX_INCHES * len(labels) * (len(scores) + 1) + 1.5)
    figure = new_figure(width, _ROW_INCHES * len(metrics) + 0.5)
    for axes, (metric, title) in zip(
        figure.subplots(len(metrics), 1, squeeze=False)[:, 0], metrics.items(), strict=True
    ):
        for number, (table, colour) in enumerate(zip(scores.values(), colours(len(scores)) / 255, strict=True)):
            by_label = dict(iter(table.groupby("label")[metric]))
            values = [by_label[label].dropna().to_numpy() if label in by_label else np.empty(0) for label in labels]
            places = np.arange(len(labels)) * (len(scores) + 1) + number
            _boxes(axes, values, places, colour)
        centres = np.arange(len(labels)) * (len(scores) + 1) + (len(scores) - 1) / 2
        axes.set_xticks(centres, [mathtext(label) for label in labels], rotation=30, ha="right")
        axes.set_ylabel(title)
        axes.grid(axis="y", alpha=0.3)
    if len(scores) > 1:
        handles = [axes.plot([], [], "s", color=tuple(c / 255), label=mathtext(name))[0]
                   for name, c in zip(scores, colours(len(scores)), strict=True)]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=len(scores), frameon=False)
    meaning = "dot: a case; box: middle half of the cases; line: median; whiskers: at most 1.5 box lengths"
    figure.suptitle(f"{meaning}{note}", fontsize=8)
    _save(figure, path)


def _drawn(table: pandas.DataFrame, column: str, most: int, which: str) -> tuple[list[str], str]:
    """Return the labels with the lowest means of a column, in the table's order, and a note if some are left out."""
    labels = list(dict.fromkeys(table["label"]))
    if len(labels) <= most:
        return labels, ""
    ranked = table.groupby("label")[column].mean().sort_values(kind="stable")
    chosen = set(ranked.index[:most])
    return [label for label in labels if label in chosen], f"\n{most} of {len(labels)} labels, those {which}"


def _boxes(axes: Axes, values: Sequence[np.ndarray], places: np.ndarray, colour: np.ndarray) -> None:
    drawn = axes.boxplot(
        list(values), positions=places, widths=0.7, patch_artist=True, showfliers=False, manage_ticks=False
    )
    for box in drawn["boxes"]:
        box.set(facecolor=(*colour, 0.35), edgecolor=tuple(colour))
    for line in drawn["medians"]:
        line.set(color="black")
    spread = np.random.default_rng(0)
    x = np.concatenate(
        [place + spread.uniform(-0.2, 0.2, len(each)) for place, each in zip(places, values, strict=True)]
    )
    axes.plot(x, np.concatenate(list(values)), ".", markersize=3, color=tuple(colour))


def bland_altman(scores: pandas.DataFrame, path: Path) -> None:
    """Draw Bland-Altman plots into a PNG: predicted minus true volume over the mean of both, one plot for each label.

    Lines mark the mean difference and 1.96 standard deviations on both sides. At most 16 labels are drawn, those with
    the largest mean absolute difference in proportion to their volume; the picture says so. Without volumes nothing is
    written.

    Args:
        scores: columns label, volume_ml and true_volume_ml (millilitres).
        path: the file to write, atomically.
    """
    scores = scores.dropna(subset=["true_volume_ml", "volume_ml"])  # nothing is known of labels that are not annotated
    if scores.empty:
        return
    true, predicted = scores["true_volume_ml"], scores["volume_ml"]
    relative = (predicted - true).abs() / (predicted + true).clip(lower=1e-12)
    labels, note = _drawn(scores.assign(agreement=-relative), "agreement", _MOST_BLAND_ALTMAN, "that differ most")
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    figure = new_figure(max(3.2 * columns, 6.0), 2.7 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, label in zip(grid, labels, strict=False):
        table = scores[scores["label"] == label]
        first, second = table["volume_ml"].to_numpy(), table["true_volume_ml"].to_numpy()
        difference = first - second
        axes.plot((first + second) / 2, difference, ".", color="tab:blue")
        bias, spread = difference.mean(), difference.std(ddof=1) if len(difference) > 1 else 0.0
        for height, style in ((bias, "-"), (bias - 1.96 * spread, "--"), (bias + 1.96 * spread, "--")):
            axes.axhline(height, linestyle=style, color="black", linewidth=0.8)
        axes.axhline(0.0, linestyle=":", color="tab:gray", linewidth=0.8)
        axes.set_title(f"{mathtext(label)}: {bias:+.2f} ± {1.96 * spread:.2f} ml", fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in grid[len(labels) :]:
        axes.set_visible(False)
    meaning = "dot: a case; solid: mean difference; dashed: 1.96 standard deviations around it; dotted: no difference"
    figure.suptitle(f"{meaning}{note}", fontsize=8)
    figure.supxlabel("mean of predicted and true volume (ml)", fontsize=8)
    figure.supylabel("predicted - true (ml)", fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
