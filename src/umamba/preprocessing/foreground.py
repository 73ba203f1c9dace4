"""Draw voxels of each class of a case, on which training patches are centred later (nnU-Net's rule)."""

import math

import numpy as np

from umamba.labels import LabelSet

LABELLED = -1  # key of all voxels that are not ignored
_SEED = 1234
# At most this many voxels of a class are drawn, or this fraction of them if that is more.
_MOST = 10_000
_SHARE = 0.01


def foreground_voxels(label: np.ndarray, labels: LabelSet) -> dict[int, np.ndarray]:
    """Draw voxels of each class without replacement.

    Args:
        label: preprocessed label map (1, Z, Y, X).
        labels: the declared labels.

    Returns:
        Voxel indices (n, 3) int32 of each class; n is 0 for a class without voxels. The keys are the label values, or
        the positions of the regions in `labels.names`. If there is an ignore label, the key LABELLED has voxels of all
        that is not ignored, including the background and the voxels outside the nonzero mask.
    """
    volume = label[0]
    generator = np.random.default_rng(_SEED)
    voxels = {}
    for position, values in enumerate(labels.values):
        mask = volume == values[0]
        for value in values[1:]:
            mask |= volume == value
        voxels[position if labels.has_regions else values[0]] = _draw(mask, generator)
    if labels.ignore is not None:
        voxels[LABELLED] = _draw(volume != labels.ignore, generator)
    return voxels


def _draw(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    found = np.flatnonzero(mask)
    count = max(min(_MOST, len(found)), math.ceil(_SHARE * len(found)))
    chosen = generator.choice(found, count, replace=False)
    return np.stack(np.unravel_index(chosen, mask.shape), axis=1).astype(np.int32)
