"""Draw planes of images and label maps with Matplotlib: grey values, areas and outlines of labels, legends."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from umamba.io.escape import mathtext
from umamba.labels.colours import PALETTE_SIZE, colours
from umamba.labels.label_set import LabelSet
from umamba.labels.masks import outer_percentiles

_AREA = 0.35  # opacity of an area
_MAX_OUTLINES = 60  # labels of a plane drawn with outline and number; further ones are areas only
_MAX_LEGEND = 36  # labels named in a legend
_DPI = 110
_SAMPLE = 4_000_000  # voxels, from which the window of a larger volume is found
_FEWEST = 1_000  # voxels of a sample that stand for a structure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that needs no display.

    Args:
        width: in inches.
        height: in inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def scaled(
    image: np.ndarray, window: tuple[float, float] | None = None, segmented: np.ndarray | None = None
) -> tuple[np.ndarray, str]:
    """Scale intensities for drawing.

    Three channels of 8-bit integers are a photograph: it is drawn as it is, or stretched if it is dark or pale, that
    is, if 99 % of its values fill less than half of the range. Of other images the first channel is drawn in grey.

    Args:
        image: (C, ...).
        window: grey values that are drawn black and white; None: the range of the segmented voxels, extended by half of
            it on both sides, within the 0.5th and 99.5th percentile of the image.
        segmented: boolean (...), the voxels of interest; None: none.

    Returns:
        Values from 0 to 1, (..., 3) for a photograph and (...) otherwise, and the window in words.
    """
    scale, words = scaling(image, window, segmented)
    return scale(image), words


def scaling(
    image: np.ndarray, window: tuple[float, float] | None = None, segmented: np.ndarray | None = None
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Return how intensities are scaled for drawing, so that a few slices of a volume can be scaled alone.

    Args:
        image: (C, ...), see `scaled`.
        window: see `scaled`.
        segmented: see `scaled`.

    Returns:
        The function that scales the image or a part of it (C, ...), and the window in words.
    """
    if image.shape[0] == 3 and image.dtype == np.uint8:
        low, high = outer_percentiles(image)
        if high - low >= 127.5 or high <= low:
            return lambda part: np.moveaxis(part, 0, -1) / 255.0, "colours as stored"
        words = f"colours stretched from {low:.0f} to {high:.0f}"
        return lambda part: np.clip((np.moveaxis(part, 0, -1) - low) / (high - low), 0.0, 1.0), words
    low, high = window if window is not None else _window_of(image[0], segmented)
    width = max(high - low, 1e-8)
    words = f"grey values {low:.4g} to {high:.4g}"
    return lambda part: np.clip((part[0].astype(np.float32) - low) / width, 0.0, 1.0), words


def _window_of(grey: np.ndarray, segmented: np.ndarray | None) -> tuple[float, float]:
    step = 1 + int(np.cbrt(grey.size / _SAMPLE))
    sample = (slice(None, None, step),) * grey.ndim
    low, high = outer_percentiles(grey[sample])
    if segmented is None or not segmented.any():
        return low, high
    inside = grey[sample][segmented[sample]]
    darkest, brightest = outer_percentiles(inside if inside.size >= _FEWEST else grey[segmented])
    margin = (brightest - darkest) / 2
    low, high = max(low, darkest - margin), min(high, brightest + margin)
    return (low, high) if high > low else (darkest - 1.0, brightest + 1.0)


def draw_plane(
    axes: Axes, plane: np.ndarray, size: tuple[float, float], edges: Sequence[str] = ("",) * 4, letters_pt: float = 7
) -> None:
    """Draw a plane in its physical proportions, with letters at its edges.

    Args:
        axes: where to draw.
        plane: values from 0 to 1, (rows, columns) or (rows, columns, 3).
        size: height and width in mm.
        edges: letters at the left, right, top and bottom edge.
        letters_pt: size of the letters in points.
    """
    height, width = size
    axes.imshow(plane, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    sides = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"))
    places = (*sides, (0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))
    for letter, (x, y, horizontal, vertical) in zip(edges, places, strict=True):
        if letter:
            _write(axes, x, y, letter, letters_pt, ha=horizontal, va=vertical, transform=axes.transAxes)


def _write(axes: Axes, x: float, y: float, text: str, size_pt: float = 7, **options: object) -> None:
    outline = [withStroke(linewidth=1.5, foreground="black")]
    axes.text(x, y, text, fontsize=size_pt, color="white", path_effects=outline, **options)  # type: ignore[arg-type]


def paint_labels(axes: Axes, plane: np.ndarray, size: tuple[float, float], labels: LabelSet) -> set[int]:
    """Draw each label of a plane as a translucent area and an outline, in the order of the label set.

    If the set has more labels than there are different colours, each area also carries its label's number.

    Args:
        axes: where to draw.
        plane: integers (rows, columns).
        size: height and width in mm.
        labels: values and names of the labels.

    Returns:
        The positions in the label set of the labels that were drawn.
    """
    here = set(np.unique(plane).tolist())
    drawn = [number for number, values in enumerate(labels.values) if not here.isdisjoint(values)]
    palette = colours(len(labels.names)) / 255.0
    layer = np.zeros((*plane.shape, 4))
    for count, number in enumerate(drawn):
        mask = np.isin(plane, labels.values[number])
        _cover(layer, mask, palette[number])
        if count < _MAX_OUTLINES:
            _outline(axes, mask, size, palette[number])
        if len(labels.names) > PALETTE_SIZE and count < _MAX_OUTLINES:
            inside = np.argwhere(mask)
            row, column = inside[len(inside) // 2]
            _at_pixel(axes, plane.shape, size, row, column, str(number + 1))
    height, width = size
    axes.imshow(layer, extent=(0, width, height, 0), interpolation="nearest")
    return set(drawn)


def paint_instances(axes: Axes, plane: np.ndarray, size: tuple[float, float]) -> int:
    """Draw numbered instances, neighbours of successive numbers in different colours.

    Args:
        axes: where to draw.
        plane: numbers of the instances (rows, columns); 0 is background.
        size: height and width in mm.

    Returns:
        The number of instances in the plane.
    """
    numbers, position = np.unique(plane, return_inverse=True)
    table = np.concatenate([colours(PALETTE_SIZE) / 255.0, np.full((PALETTE_SIZE, 1), _AREA)], axis=1)
    cover = table[(numbers.astype(np.int64) - 1) % PALETTE_SIZE]
    cover[numbers == 0] = 0.0
    height, width = size
    layer = cover[position.reshape(plane.shape)]
    edges = np.zeros(plane.shape, dtype=bool)  # pixels whose right or lower neighbour belongs to another instance
    edges[:-1] |= plane[:-1] != plane[1:]
    edges[:, :-1] |= plane[:, :-1] != plane[:, 1:]
    layer[edges & (plane != 0), 3] = 1.0
    axes.imshow(layer, extent=(0, width, height, 0), interpolation="nearest")
    return int(np.count_nonzero(numbers))


def _cover(layer: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Lay a translucent colour over what is already painted on an RGBA layer."""
    below = layer[mask]
    alpha = _AREA + below[:, 3:] * (1 - _AREA)
    layer[mask, :3] = (colour * _AREA + below[:, :3] * below[:, 3:] * (1 - _AREA)) / alpha
    layer[mask, 3:] = alpha


def _outline(axes: Axes, mask: np.ndarray, size: tuple[float, float], colour: np.ndarray) -> None:
    if min(mask.shape) < 2 or mask.all():
        return
    height, width = size
    rows, columns = mask.shape
    x, y = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows
    axes.contour(x, y, mask, levels=[0.5], colors=[tuple(colour)], linewidths=0.9)


def _at_pixel(axes: Axes, shape: Sequence[int], size: tuple[float, float], row: int, column: int, text: str) -> None:
    height, width = size
    x, y = (column + 0.5) * width / shape[1], (row + 0.5) * height / shape[0]
    _write(axes, x, y, text, ha="center", va="center")


def label_legend(figure: Figure, labels: LabelSet, drawn: Iterable[int], further: Sequence[Patch] = ()) -> None:
    """Write a legend of the labels that were drawn below a figure.

    Args:
        figure: the figure.
        labels: names of the labels.
        drawn: positions in the label set.
        further: other entries, which come last.
    """
    numbered = len(labels.names) > PALETTE_SIZE
    palette = colours(len(labels.names)) / 255.0
    handles = [
        Patch(
            facecolor=tuple(palette[number]),
            label=mathtext(f"{number + 1} {labels.names[number]}" if numbered else labels.names[number]),
        )
        for number in sorted(drawn)
    ]
    if len(handles) > _MAX_LEGEND:
        handles[_MAX_LEGEND:] = [Patch(facecolor="none", label=f"and {len(handles) - _MAX_LEGEND} more")]
    handles += further
    if handles:
        columns = min(len(handles), 6)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
