"""Connected parts in which a label map and a segmentation differ: objects that are missing, invented or mistaken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from umamba.evaluation.overlap import grown_box

THIN = 1.5  # voxels; a difference of this depth is a border that was drawn one or two voxels elsewhere
_SHEET = 2  # voxels; a label of this typical depth is the outline of an object and no object
_PARTS = 20  # parts kept of a case
_MOST_RATIO = 1.0  # a part deeper than a typical object says no more


@dataclass(frozen=True)
class Part:
    """A connected part in which label map and segmentation differ.

    Attributes:
        given: its value in the label map; most frequent one if there are several.
        predicted: its value in the segmentation.
        whole: whether it is most of an object, so that the object is missing or invented and not only its border drawn
            elsewhere.
        voxels: its size.
        depth: radius of the largest ball in it, relative to that of a typical object of its label in this case.
        margin: how much more the networks favour `predicted` than `given`, 0 to 1, mean over the voxels.
        centre_zyx: the voxel deepest in it.
        box_zyx: first and last index along each axis.
    """

    given: int
    predicted: int
    whole: bool
    voxels: int
    depth: float
    margin: float
    centre_zyx: tuple[int, int, int]
    box_zyx: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

    @property
    def size(self) -> float:
        """How much the part counts: the square of relative depth times margin.

        Squared, because networks are often a little wrong, and seldom wrong by an object of which they are sure.
        """
        return (min(self.depth, _MOST_RATIO) * self.margin) ** 2


def depth_of(mask: np.ndarray) -> np.ndarray:
    """Return the distance of each voxel of a mask to its outside; what lies beyond the array is outside.

    Args:
        mask: booleans of any shape.
    """
    inner = (slice(1, -1),) * mask.ndim
    depth: np.ndarray = ndimage.distance_transform_edt(np.pad(mask, 1))[inner]
    return depth


def _connected(mask: np.ndarray) -> tuple[np.ndarray, int]:
    numbered, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    return numbered, int(count)


def _typical_depth(masks: Sequence[np.ndarray]) -> float:
    """Return the median depth of the objects in some masks, without specks; 0 if there are none."""
    depths: list[float] = []
    for whole in masks:
        boxes = ndimage.find_objects(whole.view(np.uint8))
        if not boxes:
            continue
        mask = whole[boxes[0]]
        numbered, count = _connected(mask)
        depths += np.atleast_1d(ndimage.maximum(depth_of(mask), numbered, np.arange(1, count + 1))).tolist()
    return float(np.median([depth for depth in depths if depth > THIN] or depths or [0.0]))


def _object_depth(given: np.ndarray, predicted: np.ndarray, value: int) -> float:
    """Return the depth of an ordinary object of a label; of an outline, such as a cell's, that of what it encloses."""
    own = _typical_depth([given == value, predicted == value])
    return own if own > _SHEET else max(own, _typical_depth([given > 0, predicted > 0]))


def differing_parts(
    given: np.ndarray,
    predicted: np.ndarray,
    weight: np.ndarray | None,
    index: Callable[[Sequence[int]], tuple[int, int, int]],
) -> list[Part]:
    """Return the largest differing parts: given as background, predicted as background, and each pair of labels.

    Args:
        given: the label map, integers.
        predicted: the segmentation, integers of the same shape.
        weight: how much more the networks favour `predicted` than `given`, of the same shape; None: 1 everywhere.
        index: returns a voxel of these maps as the voxel (z, y, x) of the image.
    """
    confused = (given > 0) & (predicted > 0) & (given != predicted)
    pairs = np.unique(np.stack([given[confused], predicted[confused]]), axis=1).T.tolist()
    regions = [((given == 0) & (predicted > 0), predicted), ((given > 0) & (predicted == 0), given)]
    found: list[Part] = []
    typical: dict[int, float] = {}
    for region, owner in [*regions, *(((given == a) & (predicted == b), given) for a, b in pairs)]:
        boxes = ndimage.find_objects(region.view(np.uint8))
        if not boxes:
            continue
        box = boxes[0]
        depth = depth_of(region[box])
        numbered, count = _connected(region[box])
        numbers = np.arange(1, count + 1)
        deepest = np.atleast_1d(ndimage.maximum(depth, numbered, numbers))
        inside = ndimage.find_objects(numbered)
        for number in numbers[deepest > THIN]:
            own = tuple(
                slice(whole.start + part.start, whole.start + part.stop)
                for whole, part in zip(box, inside[number - 1], strict=True)
            )
            mask = numbered[inside[number - 1]] == number
            value = _most_frequent(owner[own][mask])
            if value not in typical:
                typical[value] = _object_depth(given, predicted, value)
            place = np.unravel_index(np.where(mask, depth[inside[number - 1]], 0).argmax(), mask.shape)
            first, last = ([getattr(part, side) for part in own] for side in ("start", "stop"))
            corners = index(first), index([stop - 1 for stop in last])
            found.append(
                Part(
                    _most_frequent(given[own][mask]),
                    _most_frequent(predicted[own][mask]),
                    _is_whole(owner, own, mask, value),
                    int(np.count_nonzero(mask)),
                    float(deepest[number - 1]) / max(typical[value], 1.0),
                    1.0 if weight is None else float(weight[own][mask].mean()),
                    index([start + int(step) for start, step in zip(first, place, strict=True)]),
                    tuple(zip(*corners, strict=True)),  # type: ignore[arg-type]
                )
            )
    return sorted(found, key=lambda part: -part.size)[:_PARTS]


def _most_frequent(values: np.ndarray) -> int:
    kinds, counts = np.unique(values, return_counts=True)
    return int(kinds[counts.argmax()])


def _is_whole(owner: np.ndarray, box: tuple[slice, ...], mask: np.ndarray, value: int) -> bool:
    """Return whether a part is most of the object of its label that it belongs to."""
    around = grown_box(box, owner.shape, 2 * max(part.stop - part.start for part in box))
    numbered, _ = _connected(owner[around] == value)
    moved = tuple(
        slice(part.start - outer.start, part.stop - outer.start) for part, outer in zip(box, around, strict=True)
    )
    objects = numbered[moved][mask]
    objects = objects[objects > 0]
    if not objects.size:
        return False
    number = _most_frequent(objects)
    return bool(2 * np.count_nonzero(objects == number) > np.count_nonzero(numbered == number))
