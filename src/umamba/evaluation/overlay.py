"""Pictures of a case: image, truth and prediction side by side, in the slices with the largest area of truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from umamba.evaluation.overlap import dice
from umamba.io import atomic_path
from umamba.labels import LabelSet, colours

_PLANES = ("axial", "coronal", "sagittal")
_ALPHA = 0.35
_COLUMN_INCHES = 3.2


def overlay_figure(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    labels: LabelSet,
    path: Path,
    window: tuple[float, float] | None = None,
) -> None:
    """Draw the columns image, truth and prediction into a PNG file, written atomically.

    The rows are the axial, coronal and sagittal slices with the largest area of truth (of prediction if the truth is
    empty), in their physical proportions; an image with one slice has one row. Coronal and sagittal slices are drawn
    with the last axial slice on top, which is the head if the image is stored from foot to head.

    Args:
        image: (C, Z, Y, X); three channels of 8-bit integers are drawn in colour, otherwise the first channel in grey.
        truth: integers (Z, Y, X).
        prediction: integers (Z, Y, X).
        spacing: (Z, Y, X) in mm.
        labels: names and values of the labels, which also determine the colours.
        path: the file to write, ending in .png.
        window: grey values that are drawn black and white; None: the range of the segmented voxels, extended by half of
            it on both sides, within the 0.5th and 99.5th percentile of the image.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    axes_shown = (0,) if truth.shape[0] == 1 else (0, 1, 2)
    guide = truth if _foreground(truth, labels).any() else prediction
    picture = _to_display(np.asarray(image), window, _foreground(guide, labels))
    slices = [_largest_slice(_foreground(guide, labels), axis) for axis in axes_shown]

    sizes = [_physical_size(truth.shape, spacing, axis) for axis in axes_shown]
    heights = [height / width for height, width in sizes]
    figure = Figure(figsize=(3 * _COLUMN_INCHES, _COLUMN_INCHES * sum(heights) + 1.0), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(axes_shown), 3, squeeze=False, height_ratios=heights)
    for row, axis, index, size in zip(grid, axes_shown, slices, sizes, strict=True):
        plane = _PLANES[axis] if len(axes_shown) == 3 else "slice"
        for column, segmentation in zip(row, (None, truth, prediction), strict=True):
            _draw(column, _take(picture, axis, index), size)
            if segmentation is not None:
                _draw_labels(column, _take(segmentation, axis, index), size, labels)
        row[0].set_ylabel(f"{plane} {index}", fontsize=8)
    for column, title in zip(
        grid[0], ("image", "truth", f"prediction, {_score(prediction, truth, labels)}"), strict=True
    ):
        column.set_title(title, fontsize=9)
    handles = [
        Patch(facecolor=colour / 255, label=name)
        for name, colour in zip(labels.names, colours(len(labels.names)), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _to_display(image: np.ndarray, window: tuple[float, float] | None, segmented: np.ndarray) -> np.ndarray:
    """Return the image scaled to 0..1: (Z, Y, X, 3) for three channels of 8-bit integers, otherwise (Z, Y, X)."""
    if image.shape[0] == 3 and image.dtype == np.uint8:
        return np.moveaxis(image, 0, -1) / 255.0
    grey = image[0].astype(np.float32)
    low, high = window if window is not None else _window_of(grey, segmented)
    return np.clip((grey - low) / max(high - low, 1e-8), 0.0, 1.0)


def _window_of(grey: np.ndarray, segmented: np.ndarray) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(grey, (0.5, 99.5)))
    if not segmented.any():
        return low, high
    darkest, brightest = (float(value) for value in np.percentile(grey[segmented], (0.5, 99.5)))
    margin = (brightest - darkest) / 2
    return max(low, darkest - margin), min(high, brightest + margin)


def _foreground(segmentation: np.ndarray, labels: LabelSet) -> np.ndarray:
    return np.isin(segmentation, [value for values in labels.values for value in values])


def _largest_slice(mask: np.ndarray, axis: int) -> int:
    """Return the index of the slice with most voxels of a mask; the middle slice if the mask is empty."""
    areas = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    return int(areas.argmax()) if areas.any() else mask.shape[axis] // 2


def _take(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """Return one slice with its rows from top to bottom; in coronal and sagittal slices Z points upwards."""
    plane = np.take(volume, index, axis=axis)
    return plane if axis == 0 else plane[::-1]


def _physical_size(shape: Sequence[int], spacing: Sequence[float], axis: int) -> tuple[float, float]:
    height, width = (shape[other] * spacing[other] for other in range(3) if other != axis)
    return height, width


def _draw(axes: Axes, plane: np.ndarray, size: tuple[float, float]) -> None:
    height, width = size
    axes.imshow(plane, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_labels(axes: Axes, plane: np.ndarray, size: tuple[float, float], labels: LabelSet) -> None:
    """Draw each label as a translucent area and a contour, in the order of the label set."""
    height, width = size
    rows, columns = plane.shape
    x, y = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows
    for values, colour in zip(labels.values, colours(len(labels.names)) / 255.0, strict=True):
        mask = np.isin(plane, values)
        if not mask.any():
            continue
        layer = np.zeros((*mask.shape, 4))
        layer[mask] = (*colour, _ALPHA)
        axes.imshow(layer, extent=(0, width, height, 0), interpolation="nearest")
        if min(mask.shape) > 1 and not mask.all():
            axes.contour(x, y, mask, levels=[0.5], colors=[tuple(colour)], linewidths=0.9)


def _score(prediction: np.ndarray, truth: np.ndarray, labels: LabelSet) -> str:
    counted = truth != labels.ignore if labels.ignore is not None else np.ones_like(truth, dtype=bool)
    scores = [dice(np.isin(prediction, values) & counted, np.isin(truth, values) & counted) for values in labels.values]
    known = [score for score in scores if score == score]
    return f"mean DSC {np.mean(known):.3f}" if known else "no label present"
