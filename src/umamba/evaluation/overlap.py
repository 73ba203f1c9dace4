"""Dice similarity coefficient (DSC), and the bounding boxes of labels.

A label that is in neither map has no score (NaN) and does not enter means, as in nnU-Net's evaluation.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

BoundingBox = tuple[slice, ...]  # one slice for each axis


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice similarity coefficient, 2 |A and B| / (|A| + |B|).

    Args:
        prediction: boolean mask.
        truth: boolean mask of the same shape.

    Returns:
        The score from 0 to 1; NaN if both masks are empty.

    >>> print(dice(np.array([True, True, True, False]), np.array([True, False, False, False])))
    0.5
    """
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2.0 * np.count_nonzero(prediction & truth) / total if total else float("nan")


def label_boxes(*maps: np.ndarray) -> dict[int, BoundingBox]:
    """Return the bounding box of each label, which contains the label's voxels in all maps.

    One pass over each map finds all labels, so that scores read only the voxels in the boxes.

    Args:
        maps: integer maps of one shape; values above 0 are labels.

    >>> label_boxes(np.array([0, 1, 1]), np.array([1, 0, 2]))
    {1: (slice(0, 3, None),), 2: (slice(2, 3, None),)}
    """
    boxes: dict[int, BoundingBox] = {}
    for each in maps:
        for value, box in enumerate(ndimage.find_objects(each), start=1):
            if box is not None:
                boxes[value] = common_box([box, boxes[value]]) if value in boxes else box
    return boxes


def common_box(boxes: list[BoundingBox]) -> BoundingBox:
    """Return the smallest box that contains all boxes."""
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def grown_box(box: Sequence[slice], shape: Sequence[int], by: int) -> BoundingBox:
    """Return a box with a margin, within the array.

    Args:
        box: the box.
        shape: of the array.
        by: the margin in voxels.

    >>> grown_box((slice(2, 4), slice(5, 6)), (9, 6), 3)
    (slice(0, 7, None), slice(2, 6, None))
    """
    return tuple(
        slice(max(0, part.start - by), min(length, part.stop + by)) for part, length in zip(box, shape, strict=True)
    )
