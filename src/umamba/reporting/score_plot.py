"""The plot of scores over cases as SVG: a box for each method, and a point for each case, which links to its rows.

Positions along the axis are percentages, so that the plot is as wide as the screen while its text keeps its size.
"""

from collections.abc import Mapping

import numpy as np
import pandas
from matplotlib.ticker import MaxNLocator

from umamba.io.escape import html
from umamba.reporting.names import method_name, metric_name
from umamba.reporting.results import Results

_LANE = 58  # pixels from one method to the next
_TITLE, _MIDDLE, _HALF = 16, 38, 11  # pixels within a lane: the name's baseline, the box's middle, half of its height
_AXIS = 26
_RADIUS = 4.5
_MOST_POINTS = 250  # of a method
_TURN = 0.6180339887  # golden ratio: successive points get heights that differ


def score_plot(results: Results, dataset: str, metric: str, links: Mapping[str, str]) -> str:
    """Return the plot of each case's mean over labels.

    Args:
        results: the results of the study.
        dataset: the benchmark.
        metric: name of the score.
        links: case -> id of its rows.

    Returns:
        HTML; empty if nothing is measured.
    """
    rows = results.scores[(results.scores["dataset"] == dataset) & (results.scores["metric"] == metric)]
    means = rows.groupby(["method", "seed", "fold", "case"], sort=False)["value"].mean()
    methods = [method for method in results.methods(dataset) if method in set(means.index.get_level_values("method"))]
    if not methods:
        return ""
    ticks = MaxNLocator(nbins=5).tick_values(float(means.min()), float(means.max()))
    low, high = float(ticks[0]), float(ticks[-1])
    decimals = max(len(f"{tick:.6g}".partition(".")[2]) for tick in ticks)
    height = _LANE * len(methods) + _AXIS
    parts = []
    for tick in ticks:
        x = _percent(tick, low, high)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TITLE + 6}" y2="{height - _AXIS}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{height - 8}">{tick:.{decimals}f}</text>')
    for lane, method in enumerate(methods):
        parts.append(_lane(means.xs(method, level="method"), method, lane * _LANE, (low, high), links))
    most = max(len(means.xs(method, level="method")) for method in methods)
    some = f" {_MOST_POINTS} of {most} are drawn, at even ranks." if most > _MOST_POINTS else ""
    name = metric_name(metric)
    return (
        f'<figure><div class="plot"><svg height="{height}" role="group" aria-label="{name} of each case, by method">'
        f"{''.join(parts)}</svg></div><figcaption>{name} of each case and training, mean over labels.{some} Box: "
        "quartiles; line: median; diamond: mean; whiskers: the last values within 1.5 times the box's width. "
        '<span class="needs-script">Click a point to see its case; with the keyboard, the arrow keys and Enter.</span>'
        "</figcaption></figure>"
    )


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * (value - low) / (high - low):.2f}%"


def _lane(scores: pandas.Series, method: str, top: int, ends: tuple[float, float], links: Mapping[str, str]) -> str:
    values = scores.to_numpy()
    middle = top + _MIDDLE
    parts = [f'<g class="lane"><text x="0" y="{top + _TITLE}">{html(method_name(method))}</text>']
    parts.append(_box(values, middle, ends))
    ranked = scores.iloc[np.argsort(values, kind="stable")]
    chosen = np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), _MOST_POINTS)).round().astype(int))
    for number, position in enumerate(chosen):
        seed, fold, case = ranked.index[position]
        value = float(ranked.iloc[position])
        y = middle + (number * _TURN % 1 - 0.5) * 2 * _HALF
        words = f"{case}, {method_name(method)}, fold {fold}, seed {seed}: {value:.4f}"
        parts.append(
            f'<a class="point" tabindex="-1" href="#{links[case]}" aria-label="{html(words)}">'
            f'<circle cx="{_percent(value, *ends)}" cy="{y:.1f}" r="{_RADIUS}"/><title>{html(words)}</title></a>'
        )
    return "".join([*parts, "</g>"])


def _box(values: np.ndarray, middle: int, ends: tuple[float, float]) -> str:
    """Return a Tukey box plot: quartiles, median, whiskers, and a diamond at the mean."""
    first, median, third = np.quantile(values, (0.25, 0.5, 0.75))
    reach = 1.5 * (third - first)
    whiskers = (values[values >= first - reach].min(), values[values <= third + reach].max())
    left, right, centre, *tips = (_percent(float(value), *ends) for value in (first, third, median, *whiskers))
    width = f"{100 * (third - first) / (ends[1] - ends[0]):.2f}%"
    lines: list[tuple[str, str, float, float]] = [(tips[0], left, middle, middle), (right, tips[1], middle, middle)]
    lines.append((centre, centre, middle - _HALF, middle + _HALF))
    lines += [(x, x, middle - _HALF / 2, middle + _HALF / 2) for x in tips]
    drawn = "".join(f'<line x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>' for x1, x2, y1, y2 in lines)
    return (
        f'<g class="box"><rect x="{left}" y="{middle - _HALF}" width="{width}" height="{2 * _HALF}"/>{drawn}'
        f'<svg x="{_percent(float(values.mean()), *ends)}" y="{middle}" overflow="visible">'
        '<path d="M-5 0 0-6 5 0 0 6Z"/></svg></g>'
    )
