"""Pictures of a case: image, truth, prediction and errors, in the slices with the largest area of truth.

What only pictures with scores need is loaded there, because predictions are drawn without.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from umamba.evaluation.rules import Rules
from umamba.io import Image, atomic_path
from umamba.io.escape import mathtext
from umamba.labels import LabelSet
from umamba.labels.instance_maps import grouped_instances
from umamba.labels.masks import mask_of
from umamba.labels.painting import draw_plane, label_legend, new_figure, paint_instances, paint_labels, scaling
from umamba.labels.view import View, largest_slice, letters_of, plane_size, planes_shown

if TYPE_CHECKING:
    import pandas

_COLUMN_INCHES = 3.2
_OPAQUE = 6  # wrong voxels on a line of sight that are drawn nearly opaque
# Vermilion, blue and yellow of Okabe and Ito (2008), which colour-blind readers tell apart.
_ERRORS = {"false": (213, 94, 0), "missed": (0, 114, 178), "another label": (240, 228, 66)}


def overlay_figure(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    spacing: Sequence[float],
    labels: LabelSet,
    *,
    letters: Sequence[str] | None = None,
    title: str = "",
    score: str = "",
    window: tuple[float, float] | None = None,
    instances: bool = False,
) -> Figure:
    """Draw the columns image, truth, prediction and errors; without truth, image and prediction.

    The rows are the axial, coronal and sagittal slices with the largest area of truth (of prediction if there is no
    truth), in their physical proportions and in radiological convention; an image with one slice has one row. The
    errors are those of all slices, seen through the volume, so that a false positive far from the drawn slice is
    visible too.

    Args:
        image: (C, Z, Y, X); three channels of 8-bit integers are drawn in colour, otherwise the first channel in grey.
        truth: integers (Z, Y, X), or None.
        prediction: integers (Z, Y, X).
        spacing: (Z, Y, X) in mm.
        labels: names and values of the labels, which also determine the colours.
        letters: direction in which each axis (Z, Y, X) grows, such as ("S", "P", "L") (`labels.view.letters_of`); None:
            not known, or a photograph, which is drawn as it is stored.
        title: name of the case, written above the picture with the window.
        score: text beside "prediction", such as "mean DSC 0.912".
        window: grey values that are drawn black and white; None: chosen by `labels.painting.scaled`.
        instances: whether truth and prediction hold the numbers of instances (cells) instead of labels.

    Returns:
        The figure, which `write_overlay` writes.
    """
    view = View.of(letters)
    image, prediction = view.turn(np.asarray(image)), view.turn(np.asarray(prediction))
    truth = None if truth is None else view.turn(np.asarray(truth))
    spacing = view.turn_axes(spacing)
    if truth is not None and labels.ignore is not None:
        prediction = np.where(truth == labels.ignore, 0, prediction)  # what is not annotated is no error
    found = _segmented(prediction, labels, instances)
    wanted = found if truth is None else _segmented(truth, labels, instances)
    guide = wanted if wanted.any() else found
    scale, shown_window = scaling(image, window, guide)
    rows = planes_shown(prediction.shape)
    columns = {"image": None, "truth": truth, "prediction": prediction}
    if truth is None:
        del columns["truth"]

    sizes = [plane_size(prediction.shape, spacing, axis) for axis in rows]
    heights = [height / width for height, width in sizes]
    count = len(columns) + (truth is not None)
    figure = new_figure(count * _COLUMN_INCHES, _COLUMN_INCHES * sum(heights) + 1.2)
    grid = figure.subplots(len(rows), count, squeeze=False, height_ratios=heights)
    drawn: set[int] = set()
    counts: dict[str, int] = {}
    for line, axis, size in zip(grid, rows, sizes, strict=True):
        index = largest_slice(guide, axis)
        across = (slice(None),) * axis + (index,)  # np.take would first copy a volume that is turned
        plane = scale(image[:, *across])
        for cell, (name, segmentation) in zip(line, columns.items(), strict=False):
            draw_plane(cell, plane, size, view.edges(axis))
            if segmentation is None:
                continue
            if instances:
                counts[name] = paint_instances(cell, segmentation[across], size)
            else:
                drawn |= paint_labels(cell, segmentation[across], size, labels)
        if truth is not None:
            draw_plane(line[-1], plane * 0.6, size, view.edges(axis))
            _paint_errors(line[-1], found, wanted, None if instances else prediction != truth, axis, size)
        number = view.stored_index(axis, index, prediction.shape[axis])
        line[0].set_ylabel(f"{view.name(axis)} {number}" if prediction.shape[axis] > 1 else "", fontsize=8)
    for cell, name in zip(grid[0], [*columns, "errors"], strict=False):
        text = f"{name}, {counts[name]} instances" if name in counts else name
        if name == "prediction" and score:
            text += f", {score}"
        if name == "errors" and prediction.shape[rows[0]] > 1:
            text += " in all slices"
        cell.set_title(mathtext(text), fontsize=9)
    figure.suptitle(mathtext(f"{title}: {shown_window}" if title else shown_window), fontsize=9)
    errors = [Patch(facecolor=_unit(colour), label=name) for name, colour in _ERRORS.items()]
    label_legend(figure, labels, drawn, errors[: 2 if instances else 3] if truth is not None else ())
    return figure


def case_figure(
    image: Image, truth: np.ndarray, prediction: np.ndarray, rules: Rules, scores: "pandas.DataFrame", case: str
) -> Figure:
    """Draw a scored case, see `overlay_figure`.

    Args:
        image: the image.
        truth: integers (Z, Y, X); the numbers of the cells if these are scored.
        prediction: integers (Z, Y, X), labels.
        rules: by which it was scored.
        scores: columns case, label and metrics.
        case: name of the case.
    """
    if rules.of_cells:
        prediction = grouped_instances(prediction, rules.labels, rules.grouping)
    return overlay_figure(
        image.array,
        truth,
        prediction,
        image.geometry.spacing,
        rules.labels,
        letters=letters_of(image.geometry),
        title=case,
        score=case_score(scores, case),
        instances=rules.of_cells,
    )


def case_score(scores: "pandas.DataFrame", case: str) -> str:
    """Return the score that ranks cases, in words: the mean over labels of the table's first metric.

    Args:
        scores: columns case, label and metrics.
        case: name of the case.

    >>> import pandas
    >>> case_score(pandas.DataFrame({"case": ["a", "a"], "label": ["x", "y"], "dsc": [0.8, 0.9]}), "a")
    'mean DSC 0.850'
    """
    from umamba.evaluation.score import TITLES, metrics_of

    metric = metrics_of(scores)[0]
    values = scores.loc[scores["case"] == case, metric]
    return f"{'mean ' if len(values) > 1 else ''}{TITLES[metric]} {values.mean():.3f}"


def write_overlay(figure: Figure, path: Path) -> None:
    """Write a figure into a PNG file, atomically.

    Args:
        figure: the figure.
        path: the file, ending in .png.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _segmented(segmentation: np.ndarray, labels: LabelSet, instances: bool) -> np.ndarray:
    if instances:
        return segmentation != 0
    return mask_of(segmentation, sorted({value for values in labels.values for value in values}))


def _paint_errors(
    axes: Axes, found: np.ndarray, wanted: np.ndarray, unequal: np.ndarray | None, axis: int, size: tuple[float, float]
) -> None:
    """Paint where, in any slice along the axis, foreground is missed, false or of another label."""
    height, width = size
    kinds = {"another label": None if unequal is None else found & wanted & unequal}
    kinds |= {"missed": wanted & ~found, "false": found & ~wanted}  # the last is painted above the others
    for name, mask in kinds.items():
        if mask is None:
            continue
        depth = mask.sum(axis=axis)
        layer = np.zeros((*depth.shape, 4))
        layer[..., :3] = _unit(_ERRORS[name])
        # One wrong voxel on the line of sight is usual at borders; many are a region that is wrong.
        layer[..., 3] = (
            np.where(depth > 0, np.clip(depth / _OPAQUE, 0.2, 0.85), 0) if mask.shape[axis] > 1 else 0.8 * depth
        )
        axes.imshow(layer, extent=(0, width, height, 0), interpolation="nearest")


def _unit(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = (channel / 255 for channel in colour)
    return red, green, blue
