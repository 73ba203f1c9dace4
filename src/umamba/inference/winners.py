"""The label of each voxel of a large image, from logits on the networks' grids, which are resampled at few voxels only.

A logit between grid voxels is a mean of the logits around it. A head that wins at all of them therefore wins between
them, too (of equal heads the first one; with regions the last one above zero), so that only voxels at borders between
winners are interpolated. If the same head wins in several networks, it also wins in the mean of their probabilities.
The code runs in several threads and holds a few rows of all heads in float32 at a time.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numba
import numpy as np
import torch

from umamba.inference.resize import AxisMap, VoxelBox

if TYPE_CHECKING:
    from umamba.inference.canvas import Slab

_BYTES = 8 << 20  # of the float32 copy that a thread works on, if a single row of cells does not need more
_PLANES = 16  # planes of the image that are decided from one copy
_ROWS = 64  # rows of the image
_THREADS = 16  # at most, so that their copies keep within what `memory` reserves for deciding
_MIXED = 255  # marks voxels that must be interpolated
_compile = numba.njit(nogil=True, cache=True, error_model="numpy")


def paint_winners(
    painted: np.ndarray, slabs: Sequence["Slab"], box: VoxelBox, labels: np.ndarray, *, regions: bool
) -> bool:
    """Paint the label of the head that wins at each voxel of a box of the image.

    Args:
        painted: receives the labels: uint8 of the box's shape.
        slabs: the logits of each network for the box, on the CPU, of any floating type; at most 254 heads.
        box: of the image; its last axis whole.
        labels: uint8, the label of each head; with regions those of no head and of each head.
        regions: False: the head of the highest logit wins, the first one of equal logits. True: the last head whose
            logit is above zero, or no head. Of several networks the mean of the probabilities decides.

    Returns:
        Whether all logits are finite; if not, the labels mean nothing.
    """
    planes, rows, _ = box
    steps = _steps(slabs[0], box)
    blocks = [
        (slice(z, min(z + steps[0], planes.stop)), slice(y, min(y + steps[1], rows.stop)), box[2])
        for z in range(planes.start, planes.stop, steps[0])
        for y in range(rows.start, rows.stop, steps[1])
    ]

    def decide(block: VoxelBox) -> bool:
        into = painted[
            tuple(
                slice(part.start - whole.start, part.stop - whole.start) for part, whole in zip(block, box, strict=True)
            )
        ]
        if len(slabs) == 1:
            return bool(_decide(*_grid(slabs[0], block), labels, regions, True, into))  # type: ignore[call-arg]
        return _decide_together([_grid(slab, block) for slab in slabs], labels, regions, into)

    with ThreadPoolExecutor(min(torch.get_num_threads(), len(blocks), _THREADS)) as pool:
        return all(list(pool.map(decide, blocks)))


def _grid(slab: "Slab", block: VoxelBox) -> tuple[np.ndarray, ...]:
    """Return the logits around a block (heads, z, y, X) float32, and where the block's samples lie along each axis."""
    needed = [own.needed(extent) for own, extent in zip(slab.maps[:2], block, strict=False)]
    inside = [slice(part.start - start, part.stop - start) for part, start in zip(needed, slab.first, strict=True)]
    logits = slab.logits[(slice(None), *inside)]
    copy = np.empty(logits.shape, dtype=np.float32)
    torch.from_numpy(copy).copy_(logits)
    starts = (*(part.start for part in needed), 0)
    along = [_samples(own, extent, start) for own, extent, start in zip(slab.maps, block, starts, strict=True)]
    return (copy, *along[0], *along[1], *along[2])


def _decide_together(
    grids: Sequence[tuple[np.ndarray, ...]], labels: np.ndarray, regions: bool, painted: np.ndarray
) -> bool:
    """Paint a block from the logits of several networks; return whether all are finite."""
    numbers = np.arange(256, dtype=np.uint8)
    agreed, own = np.empty((2, *painted.shape), dtype=np.uint8)
    for position, grid in enumerate(grids):
        if not _decide(*grid, numbers, regions, False, own if position else agreed):  # type: ignore[call-arg]
            return False
        if position:
            agreed[agreed != own] = _MIXED
    left = np.nonzero(agreed == _MIXED)
    if len(left[0]):
        heads = len(grids[0][0])
        total, logits = torch.zeros((heads, len(left[0]))), np.empty((heads, len(left[0])), dtype=np.float32)
        for grid in grids:
            _sample(*grid, *left, logits)  # type: ignore[call-arg]
            values = torch.from_numpy(logits)
            total += values.sigmoid() if regions else values.softmax(0)
        mean = (total / len(grids)).numpy()
        if regions:
            above = mean > 0.5
            agreed[left] = np.where(above.any(axis=0), heads - above[::-1].argmax(axis=0), 0)
        else:
            agreed[left] = mean.argmax(axis=0)
    painted[...] = labels[agreed]
    return True


def _steps(slab: "Slab", box: VoxelBox) -> tuple[int, int]:
    """Return how many planes and rows of a box are decided at a time."""
    planes, rows = (extent.stop - extent.start for extent in box[:2])
    row_bytes = 4 * slab.logits.shape[0] * slab.logits.shape[3]
    steps = [min(_PLANES, planes), min(_ROWS, rows)]
    while row_bytes * _cells(slab.maps[0], steps[0]) * _cells(slab.maps[1], steps[1]) > _BYTES and max(steps) > 1:
        longer = 0 if steps[0] > 1 and steps[0] * 4 >= steps[1] else 1
        steps[longer] = max(1, steps[longer] // 2)
    return steps[0], steps[1]


def _cells(axis_map: AxisMap, samples: int) -> int:
    """Return at least how many samples of the grid lie around samples of the image."""
    return -(-axis_map.size * samples // len(axis_map.low)) + 2


def _samples(axis_map: AxisMap, extent: slice, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the grid samples before and after those of an extent, counted from `start`, and the latter's share."""
    low, high = (axis_map.low[extent] - start).numpy(), (axis_map.high[extent] - start).numpy()
    return low.astype(np.int32), high.astype(np.int32), axis_map.share[extent].numpy()


@_compile
def _winners_of_row(grid, z, y, regions, winners, best):  # type: ignore[no-untyped-def]
    """Fill a row with the winners of the grid, counted from 1 with regions; return whether a logit is not finite."""
    bad = False
    for x in range(len(winners)):
        winners[x], best[x] = 0, 0 if regions else -np.inf
    for head in range(grid.shape[0]):
        values = grid[head, z, y]
        number = np.uint8(head + 1 if regions else head)
        for x in range(len(winners)):
            value = values[x]
            bad |= not abs(value) < np.inf
            if value > best[x]:
                winners[x] = number
                if not regions:
                    best[x] = value
    return bad


@_compile
def _interpolate(grid, cell, across, first, stop, labels, regions, row, best, line):  # type: ignore[no-untyped-def]
    """Paint the voxels from `first` to `stop` of a row of the image from the logits around them."""
    z0, z1, part_z, y0, y1, part_y = cell
    low_x, high_x, share_x = across
    for x in range(first, stop):
        line[x], best[x] = labels[0], 0 if regions else -np.inf
    for head in range(grid.shape[0]):
        a, b, c, d = grid[head, z0, y0], grid[head, z0, y1], grid[head, z1, y0], grid[head, z1, y1]
        for x in range(low_x[first], high_x[stop - 1] + 1):
            before = a[x] + (c[x] - a[x]) * part_z
            after = b[x] + (d[x] - b[x]) * part_z
            row[x] = before + (after - before) * part_y
        label = labels[head + 1 if regions else head]
        for x in range(first, stop):
            value = row[low_x[x]] + (row[high_x[x]] - row[low_x[x]]) * share_x[x]
            if value > best[x]:
                line[x] = label
                if not regions:
                    best[x] = value


_INDEX, _SHARE = "int32[::1]", "float32[::1]"
_AXIS = f"{_INDEX}, {_INDEX}, {_SHARE}"


@numba.njit(
    f"boolean(float32[:,:,:,::1], {_AXIS}, {_AXIS}, {_AXIS}, uint8[::1], boolean, boolean, uint8[:,:,:])",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def _decide(  # type: ignore[no-untyped-def]
    grid, low_z, high_z, share_z, low_y, high_y, share_y, low_x, high_x, share_x, labels, regions, interpolate, painted
):
    """Paint a block, with _MIXED where nothing is interpolated; return whether all logits are finite."""
    _, depth, height, width = grid.shape
    winners = np.empty((depth, height, width), np.uint8)
    row, best = np.empty(width, np.float32), np.empty(max(width, len(low_x)), np.float32)
    for z in range(depth):
        for y in range(height):
            if _winners_of_row(grid, z, y, regions, winners[z, y], best):
                return False
    mixed = np.uint8(_MIXED)
    common, found = np.empty(width, np.uint8), np.empty(len(low_x), np.uint8)
    line = np.empty(len(low_x), np.uint8)
    for z in range(len(low_z)):
        z0, z1 = low_z[z], high_z[z]
        for y in range(len(low_y)):
            y0, y1 = low_y[y], high_y[y]
            if y == 0 or y0 != low_y[y - 1] or y1 != high_y[y - 1]:
                for x in range(width):
                    one = winners[z0, y0, x]
                    same = (one == winners[z0, y1, x]) & (one == winners[z1, y0, x]) & (one == winners[z1, y1, x])
                    common[x] = one if same else mixed
                for x in range(len(low_x)):
                    one = common[low_x[x]]
                    found[x] = one if one == common[high_x[x]] else mixed
            first = -1  # of consecutive voxels that are to be interpolated
            for x in range(len(low_x) + 1):
                border = x < len(low_x) and found[x] == mixed
                if border and first < 0:
                    first = x
                elif not border and first >= 0:
                    if interpolate:
                        cell = (z0, z1, share_z[z], y0, y1, share_y[y])
                        _interpolate(grid, cell, (low_x, high_x, share_x), first, x, labels, regions, row, best, line)
                    else:
                        line[first:x] = mixed
                    first = -1
                if x < len(low_x) and not border:
                    line[x] = labels[found[x]]
            for x in range(line.size):  # a slice assignment would compile the text of its error, which takes seconds
                painted[z, y, x] = line[x]
    return True


@numba.njit(
    f"void(float32[:,:,:,::1], {_AXIS}, {_AXIS}, {_AXIS}, int64[:], int64[:], int64[:], float32[:,::1])",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def _sample(  # type: ignore[no-untyped-def]
    grid, low_z, high_z, share_z, low_y, high_y, share_y, low_x, high_x, share_x, planes, rows, columns, values
):
    """Interpolate the logits of all heads at some voxels of a block."""
    for head in range(grid.shape[0]):
        volume = grid[head]
        for place in range(len(planes)):
            z, y, x = planes[place], rows[place], columns[place]
            z0, z1, y0, y1 = low_z[z], high_z[z], low_y[y], high_y[y]
            part_z, part_y = share_z[z], share_y[y]
            before, after = low_x[x], high_x[x]
            first = volume[z0, y0, before] + (volume[z1, y0, before] - volume[z0, y0, before]) * part_z
            last = volume[z0, y1, before] + (volume[z1, y1, before] - volume[z0, y1, before]) * part_z
            left = first + (last - first) * part_y
            first = volume[z0, y0, after] + (volume[z1, y0, after] - volume[z0, y0, after]) * part_z
            last = volume[z0, y1, after] + (volume[z1, y1, after] - volume[z0, y1, after]) * part_z
            right = first + (last - first) * part_y
            values[head, place] = left + (right - left) * share_x[x]
