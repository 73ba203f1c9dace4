"""Where the classes of a case are: voxels drawn once, on which training patches are centred later (nnU-Net's rule)."""

import math

import numpy as np

from umamba.labels import LabelSet

LABELLED = -1  # key of the voxels that carry any label, where some are to be ignored
_SEED = 1234
_MOST = 10_000  # voxels of a class, or this share of them if that is more:
_SHARE = 0.01


def foreground_voxels(label: np.ndarray, labels: LabelSet) -> dict[int, np.ndarray]:
    """Draw voxels (n, 3) int32 of each class from a preprocessed label map (1, Z, Y, X), without replacement.

    Keys are the label values; with regions, the regions' positions in `labels.names`. With an ignore label there is
    also LABELLED: all voxels that are not ignored, with background and what lies outside the nonzero mask.
    A class without voxels has an empty array.
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
