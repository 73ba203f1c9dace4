"""Target spacing, axis order and median size of a dataset (nnU-Net: default_experiment_planner.py, first steps)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from umamba.planning.fingerprint import Fingerprint
from umamba.planning.plan import axis3, numbers
from umamba.planning.rules import ANISOTROPY

LOW_PERCENTILE = 10  # of the coarsest axis, where a dataset is anisotropic


@dataclass(frozen=True)
class DatasetGeometry:
    """What the configurations are derived from; plan axes (the coarsest first), mm and voxels.

    Attributes:
        transpose: file axis of each plan axis.
        median_spacing: of the training cases.
        median_shape: of their cropped sizes at their own spacing.
        target_spacing: full resolution.
        reason: why it is that.
    """

    transpose: tuple[int, int, int]
    median_spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    target_spacing: tuple[float, ...]
    reason: str


def dataset_geometry(fingerprint: Fingerprint) -> DatasetGeometry:
    """Derive spacing and axis order from a fingerprint."""
    spacings, shapes = np.array(fingerprint.spacings), np.array(fingerprint.shapes_after_crop)
    median_spacing, median_shape = np.percentile(spacings, 50, axis=0), np.percentile(shapes, 50, axis=0)
    target, reason = _target_spacing(spacings, median_spacing, median_shape)
    coarsest = int(np.argmax(target))
    transpose = [coarsest, *(axis for axis in range(3) if axis != coarsest)]
    return DatasetGeometry(
        axis3(transpose),
        numbers(median_spacing[transpose].tolist()),
        numbers(median_shape[transpose].tolist()),
        numbers(target[transpose].tolist()),
        reason,
    )


def _target_spacing(spacings: np.ndarray, median: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, str]:
    coarsest = int(np.argmax(median))
    others = [axis for axis in range(3) if axis != coarsest]
    widest, smallest = max(median[others]), min(shape[others])
    ratio, thin = median[coarsest] / widest, shape[coarsest] * ANISOTROPY < smallest
    numbers_used = (
        f"coarsest axis {median[coarsest]:g} mm is {ratio:.3g} times the next, {shape[coarsest]:g} voxels long beside "
        f"{smallest:g} (anisotropic: more than {ANISOTROPY:g} times both)"
    )
    if not (ratio > ANISOTROPY and thin):
        return median, f"median of the cases; {numbers_used}"
    low = np.percentile(spacings[:, coarsest], LOW_PERCENTILE)
    target = median.copy()
    target[coarsest] = low if low >= widest else max(widest, low) + 1e-5
    return target, f"median, coarsest axis at percentile {LOW_PERCENTILE} ({low:g} mm); {numbers_used}"


def median_shape_at(
    fingerprint: Fingerprint, geometry: DatasetGeometry, target_spacing: Sequence[float]
) -> tuple[float, ...]:
    """Return the median size of the cases at a spacing (plan axes, three entries); entries may end in .5."""
    order = list(geometry.transpose)
    spacings, shapes = np.array(fingerprint.spacings)[:, order], np.array(fingerprint.shapes_after_crop)[:, order]
    # One case at a time would round the same: numpy and Python both take halves to the even number.
    return numbers(np.median(np.round(spacings / np.array(target_spacing) * shapes), axis=0).tolist())
