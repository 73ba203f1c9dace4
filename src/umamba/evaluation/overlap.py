"""Dice similarity coefficient (DSC) of label maps: one mask, or all labels of a map from one joint histogram.

A label that is in neither map has no score (NaN) and is left out of means, as in nnU-Net's evaluation.
"""

from collections.abc import Sequence

import numpy as np


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the DSC of two boolean masks of one shape; NaN if both are empty."""
    return _ratio(int((prediction & truth).sum()), int(prediction.sum()), int(truth.sum()))


def joint_histogram(prediction: np.ndarray, truth: np.ndarray, num_values: int) -> np.ndarray:
    """Count the pairs of values of two integer maps of one shape.

    Returns (num_values, num_values) int64, row: value in the truth, column: value in the prediction. ValueError if a
    value is not below `num_values`.
    """
    if max(prediction.max(initial=0), truth.max(initial=0)) >= num_values:
        raise ValueError(f"values must be below {num_values}")
    pairs = truth.ravel().astype(np.intp) * num_values + prediction.ravel()
    return np.bincount(pairs, minlength=num_values**2).reshape(num_values, num_values)


def dice_from_histogram(histogram: np.ndarray, values: Sequence[int]) -> float:
    """Return the DSC of the voxels that hold any of `values` (several for a region); NaN if there are none."""
    chosen = list(values)
    rows = histogram[chosen]
    return _ratio(int(rows[:, chosen].sum()), int(histogram[:, chosen].sum()), int(rows.sum()))


def _ratio(common: int, predicted: int, true: int) -> float:
    return 2.0 * common / (predicted + true) if predicted + true else float("nan")
