"""Derive target spacing, axis order and median size of a dataset (nnU-Net: default_experiment_planner.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from umamba.planning.fingerprint import Fingerprint
from umamba.planning.plan import axis3, floats
from umamba.planning.rules import ANISOTROPY

LOW_PERCENTILE = 10  # an anisotropic dataset takes this percentile of the spacings of its coarsest axis as target


@dataclass(frozen=True)
class DatasetGeometry:
    """Spacing and size of a dataset, from which its configurations are derived. Plan axes: the coarsest comes first.

    Attributes:
        transpose: file axis of each plan axis.
        median_spacing: median spacing of the training cases in mm.
        median_shape: median size of the cropped training cases at their own spacing, in voxels.
        target_spacing: spacing of the full resolution in mm.
        reason: why this target spacing was chosen.
    """

    transpose: tuple[int, int, int]
    median_spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    target_spacing: tuple[float, ...]
    reason: str


def dataset_geometry(fingerprint: Fingerprint) -> DatasetGeometry:
    """Derive target spacing and axis order.

    Args:
        fingerprint: of the dataset.
    """
    spacings, shapes = np.array(fingerprint.spacings), np.array(fingerprint.shapes_after_crop)
    median_spacing, median_shape = np.percentile(spacings, 50, axis=0), np.percentile(shapes, 50, axis=0)
    target, reason = _target_spacing(spacings, median_spacing, median_shape)
    coarsest = int(np.argmax(target))
    transpose = [coarsest, *(axis for axis in range(3) if axis != coarsest)]
    return DatasetGeometry(
        axis3(transpose),
        floats(median_spacing[transpose].tolist()),
        floats(median_shape[transpose].tolist()),
        floats(target[transpose].tolist()),
        reason,
    )


def _target_spacing(spacings: np.ndarray, median: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, str]:
    coarsest = int(np.argmax(median))
    others = [axis for axis in range(3) if axis != coarsest]
    widest, smallest = max(median[others]), min(shape[others])
    ratio, thin = median[coarsest] / widest, shape[coarsest] * ANISOTROPY < smallest
    numbers_used = (
        f"the coarsest axis, {median[coarsest]:g} mm, is {ratio:.3g} times as coarse as the next and has "
        f"{shape[coarsest]:g} voxels, the others at least {smallest:g} (anisotropic: more than {ANISOTROPY:g} times as "
        f"coarse, and fewer than 1/{ANISOTROPY:g} of their voxels)"
    )
    if not (ratio > ANISOTROPY and thin):
        return median, f"median of the cases; {numbers_used}"
    low = np.percentile(spacings[:, coarsest], LOW_PERCENTILE)
    target = median.copy()
    target[coarsest] = low if low >= widest else max(widest, low) + 1e-5
    return target, f"median, but percentile {LOW_PERCENTILE} ({low:g} mm) for the coarsest axis; {numbers_used}"


def median_shape_at(
    fingerprint: Fingerprint, geometry: DatasetGeometry, target_spacing: Sequence[float]
) -> tuple[float, ...]:
    """Return the median size of the cases at a spacing.

    Args:
        fingerprint: of the dataset.
        geometry: its axis order.
        target_spacing: three entries in mm, plan axes.

    Returns:
        Three entries in voxels, plan axes; the median of an even number of cases may end in .5.
    """
    order = list(geometry.transpose)
    spacings, shapes = np.array(fingerprint.spacings)[:, order], np.array(fingerprint.shapes_after_crop)[:, order]
    # nnU-Net rounds each case with Python's round. numpy rounds halves to even as well, so the result is the same.
    return floats(np.median(np.round(spacings / np.array(target_spacing) * shapes), axis=0).tolist())
