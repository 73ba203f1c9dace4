"""From logits on the network's grid to a label map on the image's own grid (nnU-Net's rule).

The logits are resampled to the cropped shape, then decided: the highest one, or with regions every one above zero (its
sigmoid above 0.5), painted in `regions_class_order`. The result is put into a zero volume at the crop box, and its axes
are put back in the order of the file.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from umamba.labels import LabelSet
from umamba.planning import Configuration, Plan
from umamba.preprocessing import CaseProperties, resample_logits


def logits_to_segmentation(
    logits: torch.Tensor | np.ndarray,
    properties: CaseProperties,
    plan: Plan,
    configuration: Configuration,
    labels: LabelSet,
) -> np.ndarray:
    """Return the label map (Z, Y, X) of the original image, in the smallest unsigned integer type.

    Args:
        logits: (num_classes, Z, Y, X) on the network's grid (transposed axes, target spacing).
        properties: what preprocessing did to the image.
        plan: its transposition.
        configuration: its target spacing.
        labels: labels, or regions and the order they are painted in.
    """
    array = logits.numpy() if isinstance(logits, torch.Tensor) else logits
    spacing = tuple(properties.geometry.spacing[axis] for axis in plan.transpose_forward)
    current = spacing[: 3 - configuration.dim] + tuple(configuration.spacing)

    def resampled(head: int) -> np.ndarray:
        return resample_logits(array[head : head + 1], properties.shape_after_crop, current, spacing)[0]

    cropped = decide_labels(len(array), resampled, labels)
    full = np.zeros(properties.shape_before_crop, dtype=cropped.dtype)
    full[tuple(slice(start, stop) for start, stop in properties.bbox)] = cropped
    return np.ascontiguousarray(full.transpose(plan.transpose_backward))


def decide_labels(heads: int, logits_of: Callable[[int], np.ndarray], labels: LabelSet) -> np.ndarray:
    """Return the label map that the logits of each head, volumes of one shape, decide; one is in memory at a time."""
    dtype = np.min_scalar_type(labels.all_values[-1])
    if labels.region_order is None:
        return _highest(heads, logits_of, dtype)
    return _paint(heads, logits_of, dtype, labels.region_order)


def _highest(heads: int, resampled: Callable[[int], np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Return the head with the highest value at each voxel, the first of equal ones; one volume in memory at a time."""
    best = resampled(0)
    winner = np.zeros(best.shape, dtype=dtype)
    for head in range(1, heads):
        values = resampled(head)
        better = values > best
        winner[better] = head
        np.maximum(best, values, out=best)
    return winner


def _paint(heads: int, resampled: Callable[[int], np.ndarray], dtype: np.dtype, order: Sequence[int]) -> np.ndarray:
    """Return the regions' values, later regions over earlier ones."""
    painted = np.where(resampled(0) > 0, order[0], 0).astype(dtype)
    for head in range(1, heads):
        painted[resampled(head) > 0] = order[head]
    return painted
