"""Resampling of images, label maps and logits onto another voxel grid, by nnU-Net's rule (2.8.1), fast.

Source: nnU-Net's `default_resampling` with scikit-image's `resize` (edge mode, half-pixel centres, no anti-aliasing,
result clipped to the input's range) and batchgenerators 0.25.5 for label maps. A spline resize is separable and linear:
along each axis it is one matrix, spline prefilter included, and that matrix is nearly banded. Here the bands are
multiplied axis after axis in float32, the axes in the order of least work, one channel at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from scipy import ndimage

_ANISOTROPY = 3  # ratio of spacings above which the coarsest axis is treated on its own
_ROWS = 32  # output samples of one block of a band matrix
# Input samples beyond a block's own that matter: the cubic prefilter's response falls by 0.27 a sample (below 1e-9).
_MARGIN = {1: 2, 3: 16}
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
            np.clip(resized, volume.min(plane, keepdims=True), volume.max(plane, keepdims=True), out=resized)
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
    resampled = np.empty((len(array), *new_shape), dtype=array.dtype)
    for channel, result in zip(array, resampled, strict=True):
        volume, late = _early_nearest(channel, new_shape, separate)
        kept = enumerate(zip(volume.shape, new_shape, strict=True))
        voted = _vote(volume, [size if axis == separate else new_size for axis, (size, new_size) in kept])
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


def _cells(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the old samples before and after each new one along an axis, and the share of the later one."""
    coordinates = _coordinates(size, new_size)
    before = np.floor(coordinates).astype(np.intp)
    return before.clip(0, size - 1), (before + 1).clip(0, size - 1), coordinates - before


def _vote(volume: np.ndarray, new_shape: Sequence[int]) -> np.ndarray:
    """Resample a label map (Z, Y, X) to a shape: the label with the highest linearly resized indicator wins.

    Where the old voxels around a new one agree there is nothing to vote on: only new voxels at borders are computed.
    """
    cells = [_cells(size, new_size) for size, new_size in zip(volume.shape, new_shape, strict=True)]
    voted = volume
    for axis, (size, new_size) in enumerate(zip(volume.shape, new_shape, strict=True)):
        if size != new_size:
            voted = voted.take(_nearest(size, new_size), axis)
    changing = [size != new_size for size, new_size in zip(volume.shape, new_shape, strict=True)]
    sides = list(product(*((0, 1) if changes else (0,) for changes in changing)))
    for z, (before, after) in enumerate(zip(cells[0][0], cells[0][1], strict=True)):
        mixed = _mixed(volume[before], volume[after] if changing[0] else volume[before], changing[1:])
        if not mixed.any():
            continue
        y, x = np.nonzero(mixed.take(cells[1][0], 0).take(cells[2][0], 1))
        places = np.full(len(y), z), y, x
        labels = np.stack(
            [
                volume[tuple(cell[side][place] for cell, side, place in zip(cells, corner, places, strict=True))]
                for corner in sides
            ]
        )
        weights = np.stack([_weight(cells, changing, corner, places) for corner in sides])
        scores = np.stack([np.where(labels == label, weights, 0).sum(axis=0) for label in labels])
        best = scores.max(axis=0) - _TIE
        nearest = voted[places]
        lowest = np.where(scores >= best, labels, np.iinfo(labels.dtype).max).min(axis=0)
        nearest_wins = np.where(labels == nearest, scores, 0).max(axis=0) >= best
        voted[places] = np.where(nearest_wins, nearest, lowest)
    return voted


def _mixed(before: np.ndarray, after: np.ndarray, changing: Sequence[bool]) -> np.ndarray:
    """Return for each voxel (Y, X) of two slices whether it and its next neighbours carry more than one label."""
    least, most = np.minimum(before, after), np.maximum(before, after)
    for axis, changes in enumerate(changing):
        if changes:
            here = tuple(slice(None, -1) if axis == each else slice(None) for each in range(2))
            following = tuple(slice(1, None) if axis == each else slice(None) for each in range(2))
            np.minimum(least[here], least[following], out=least[here])
            np.maximum(most[here], most[following], out=most[here])
    return least != most


def _weight(
    cells: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    changing: Sequence[bool],
    corner: Sequence[int],
    places: Sequence[np.ndarray],
) -> np.ndarray:
    """Return the linear weight of one corner of the old voxels around each of the new ones at `places`."""
    weight = np.ones(len(places[0]))
    for (_, _, share), changes, side, place in zip(cells, changing, corner, places, strict=True):
        if changes:
            weight *= share[place] if side else 1 - share[place]
    return weight
