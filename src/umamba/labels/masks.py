"""Masks of label maps and what is counted in them, plane by plane, so that large volumes need no wide copies."""

from collections.abc import Sequence

import numpy as np

from umamba.labels.label_set import LabelSet


def mask_of(segmentation: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return where a label map has one of some values.

    Args:
        segmentation: integers (Z, Y, X), or (Y, X).
        values: label values.

    Returns:
        Booleans of the same shape.

    >>> mask_of(np.array([[0, 1, 2]], dtype=np.uint8), [1, 2])
    array([[False,  True,  True]])
    """
    if segmentation.dtype != np.uint8:
        return np.isin(segmentation, values)
    wanted = np.isin(np.arange(256), values)
    mask = np.empty(segmentation.shape, dtype=bool)
    for plane, found in zip(segmentation, mask, strict=True):
        wanted.take(plane, out=found)
    return mask


def slice_areas(mask: np.ndarray, axis: int) -> np.ndarray:
    """Return the number of voxels of a mask in each slice across an axis.

    Args:
        mask: booleans, three axes.
        axis: across the slices.

    >>> [slice_areas(np.array([[[True, False], [True, True]]]), axis).tolist() for axis in range(3)]
    [[3], [1, 2], [2, 1]]
    """
    if axis == 0:
        return np.array([np.count_nonzero(plane) for plane in mask])
    total = np.zeros(mask.shape[1:], dtype=np.int64)
    for plane in mask:
        total += plane
    areas: np.ndarray = total.sum(axis=2 - axis)
    return areas


def outer_percentiles(values: np.ndarray) -> tuple[float, float]:
    """Return the percentiles 0.5 and 99.5, as numpy computes them; of integers of 1 or 2 bytes from their histogram.

    Args:
        values: numbers of any shape, at least one.

    >>> outer_percentiles(np.arange(101, dtype=np.int16))
    (0.5, 99.5)
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        low, high = np.percentile(values, (0.5, 99.5))
        return float(low), float(high)
    lowest = int(values.min())
    counts = np.zeros(int(values.max()) - lowest + 1, dtype=np.int64)
    for plane in values.reshape(-1, values.shape[-1]) if values.ndim < 3 else values:
        counts += np.bincount(plane.ravel().astype(np.int64) - lowest, minlength=len(counts))
    below = np.cumsum(counts)
    low, high = (_at(below, share * (values.size - 1)) + lowest for share in (0.005, 0.995))
    return low, high


def _at(below: np.ndarray, place: float) -> float:
    """Return the number at a place among sorted integers, between two of them their linear mean."""
    before, after = (int(np.searchsorted(below, each, side="right")) for each in (np.floor(place), np.ceil(place)))
    return float(before + (after - before) * (place - np.floor(place)))


def one_hot(labels: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """Return the channels that the labels of the previous stage add to the input of a cascade's network.

    Args:
        labels: (Z, Y, X); -1 and values that are not declared are in no channel.
        label_set: the label set.

    Returns:
        (number of `label_set.foreground`, Z, Y, X) float32 of 0 and 1.

    >>> one_hot(np.array([[[-1, 0, 1, 2]]]), LabelSet(("liver", "spleen"), ((1,), (2,)))).tolist()
    [[[[0.0, 0.0, 1.0, 0.0]]], [[[0.0, 0.0, 0.0, 1.0]]]]
    """
    return np.stack([labels == value for value in label_set.foreground]).astype(np.float32)
