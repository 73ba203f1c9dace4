"""The region of each component of a label: the voxels that are nearer to it than to the label's other components.

Scores and losses of each region alone count a small component as much as a large one (CC-Metrics, Jaus et al. 2024,
https://arxiv.org/abs/2410.18684). With several labels each label has its own regions, against all others.
SciPy is loaded on first use, because only such losses and scores need it.
"""

from collections.abc import Sequence

import numpy as np

from umamba.labels.label_set import LabelSet


def component_regions(label: np.ndarray, labels: LabelSet, spacing: Sequence[float]) -> np.ndarray:
    """Number for each label the components of its mask, and give each voxel the number of the nearest one.

    Args:
        label: integers (Z, Y, X); values that no label has count as background.
        labels: the label set; regions may overlap.
        spacing: (Z, Y, X) in any unit, in which distances are measured.

    Returns:
        (K, Z, Y, X) int32 for the K foreground labels; numbers from 1 on, 0 everywhere if the label is absent. Voxels
        that touch at a corner are connected.

    >>> component_regions(np.array([[[1, 0, 0, 2, 0, 1]]]), LabelSet(("a", "b"), ((1,), (2,))), (1, 1, 1)).tolist()
    [[[[1, 1, 1, 2, 2, 2]]], [[[1, 1, 1, 1, 1, 1]]]]
    """
    from scipy import ndimage

    regions = np.zeros((len(labels.names), *label.shape), dtype=np.int32)
    neighbours = np.ones((3,) * label.ndim, dtype=bool)
    for own, values in zip(regions, labels.values, strict=True):
        mask = np.isin(label, values)
        count = ndimage.label(mask, neighbours, output=own)
        if count == 1:
            own[:] = 1
        elif count:
            nearest = ndimage.distance_transform_edt(
                ~mask, sampling=tuple(spacing), return_distances=False, return_indices=True
            )
            own[:] = own[tuple(nearest)]
    return regions
