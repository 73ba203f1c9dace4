"""The winning head of each voxel of an image, from logits on the network's grid: linear resampling without the work.

A logit between grid voxels is a mean of the logits around it. A head that wins at all of them therefore wins between
them, too (of equal heads the first one; with regions the last one above zero), so that only voxels at borders between
winners are interpolated. The code runs in several threads and holds a few rows of all heads in float32 at a time.
"""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from umamba.inference.resize import AxisMap, AxisMaps, VoxelBox

_BYTES = 8 << 20  # of the float32 copy that a thread works on, if a single row of cells does not need more
_PLANES = 16  # planes of the image that are decided from one copy
_ROWS = 64  # rows of the image
MOST_HEADS = 254  # so that the heads and one more number fit into a byte
_compile = numba.njit(nogil=True, cache=True, error_model="numpy")


def paint_winners(
    painted: np.ndarray,
    logits: Tensor,
    first: tuple[int, int],
    maps: AxisMaps,
    box: VoxelBox,
    labels: np.ndarray,
    *,
    regions: bool,
) -> bool:
    """Paint the label of the head that wins at each voxel of a box of the image.

    Args:
        painted: receives the labels: uint8 of the box's shape.
        logits: (heads, z, y, X) on the CPU, of any floating type: what the box needs of the network's grid, the last
            axis whole. At most MOST_HEADS heads.
        first: the row and the column of the grid at which they begin.
        maps: from the whole grid to the image.
        box: of the image; its last axis whole.
        labels: uint8, the label of each head; with regions those of no head and of each head.
        regions: False: the head of the highest logit wins, the first one of equal logits. True: the last head whose
            logit is above zero, or no head.

    Returns:
        Whether all logits are finite; if not, the labels mean nothing.
    """
    planes, rows, columns = box
    steps = _steps(logits, maps, box)
    blocks = [
        (slice(z, min(z + steps[0], planes.stop)), slice(y, min(y + steps[1], rows.stop)))
        for z in range(planes.start, planes.stop, steps[0])
        for y in range(rows.start, rows.stop, steps[1])
    ]
    across = _samples(maps[2], columns, 0)

    def decide(block: tuple[slice, slice]) -> bool:
        needed = [own.needed(extent) for own, extent in zip(maps, block, strict=False)]
        inside = [slice(extent.start - start, extent.stop - start) for extent, start in zip(needed, first, strict=True)]
        copy = np.empty((len(logits), *map(_length, needed), logits.shape[3]), dtype=np.float32)
        torch.from_numpy(copy).copy_(logits[(slice(None), *inside)])
        into = tuple(
            slice(extent.start - whole.start, extent.stop - whole.start)
            for extent, whole in zip(block, box, strict=False)
        )
        along = [_samples(own, extent, part.start) for own, extent, part in zip(maps, block, needed, strict=False)]
        return bool(_decide(copy, *along[0], *along[1], *across, labels, regions, painted[into]))

    with ThreadPoolExecutor(min(torch.get_num_threads(), len(blocks))) as pool:
        return all(list(pool.map(decide, blocks)))


def _steps(logits: Tensor, maps: AxisMaps, box: VoxelBox) -> tuple[int, int]:
    """Return how many planes and rows of a box are decided at a time."""
    planes, rows = (extent.stop - extent.start for extent in box[:2])
    row_bytes = 4 * logits.shape[0] * logits.shape[3]
    steps = [min(_PLANES, planes), min(_ROWS, rows)]
    while row_bytes * (_cells(maps[0], steps[0])) * (_cells(maps[1], steps[1])) > _BYTES and max(steps) > 1:
        steps[0 if steps[0] * 4 >= steps[1] and steps[0] > 1 else 1] //= 2
        steps = [max(1, step) for step in steps]
    return steps[0], steps[1]


def _cells(axis_map: AxisMap, samples: int) -> int:
    return -(-axis_map.size * samples // len(axis_map.low)) + 2


def _length(extent: slice) -> int:
    return int(extent.stop - extent.start)


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
    f"boolean(float32[:,:,:,::1], {_AXIS}, {_AXIS}, {_AXIS}, uint8[::1], boolean, uint8[:,:,:])",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def _decide(grid, low_z, high_z, share_z, low_y, high_y, share_y, low_x, high_x, share_x, labels, regions, painted):  # type: ignore[no-untyped-def]
    """Paint a block; return whether all logits are finite."""
    _, depth, height, width = grid.shape
    winners = np.empty((depth, height, width), np.uint8)
    row, best = np.empty(width, np.float32), np.empty(max(width, len(low_x)), np.float32)
    for z in range(depth):
        for y in range(height):
            if _winners_of_row(grid, z, y, regions, winners[z, y], best):
                return False
    mixed = np.uint8(MOST_HEADS + 1)
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
                    cell = (z0, z1, share_z[z], y0, y1, share_y[y])
                    _interpolate(grid, cell, (low_x, high_x, share_x), first, x, labels, regions, row, best, line)
                    first = -1
                if x < len(low_x) and not border:
                    line[x] = labels[found[x]]
            painted[z, y] = line
    return True
