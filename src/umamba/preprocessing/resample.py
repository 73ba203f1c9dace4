"""Resampling of images, label maps and logits onto another voxel grid, by nnU-Net's rule (2.8.1), fast.

Source: nnU-Net's `default_resampling` with scikit-image's `resize` (edge mode, half-pixel centres, no anti-aliasing,
result clipped to the input's range) and batchgenerators 0.25.5 for label maps. A spline resize is separable and linear:
along each axis it is one matrix, spline prefilter included, and that matrix is nearly banded. Here the bands are
multiplied axis after axis in float32, the axes in the order of least work, one channel at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy import ndimage

_ANISOTROPY = 3  # ratio of spacings above which the coarsest axis is treated on its own
_ROWS = 64  # output samples of one block of a band matrix
# Input samples beyond a block's own that matter: the cubic prefilter's response falls by 0.27 a sample (below 1e-18).
_MARGIN = {1: 2, 3: 32}
_TIE = 1e-6  # scores of labels closer than this are equal: float32 rounding of sums that are 1


@dataclass(frozen=True)
class _Block:
    """A block of a band matrix: output samples `rows` are `weights` @ input samples `columns`."""

    rows: slice
    columns: slice
    weights: np.ndarray


_Bands = list[_Block] | None  # along one axis; None: unchanged


def resampled_shape(
    shape: Sequence[int], current_spacing: Sequence[float], target_spacing: Sequence[float]
) -> tuple[int, ...]:
    """Return round(current / target spacing * size) of each axis, halves to even."""
    return tuple(
        round(current / target * size)
        for current, target, size in zip(current_spacing, target_spacing, shape, strict=True)
    )


def separate_axis(current_spacing: Sequence[float], target_spacing: Sequence[float]) -> int | None:
    """Return the axis that is resampled on its own by nearest neighbour, or None.

    It is the coarsest axis of the current spacing, if that is more than 3 times the finest; else of the target spacing,
    if that is. No axis is separate if several share the coarsest spacing.
    """
    for spacing in (current_spacing, target_spacing):
        coarsest = max(spacing)
        if coarsest / min(spacing) > _ANISOTROPY:
            axes = [axis for axis, value in enumerate(spacing) if value == coarsest]
            return axes[0] if len(axes) == 1 else None
    return None


def resample_image(
    array: np.ndarray,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    target_spacing: Sequence[float],
    order: int = 3,
) -> np.ndarray:
    """Resample (C, Z, Y, X) to (C, *new_shape) float32 with splines of order 1 or 3, clipped to the input's range.

    Args:
        array: the channels, each treated alone.
        new_shape: size (Z, Y, X) of the result.
        current_spacing: (Z, Y, X) in mm; together with the target it decides whether an axis is separate: then each
            slice is resized in the plane, and the nearest slice is taken along that axis.
        target_spacing: (Z, Y, X) in mm.
        order: of the splines.
    """
    if array.shape[1:] == tuple(new_shape):
        return array.astype(np.float32, copy=False)
    separate = separate_axis(current_spacing, target_spacing)
    bands = _bands_of(array.shape[1:], new_shape, separate, order)
    resampled = np.empty((len(array), *new_shape), dtype=np.float32)
    for channel, result in zip(array, resampled, strict=True):
        volume, late = _early_nearest(channel, new_shape, separate)
        volume = volume.astype(np.float32, copy=False)
        resized = _resize(volume, bands)
        if order > 1:
            plane = tuple(axis for axis in range(volume.ndim) if axis != separate)
            resized = np.clip(resized, volume.min(plane, keepdims=True), volume.max(plane, keepdims=True))
        result[...] = resized if late is None or separate is None else resized.take(late, separate)
    return resampled


def resample_logits(
    array: np.ndarray, new_shape: Sequence[int], current_spacing: Sequence[float], target_spacing: Sequence[float]
) -> np.ndarray:
    """Resample logits or probabilities (C, Z, Y, X) to (C, *new_shape) float32 linearly; else as `resample_image`."""
    return resample_image(array, new_shape, current_spacing, target_spacing, order=1)


def resample_label(
    array: np.ndarray, new_shape: Sequence[int], current_spacing: Sequence[float], target_spacing: Sequence[float]
) -> np.ndarray:
    """Resample integer label maps (C, Z, Y, X) to (C, *new_shape), same dtype.

    Each label's indicator is resampled linearly and the highest one wins. On a tie the nearest neighbour's label wins
    if it is among the tied ones, otherwise the lowest of them. The separate axis is as in `resample_image`.
    """
    if array.shape[1:] == tuple(new_shape):
        return array
    separate = separate_axis(current_spacing, target_spacing)
    bands = _bands_of(array.shape[1:], new_shape, separate, order=1)
    resampled = np.empty((len(array), *new_shape), dtype=array.dtype)
    for channel, result in zip(array, resampled, strict=True):
        volume, late = _early_nearest(channel, new_shape, separate)
        voted = _vote(volume, bands)
        result[...] = voted if late is None or separate is None else voted.take(late, separate)
    return resampled


def _bands_of(shape: Sequence[int], new_shape: Sequence[int], separate: int | None, order: int) -> list[_Bands]:
    return [
        None if axis == separate or size == new_size else _band_matrix(size, new_size, order)
        for axis, (size, new_size) in enumerate(zip(shape, new_shape, strict=True))
    ]


def _coordinates(size: int, new_size: int) -> np.ndarray:
    """Return where the centres of the new samples lie between the old ones."""
    return size / new_size * (np.arange(new_size) + 0.5) - 0.5


def _nearest(size: int, new_size: int) -> np.ndarray:
    """Return the nearest old sample of each new one, the later of two equally near."""
    return np.clip(np.floor(_coordinates(size, new_size) + 0.5).astype(np.intp), 0, size - 1)


def _early_nearest(
    volume: np.ndarray, new_shape: Sequence[int], separate: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Take the nearest slices along the separate axis now if they become fewer; else return the indices for later."""
    if separate is None or volume.shape[separate] == new_shape[separate]:
        return volume, None
    indices = _nearest(volume.shape[separate], new_shape[separate])
    if new_shape[separate] < volume.shape[separate]:
        return volume.take(indices, separate), None
    return volume, indices


def _band_matrix(size: int, new_size: int, order: int) -> list[_Block]:
    """Return the matrix (new_size, size) of a spline resize along one axis as blocks around its diagonal."""
    coordinates = _coordinates(size, new_size)
    blocks = []
    for start in range(0, new_size, _ROWS):
        rows = slice(start, min(start + _ROWS, new_size))
        first = max(0, math.floor(coordinates[rows][0]) - _MARGIN[order])
        stop = min(size, math.ceil(coordinates[rows][-1]) + _MARGIN[order] + 1)
        columns = np.arange(stop - first)
        places = np.meshgrid(coordinates[rows] - first, columns, indexing="ij")
        weights = ndimage.map_coordinates(np.eye(len(columns)), places, order=order, mode="nearest")
        blocks.append(_Block(rows, slice(first, stop), weights.astype(np.float32)))
    return blocks


def _work(shape: Sequence[int], bands: Sequence[_Bands], axes: Sequence[int]) -> int:
    """Return the multiplications of resizing along these axes one after the other."""
    sizes, total = list(shape), 0
    for axis in axes:
        blocks = bands[axis]
        assert blocks is not None
        total += math.prod(sizes) // sizes[axis] * sum(block.weights.size for block in blocks)
        sizes[axis] = blocks[-1].rows.stop
    return total


def _resize(volume: np.ndarray, bands: Sequence[_Bands]) -> np.ndarray:
    """Resize a float32 volume along every axis that has bands."""
    changing = [axis for axis, blocks in enumerate(bands) if blocks is not None]
    for axis in min(permutations(changing), key=lambda axes: _work(volume.shape, bands, axes)):
        blocks = bands[axis]
        assert blocks is not None
        shape = volume.shape
        folded = volume.reshape(math.prod(shape[:axis]), shape[axis], -1)
        result = np.empty((folded.shape[0], blocks[-1].rows.stop, folded.shape[2]), dtype=np.float32)
        for block in blocks:
            if folded.shape[2] == 1:
                np.matmul(folded[:, block.columns, 0], block.weights.T, out=result[:, block.rows, 0])
            else:
                np.matmul(block.weights, folded[:, block.columns], out=result[:, block.rows])
        volume = result.reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return volume


def _restrict(blocks: _Bands, box: slice) -> tuple[_Bands, slice]:
    """Return the bands for an input that is zero outside `box` and cut to it, and the output samples it reaches."""
    if blocks is None:
        return None, box
    reached = [block for block in blocks if block.columns.start < box.stop and block.columns.stop > box.start]
    first = reached[0].rows.start
    cut = []
    for block in reached:
        start, stop = max(block.columns.start, box.start), min(block.columns.stop, box.stop)
        weights = block.weights[:, start - block.columns.start : stop - block.columns.start]
        rows = slice(block.rows.start - first, block.rows.stop - first)
        cut.append(_Block(rows, slice(start - box.start, stop - box.start), weights))
    return cut, slice(first, reached[-1].rows.stop)


def _vote(volume: np.ndarray, bands: Sequence[_Bands]) -> np.ndarray:
    """Resample a label map: the label with the highest resized indicator wins.

    The indicators sum up to 1: the most widespread label has what the others leave, and those are computed only where
    they can be above 0.
    """
    nearest = volume
    for axis, blocks in enumerate(bands):
        if blocks is not None:
            nearest = nearest.take(_nearest(volume.shape[axis], blocks[-1].rows.stop), axis)
    lowest = int(volume.min())
    found = ndimage.find_objects(volume.astype(np.int32) - (lowest - 1))
    boxes = {lowest + offset: box for offset, box in enumerate(found) if box is not None}
    rest = max(boxes, key=lambda value: math.prod(extent.stop - extent.start for extent in boxes[value]))
    del boxes[rest]
    winner = np.full_like(nearest, rest)
    if not boxes:
        return winner
    union = tuple(
        slice(min(s.start for s in extents), max(s.stop for s in extents))
        for extents in zip(*boxes.values(), strict=True)
    )
    window = tuple(_restrict(blocks, extent)[1] for blocks, extent in zip(bands, union, strict=True))
    nearest = nearest[window]
    best, left = np.zeros(nearest.shape, dtype=np.float32), np.ones(nearest.shape, dtype=np.float32)
    score_of_nearest, other = np.zeros_like(best), np.full_like(nearest, rest)
    for value, box in boxes.items():
        restricted = [_restrict(blocks, extent) for blocks, extent in zip(bands, box, strict=True)]
        reached = tuple(
            slice(rows.start - frame.start, rows.stop - frame.start)
            for (_, rows), frame in zip(restricted, window, strict=True)
        )
        score = _resize((volume[box] == value).astype(np.float32), [cut for cut, _ in restricted])
        left[reached] -= score
        np.copyto(other[reached], value, where=score > best[reached] + _TIE)
        np.maximum(best[reached], score, out=best[reached])
        np.copyto(score_of_nearest[reached], score, where=nearest[reached] == value)
    np.copyto(score_of_nearest, left, where=nearest == rest)
    # The lowest of level labels, unless the nearest is one of them.
    np.copyto(other, rest, where=(left > best + _TIE) | ((left >= best - _TIE) & (rest < other)))
    np.copyto(other, nearest, where=score_of_nearest >= np.maximum(best, left) - _TIE)
    winner[window] = other
    return winner
