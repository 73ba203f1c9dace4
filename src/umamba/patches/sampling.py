"""Where patches are sampled: nnU-Net's foreground oversampling (its data loader, version 2.8.1).

All regions have three axes (Z, Y, X) and are measured in voxels; a 2D patch has size 1 along the first axis.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.labels.annotated import Annotated, annotated_mask
from umamba.preprocessing.foreground import LABELLED


def as_3d(patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return the size (Z, Y, X) of a patch with 2 or 3 axes.

    >>> as_3d((64, 96))
    (1, 64, 96)
    """
    return (1,) * (3 - len(patch_size)) + tuple(patch_size)


def is_forced(position: int, batch_size: int, oversample_foreground: float) -> bool:
    """Return whether the patch at this position of a batch must contain foreground.

    nnU-Net forces the last patches of each batch.

    Args:
        position: from 0 to batch_size - 1.
        batch_size: patches in a batch over all ranks.
        oversample_foreground: share of the batch that must contain foreground, 0 to 1.

    >>> [is_forced(position, 3, 0.33) for position in range(3)]
    [False, False, True]
    """
    return position >= round(batch_size * (1 - oversample_foreground))


def carriers(labels: LabelSet, annotated: Annotated, case_ids: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return the cases that carry each label, for labels that any case carries.

    Args:
        labels: the label set.
        annotated: labels of the partly labelled cases.
        case_ids: the cases.

    Returns:
        Key of the label in the stored foreground -> cases.

    >>> carriers(LabelSet(("liver", "spleen"), ((1,), (2,))), {"a": ("spleen",)}, ["a", "b"])
    {1: ('b',), 2: ('a', 'b')}
    """
    carried = annotated_mask(labels, annotated, case_ids)
    keys = range(len(labels.names)) if labels.has_regions else [value for (value,) in labels.values]
    found = {
        key: tuple(case_id for case_id, carries in zip(case_ids, carried[:, position], strict=True) if carries)
        for position, key in enumerate(keys)
    }
    return {key: cases for key, cases in found.items() if cases}


def draw_voxel(
    foreground: Mapping[int, np.ndarray],
    labels: LabelSet,
    forced: bool,
    generator: np.random.Generator,
    wanted: int | None = None,
) -> np.ndarray | None:
    """Draw the voxel (3,) on which a patch is centred; None means that the patch is placed at random.

    A forced patch draws a class (or region) that the case contains, each with equal chance, and then one of its stored
    voxels. Otherwise the patch is placed at random, or with an ignore label on one of the labelled voxels.

    Args:
        foreground: the stored voxels (n, 3) of each class, as `umamba.preprocessing` writes them.
        labels: the label set; only its ignore label matters here.
        forced: whether the patch must contain foreground.
        generator: source of the draws.
        wanted: the class of a forced patch, if the case contains it; None: it is drawn.

    Raises:
        UserError: there is an ignore label, but the case stores no labelled voxels.

    >>> labels = LabelSet(("liver",), ((1,),))
    >>> draw_voxel({1: np.array([[4, 5, 6]])}, labels, True, np.random.default_rng(0)).tolist()
    [4, 5, 6]
    """
    chosen = None
    if forced:
        present = sorted(key for key, voxels in foreground.items() if key != LABELLED and len(voxels))
        if wanted is not None and wanted in present:
            chosen = foreground[wanted]
        elif present:
            chosen = foreground[present[generator.integers(len(present))]]
    if chosen is None and labels.ignore is not None:
        if LABELLED not in foreground:
            raise UserError(
                "labels: the dataset has an ignore label, but the prepared cases store no labelled voxels "
                f"(key {LABELLED}). Prepare the dataset again."
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
    """Return the first voxel (3,) of the region that is read; the region may extend beyond the image.

    Args:
        shape: size of the image.
        read_size: size of the region.
        patch_size: size of the patch that augmentation cuts out of the region.
        voxel: centre of the region; None: a random place.
        generator: source of random places.

    >>> draw_start((9, 9, 9), (4, 4, 4), (4, 4, 4), np.array([5, 8, 0]), np.random.default_rng(0))
    (3, 6, 0)
    """
    starts = []
    for axis, (size, read, patch) in enumerate(zip(shape, read_size, patch_size, strict=True)):
        allowance = max(read - patch, read - size)
        lowest = -((allowance + 1) // 2)  # minus half the allowance, rounded down
        highest = size + (allowance + 1) // 2 - read
        if voxel is None:
            starts.append(int(generator.integers(lowest, highest, endpoint=True)))
        else:
            starts.append(max(lowest, int(voxel[axis]) - read // 2))
    return tuple(starts)


def read_region(
    array: Any, start: Sequence[int], size: Sequence[int], outside: float, into: np.ndarray | None = None
) -> np.ndarray:
    """Return a copy (C, *size) of a region, padded where it extends beyond the array.

    Args:
        array: (C, Z, Y, X), a NumPy array or a blosc2 array.
        start: first voxel (Z, Y, X) of the region; it may be negative.
        size: size (Z, Y, X) of the region.
        outside: value of the padding.
        into: contiguous array (C, *size) that receives the region; None: a new array.

    >>> read_region(np.ones((1, 1, 1, 2)), (0, 0, -1), (1, 1, 3), 0).tolist()
    [[[[0.0, 1.0, 1.0]]]]
    """
    region = np.empty((array.shape[0], *size), array.dtype) if into is None else into
    if isinstance(array, np.ndarray):
        z, y, x = start
        _place(array, z, y, x, region, outside)
        return region
    low = [max(0, first) for first in start]
    high = [min(extent, first + length) for extent, first, length in zip(array.shape[1:], start, size, strict=True)]
    lengths = [max(0, b - a) for a, b in zip(low, high, strict=True)]
    complete = lengths == list(size)  # then a blosc2 array decodes straight into the region
    inside = region if complete else np.empty((array.shape[0], *lengths), array.dtype)
    if all(lengths):
        array.get_slice_numpy(inside, ([0, *low], [array.shape[0], *high]))
    if not complete:
        z, y, x = (first - a for first, a in zip(start, low, strict=True))
        _place(inside, z, y, x, region, outside)
    return region


def inside_of(
    shape: Sequence[int], start: Sequence[int], size: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which part of a region lies inside the image: its first voxel (3,), and the one after its last (3,).

    Args:
        shape: size (Z, Y, X) of the image.
        start: first voxel of the region; it may be negative.
        size: size of the region.

    >>> inside_of((4, 9, 9), (-2, 3, 8), (8, 4, 4))
    ((2, 0, 0), (6, 4, 1))
    """
    low = tuple(min(max(0, -first), length) for first, length in zip(start, size, strict=True))
    high = (min(max(0, extent - first), length) for extent, first, length in zip(shape, start, size, strict=True))
    return low, tuple(high)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _place(source, first_z, first_y, first_x, into, outside):  # type: ignore[no-untyped-def]
    """Fill a region (C, Z, Y, X) that starts at a voxel of the source; write `outside` where there is no source."""
    channels, depth, height, width = source.shape
    slices, rows, columns = into.shape[1:]
    begin = min(max(0, -first_x), columns)
    end = max(begin, min(columns, width - first_x))
    for channel in range(channels):
        for slice_ in range(slices):
            z = first_z + slice_
            for row in range(rows):
                y, target = first_y + row, into[channel, slice_, row]
                if 0 <= z < depth and 0 <= y < height and begin < end:
                    target[:begin] = outside
                    own, row_of_source = target[begin:end], source[channel, z, y, first_x + begin : first_x + end]
                    for column in range(len(own)):
                        own[column] = row_of_source[column]
                    target[end:] = outside
                else:
                    target[:] = outside
