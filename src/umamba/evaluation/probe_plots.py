"""Pictures of a probe: gradients of the network and of its layers, and the effect of hidden cubes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umamba.io import atomic_path
from umamba.io.escape import mathtext
from umamba.labels.painting import new_figure

_DECADES = 6  # gradients below this many powers of ten of the largest one are drawn as zero


def plot_gradients(
    maps: Mapping[str, np.ndarray], radii: Mapping[str, Sequence[float]], path: Path, reach: Sequence[int] | None
) -> None:
    """Draw absolute gradients into a PNG, a row for each map and a column for each plane through its centre.

    Args:
        maps: name -> (*S).
        radii: name -> radii in voxels of the map, drawn as circles.
        path: the file, written atomically.
        reach: of the convolutions, in voxels along each axis, drawn as a box; None: no box.
    """
    columns = max(1 if each.ndim == 2 else 3 for each in maps.values())
    figure = new_figure(3.2 * columns + 0.4, 3.1 * len(maps) + 0.3)
    grid = figure.subplots(len(maps), columns, squeeze=False)
    for row, (name, values) in zip(grid, maps.items(), strict=True):
        dim = values.ndim
        planes = [(0, 1)] if dim == 2 else [(1, 2), (0, 2), (0, 1)]
        for axes, shown in zip(row, planes, strict=True):
            index = tuple(slice(None) if k in shown else n // 2 for k, n in enumerate(values.shape))
            box = None if reach is None else [reach[k] for k in shown]
            _plane(axes, values[index], float(values.max()), radii[name], box)
            axes.set_xlabel("zyx"[3 - dim :][shown[1]], fontsize=7)
            axes.set_ylabel("zyx"[3 - dim :][shown[0]], fontsize=7)
        row[0].set_title(mathtext(name), fontsize=8, loc="left")
    box_said = "" if reach is None else "; box: reach of the convolutions"
    figure.suptitle(f"absolute gradient, log10 of the largest; circles hold 50, 90, 99 %{box_said}", fontsize=8)
    _save(figure, path)


def _plane(axes: Axes, plane: np.ndarray, largest: float, radii: Sequence[float], reach: Sequence[int] | None) -> None:
    shown = np.log10(np.maximum(plane / max(largest, 1e-300), 10.0**-_DECADES))
    picture = axes.imshow(shown, cmap="magma", vmin=-_DECADES, vmax=0, interpolation="nearest", aspect="auto")
    axes.figure.colorbar(picture, ax=axes, fraction=0.05)
    row, column = (n // 2 for n in plane.shape)
    angle = np.linspace(0, 2 * np.pi, 200)
    for radius, style in zip(radii, ("-", "--", ":"), strict=True):
        axes.plot(column + radius * np.cos(angle), row + radius * np.sin(angle), style, color="white", linewidth=0.8)
    if reach is not None:
        low, left = row - reach[0] - 0.5, column - reach[1] - 0.5
        high, right = row + reach[0] + 0.5, column + reach[1] + 0.5
        axes.plot([left, right, right, left, left], [low, low, high, high, low], color="cyan", linewidth=0.8)
    axes.set_xlim(-0.5, plane.shape[1] - 0.5)
    axes.set_ylim(plane.shape[0] - 0.5, -0.5)
    axes.tick_params(labelsize=6)


def plot_hidden(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Draw the change of the output over the distance of a hidden cube into a PNG.

    Args:
        curves: name -> pairs of distance in mm and change in standard deviations of the output, in order of distance.
        path: the file, written atomically.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot([distance for distance, _ in curve], [change for _, change in curve], ".-", label=mathtext(name))
    axes.set_xlabel("distance of the hidden cube from the centre (mm)")
    axes.set_ylabel("change at the centre\n(standard deviations of the output)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
