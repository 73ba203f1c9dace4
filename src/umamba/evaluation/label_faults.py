"""Plant the faults that annotators make into a label map, and measure how well an order of cases finds them.

`benchmarks/label_audit.py` and the tests use these to prove `umamba audit`.
"""

from collections.abc import Mapping, Set
from typing import Literal, get_args

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata

from umamba.evaluation.overlap import label_boxes

Fault = Literal["swap", "shift", "dilate", "drop"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_SHIFT_VOX = 2


def plant_fault(labels: np.ndarray, fault: Fault, rng: np.random.Generator) -> np.ndarray:
    """Return a label map with a fault.

    Args:
        labels: integers (Z, Y, X) with at least one labelled voxel.
        fault: swap: two labels that are present change places. shift: all labels lie 2 voxels away along one axis.
            dilate: all labels grow by a voxel into the background, a voxel next to several of them gets the highest.
            drop: a connected part of all labels becomes background; if there is only one, the part of a single label.
        rng: chooses labels, axis, direction and part. Parts are drawn with equal probability, but none that is smaller
            than half of the median part.

    Returns:
        A new map of the same dtype.

    Raises:
        ValueError: the map has no labelled voxel, or swap is asked for and it has less than two labels.
    """
    values = sorted(label_boxes(labels))
    if not values or (fault == "swap" and len(values) < 2):
        raise ValueError(f"fault={fault}: the map has the labels {values} only")
    changed = labels.copy()
    if fault == "swap":
        first, second = rng.choice(values, 2, replace=False)
        changed[labels == first], changed[labels == second] = second, first
    elif fault == "shift":
        axis = int(rng.choice([axis for axis, length in enumerate(labels.shape) if length > 2 * _SHIFT_VOX]))
        changed = _shifted(labels, axis, int(rng.choice([-_SHIFT_VOX, _SHIFT_VOX])))
    elif fault == "dilate":
        cross = ndimage.generate_binary_structure(labels.ndim, 1)
        changed = np.where(labels > 0, labels, ndimage.grey_dilation(labels, footprint=cross))
    else:
        changed[_one_part(labels, rng)] = 0
    return changed


def _shifted(labels: np.ndarray, axis: int, by: int) -> np.ndarray:
    moved = np.roll(labels, by, axis)
    edge = [slice(None)] * labels.ndim
    edge[axis] = slice(0, by) if by > 0 else slice(by, None)
    moved[tuple(edge)] = 0
    return moved


def _one_part(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    full = ndimage.generate_binary_structure(labels.ndim, labels.ndim)
    numbered, count = ndimage.label(labels > 0, full)
    if count == 1:
        value = rng.choice(sorted(label_boxes(labels)))
        numbered, count = ndimage.label(labels == value, full)
    sizes = np.bincount(numbered.ravel())[1:]
    large = np.flatnonzero(sizes >= np.median(sizes) / 2) + 1
    part: np.ndarray = numbered == rng.choice(large)
    return part


def auroc(scores: Mapping[str, float], positive: Set[str]) -> float:
    """Return the area under the ROC curve: how often a positive case has a higher score than another; ties count half.

    Args:
        scores: case -> score.
        positive: the cases that should have high scores; at least one, and not all.

    >>> auroc({"a": 3.0, "b": 1.0, "c": 2.0, "d": 1.0}, {"a", "b"})
    0.625
    """
    ranks = rankdata(list(scores.values()))
    mine = np.array([case in positive for case in scores])
    count, others = int(mine.sum()), int((~mine).sum())
    return float((ranks[mine].sum() - count * (count + 1) / 2) / (count * others))
