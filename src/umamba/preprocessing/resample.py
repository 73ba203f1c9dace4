"""Resample images and label maps to another voxel grid by nnU-Net's rule (2.8.1).

The results are those of nnU-Net's `default_resampling` with scikit-image's `resize` (edge mode, half-pixel centres, no
anti-aliasing, result clipped to the range of the input), and of batchgenerators 0.25.5 for label maps. A spline resize
is linear and separable: along each axis it is the product with a matrix that includes the spline prefilter and is
nearly banded. This module multiplies with these bands in float32, axis after axis in the order of least work, one
channel at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from umamba.planning.rules import ANISOTROPY

_ROWS = 16  # output samples of one block of a band matrix; with 32, the products take several times longer
# Input samples on each side of a block that influence it, by spline order. The response of the cubic prefilter falls
# to 0.27 of its value per sample, so that it is below 1e-9 after 16 samples.
_MARGIN = {1: 2, 3: 16}
_TIE = 1e-6  # scores of labels that differ by less count as equal, because of rounding


@dataclass(frozen=True)
class _Block:
    """A block of a band matrix: output[rows] = weights @ input[columns]."""

    rows: slice
    columns: slice
    weights: np.ndarray


_Bands = list[_Block] | None  # the matrix of one axis; None: the axis is not resized


def resampled_shape(
    shape: Sequence[int], current_spacing: Sequence[float], target_spacing: Sequence[float]
) -> tuple[int, ...]:
    """Return the size of an image after resampling: round(current spacing / target spacing * size), halves to even.

    Args:
        shape: current size in voxels.
        current_spacing: in mm.
        target_spacing: in mm.
    """
    return tuple(
        round(current / target * size)
        for current, target, size in zip(current_spacing, target_spacing, shape, strict=True)
    )


def separate_axis(current_spacing: Sequence[float], target_spacing: Sequence[float]) -> int | None:
    """Return the axis that is resampled separately by nearest neighbour, or None.

    This is the coarsest axis of the current spacing, if it is more than 3 times as coarse as the finest axis. Otherwise
    it is the coarsest axis of the target spacing by the same rule. No axis is separate if several are the coarsest.

    Args:
        current_spacing: in mm.
        target_spacing: in mm.
    """
    for spacing in (current_spacing, target_spacing):
        coarsest = max(spacing)
        if coarsest / min(spacing) > ANISOTROPY:
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
    """Resample an image with splines and clip the result to the range of the input.

    If the spacings make an axis separate (see `separate_axis`), each slice is resized in its plane, and the nearest
    slice is taken along that axis.

    Args:
        array: (C, Z, Y, X); each channel is resampled alone.
        new_shape: size (Z, Y, X) of the result in voxels.
        current_spacing: (Z, Y, X) in mm.
        target_spacing: (Z, Y, X) in mm.
        order: order of the splines, 1 or 3.

    Returns:
        (C, *new_shape) float32.

    Example:
        >>> slices = np.array([[[[0.0, 1.0, 2.0, 3.0]]]])
        >>> resample_image(slices, (1, 1, 2), (1, 1, 1), (1, 1, 2), order=1)
        array([[[[0.5, 2.5]]]], dtype=float32)
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


def resample_label(
    array: np.ndarray, new_shape: Sequence[int], current_spacing: Sequence[float], target_spacing: Sequence[float]
) -> np.ndarray:
    """Resample label maps.

    The indicator of each label is resampled linearly, and the label with the highest value wins. If several are equal,
    the label of the nearest voxel wins if it is among them, otherwise the lowest of them. A separate axis is treated
    as in `resample_image`.

    Args:
        array: (C, Z, Y, X) integers; each channel is resampled alone.
        new_shape: size (Z, Y, X) of the result in voxels.
        current_spacing: (Z, Y, X) in mm.
        target_spacing: (Z, Y, X) in mm.

    Returns:
        (C, *new_shape) in the dtype of `array`.
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
    """Return the centres of the new samples in units of the old samples."""
    return size / new_size * (np.arange(new_size) + 0.5) - 0.5


def _nearest(size: int, new_size: int) -> np.ndarray:
    """Return the nearest old sample of each new sample; of two equally near ones, the later."""
    return np.clip(np.floor(_coordinates(size, new_size) + 0.5).astype(np.intp), 0, size - 1)


def _early_nearest(
    volume: np.ndarray, new_shape: Sequence[int], separate: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Take the nearest slices along the separate axis now if that makes fewer of them, because it saves work.

    Otherwise return the volume unchanged, with the indices of the slices to take after the resize.
    """
    if separate is None or volume.shape[separate] == new_shape[separate]:
        return volume, None
    indices = _nearest(volume.shape[separate], new_shape[separate])
    if new_shape[separate] < volume.shape[separate]:
        return volume.take(indices, separate), None
    return volume, indices


def _band_matrix(size: int, new_size: int, order: int) -> list[_Block]:
    """Return the matrix (new_size, size) of a spline resize along one axis, as blocks around its diagonal."""
    coordinates = _coordinates(size, new_size)
    blocks = []
    for start in range(0, new_size, _ROWS):
        rows = slice(start, min(start + _ROWS, new_size))
        first = max(0, math.floor(coordinates[rows][0]) - _MARGIN[order])
        stop = min(size, math.ceil(coordinates[rows][-1]) + _MARGIN[order] + 1)
        weights = _spline_weights(coordinates[rows] - first, stop - first, order)
        blocks.append(_Block(rows, slice(first, stop), weights.astype(np.float32)))
    return blocks


def _spline_weights(places: np.ndarray, size: int, order: int) -> np.ndarray:
    """Return the weights (places, size) of samples at places between them, which are repeated beyond both ends.

    The spline through samples f has the coefficients c with (c[i-1] + 4 c[i] + c[i+1]) / 6 = f[i], if it is cubic, and
    c = f, if it is linear; its value is the sum of c times the B-splines (Unser 1999, "Splines: a perfect fit for
    signal and image processing").
    """
    beyond = _MARGIN[order]
    samples = np.arange(-beyond, size + beyond)
    distance = np.abs(places[:, None] - samples)
    if order == 1:
        weights = np.maximum(1 - distance, 0)
    else:
        near, far = 2 / 3 - distance**2 * (1 - distance / 2), np.maximum(2 - distance, 0) ** 3 / 6
        system = np.eye(len(samples)) * 4 + np.eye(len(samples), k=1) + np.eye(len(samples), k=-1)
        system[0, 0] = system[-1, -1] = 5  # the coefficients are repeated beyond the ends, too
        weights = np.linalg.solve(system / 6, np.where(distance < 1, near, far).T).T
    repeated = np.zeros((len(samples), size))
    repeated[np.arange(len(samples)), samples.clip(0, size - 1)] = 1
    product: np.ndarray = weights @ repeated
    return product


def _work(shape: Sequence[int], bands: Sequence[_Bands], axes: Sequence[int]) -> int:
    """Return the number of multiplications of a resize along these axes in this order."""
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
    """Return the old samples before and after each new sample along an axis, and the linear weight of the latter."""
    coordinates = _coordinates(size, new_size)
    before = np.floor(coordinates).astype(np.intp)
    return before.clip(0, size - 1), (before + 1).clip(0, size - 1), coordinates - before


def _vote(volume: np.ndarray, new_shape: Sequence[int]) -> np.ndarray:
    """Resample a label map (Z, Y, X): the label with the highest linearly resized indicator wins.

    A new voxel between old voxels of one label gets that label, so only the voxels at borders are computed.
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
    """Return for each pixel of two slices (Y, X) whether it and its next neighbours have more than one label."""
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
    """Return the linear weight of one corner of the old voxels around each new voxel at `places`."""
    weight = np.ones(len(places[0]))
    for (_, _, share), changes, side, place in zip(cells, changing, corner, places, strict=True):
        if changes:
            weight *= share[place] if side else 1 - share[place]
    return weight
