"""Dice similarity coefficient (DSC), and where the labels of two maps are.

A label that is in neither map has no score (NaN) and is left out of means, as in nnU-Net's evaluation.
"""

import numpy as np
from scipy import ndimage

Box = tuple[slice, ...]


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the DSC of two boolean masks of one shape; NaN if both are empty."""
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2.0 * np.count_nonzero(prediction & truth) / total if total else float("nan")


def label_boxes(*maps: np.ndarray) -> dict[int, Box]:
    """Return for each value above 0 of integer maps of one shape the box that holds it in all of them.

    Each map is gone through once, however many labels there are; scores then need to look into the boxes only.
    """
    boxes: dict[int, Box] = {}
    for each in maps:
        for value, box in enumerate(ndimage.find_objects(each), start=1):
            if box is not None:
                boxes[value] = common_box([box, boxes[value]]) if value in boxes else box
    return boxes


def common_box(boxes: list[Box]) -> Box:
    """Return the smallest box around boxes."""
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
