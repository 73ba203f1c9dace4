"""Where patches are taken: nnU-Net's sampler with foreground oversampling (its data loader, 2.8.1).

All boxes have three axes (Z, Y, X), in voxels; a 2D patch has size 1 along the first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from umamba.io import UserError
from umamba.labels import LabelSet

OUTSIDE = -1  # label of voxels outside the image, and outside the nonzero mask of preprocessing
LABELLED = -1  # key of a case's foreground voxels that holds all labelled ones, where there is an ignore label


def is_forced(position: int, batch_size: int, oversample_foreground: float) -> bool:
    """Return whether the sample at this position of a batch must contain foreground: the last ones of a batch."""
    return position >= round(batch_size * (1 - oversample_foreground))


def draw_voxel(
    foreground: Mapping[int, np.ndarray], labels: LabelSet, forced: bool, generator: np.random.Generator
) -> np.ndarray | None:
    """Return the voxel (3,) a patch is centred on, or None for a random place.

    Forced: a class (region) present in the case, each with equal chance, then one of its stored voxels. Not forced, or
    nothing present: random; with an ignore label one of the labelled voxels.

    Raises:
        UserError: there is an ignore label, but the case has no list of its labelled voxels.
    """
    chosen = None
    if forced:
        present = sorted(key for key, voxels in foreground.items() if key != LABELLED and len(voxels))
        if present:
            chosen = foreground[present[generator.integers(len(present))]]
    if chosen is None and labels.ignore is not None:
        if LABELLED not in foreground:
            raise UserError(
                f"labels: there is an ignore label, but the prepared cases list no labelled voxels (key {LABELLED})."
                " Prepare the dataset again."
            )
        chosen = foreground[LABELLED]
    if chosen is None or not len(chosen):
        return None
    return chosen[generator.integers(len(chosen))]


def draw_start(
    shape: Sequence[int],
    read_size: Sequence[int],
    patch_size: Sequence[int],
    voxel: np.ndarray | None,
    generator: np.random.Generator,
) -> tuple[int, ...]:
    """Return the first voxel (3,) of the box that is read; it may lie outside the image, as may the box's end.

    Args:
        shape: the image's.
        read_size: the box's.
        patch_size: what is left of the box after augmentation.
        voxel: centre of the box, or None for a random place.
        generator: where random places are drawn from.
    """
    starts = []
    for axis, (size, read, patch) in enumerate(zip(shape, read_size, patch_size, strict=True)):
        allowance = max(read - patch, read - size)
        lowest = -((allowance + 1) // 2)  # floor of minus half
        highest = size + (allowance + 1) // 2 - read
        if voxel is None:
            starts.append(int(generator.integers(lowest, highest, endpoint=True)))
        else:
            starts.append(max(lowest, int(voxel[axis]) - read // 2))
    return tuple(starts)


def read_box(
    array: Any, start: Sequence[int], size: Sequence[int], outside: float, into: np.ndarray | None = None
) -> np.ndarray:
    """Return a box (C, *size) of a sliceable array (C, Z, Y, X), copied; `outside` beyond the image.

    Args:
        array: what is read.
        start: first voxel (Z, Y, X) of the box, which may lie outside.
        size: of the box.
        outside: value beyond the image.
        into: contiguous memory of the box; new memory if None.
    """
    box = np.empty((array.shape[0], *size), array.dtype) if into is None else into
    low = [max(0, first) for first in start]
    high = [min(extent, first + length) for extent, first, length in zip(array.shape[1:], start, size, strict=True)]
    if all(b - a == length for a, b, length in zip(low, high, size, strict=True)):
        _copy(array, low, high, box)
        return box
    box.fill(outside)
    if all(a < b for a, b in zip(low, high, strict=True)):
        inside = np.empty((array.shape[0], *(b - a for a, b in zip(low, high, strict=True))), array.dtype)
        _copy(array, low, high, inside)
        box[(slice(None), *(slice(a - f, b - f) for a, b, f in zip(low, high, start, strict=True)))] = inside
    return box


def _copy(array: Any, low: Sequence[int], high: Sequence[int], into: np.ndarray) -> None:
    """Copy the voxels from `low` to `high` (without these) into contiguous memory."""
    if hasattr(array, "get_slice_numpy"):  # blosc2 decodes where it is told to
        array.get_slice_numpy(into, ([0, *low], [array.shape[0], *high]))
    else:
        into[:] = array[(slice(None), *map(slice, low, high))]
