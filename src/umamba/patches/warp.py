"""Compiled loops for a CPU that interpolate the image and the label of a patch in one pass.

Each voxel of the patch falls into a cell of the source. The image takes the weighted mean of the cell's corners, and
the label takes the value with the largest sum of the same weights.
"""

from collections.abc import Sequence

import numba
import numpy as np

from umamba.preprocessing.case import OUTSIDE

UNDECIDED = -2  # marks voxels whose corners have different labels; no label has this value

_compile = numba.njit(nogil=True, cache=True, error_model="numpy")


def resample_patch(
    image_CZYX: np.ndarray, label_CZYX: np.ndarray, matrix: np.ndarray, size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return image (C, *size) and label (1, *size) of a patch, sampled at rotated and scaled positions.

    Args:
        image_CZYX: float32; zero outside.
        label_CZYX: integers; -1 outside, which competes like a label. Of labels with equal weights the one at the first
            corner wins.
        matrix: maps offsets from the patch centre to offsets from the source centre; (3, 3), or (2, 2) for the last two
            axes, while the first is cropped.
        size: (Z, Y, X) of the patch, voxels.
    """
    image = np.empty((len(image_CZYX), *size), image_CZYX.dtype)
    label = np.empty((len(label_CZYX), *size), label_CZYX.dtype)
    if len(matrix) == 2:
        first = (image_CZYX.shape[1] - size[0]) // 2
        planes = [array[:, first : first + size[0]] for array in (image_CZYX, label_CZYX)]
        sources = [np.ascontiguousarray(array).reshape(-1, *array.shape[2:]) for array in planes]
        _resample_planes(*sources, matrix, image.reshape(-1, *size[1:]), label.reshape(-1, *size[1:]))
    else:
        sources = [np.ascontiguousarray(array) for array in (image_CZYX, label_CZYX)]
        _resample_volumes(*sources, matrix, image, label)
    return image, label


@_compile
def _vote(labels, weights):  # type: ignore[no-untyped-def]
    """Return the label with the largest sum of weights, the first of equal ones."""
    best, most = labels[0], -1.0
    for candidate in labels:
        votes = 0.0
        for index in range(len(labels)):
            if labels[index] == candidate:
                votes += weights[index]
        if votes > most:
            best, most = candidate, votes
    return best


@_compile
def _whole_cells(start, step, last, columns):  # type: ignore[no-untyped-def]
    """Return columns [first, end) at which start + column * step is in [0, last) on every axis.

    A column at either end may be missing; callers treat the columns outside the range with the slower general code.
    """
    first, end = 0.0, float(columns)
    for axis in range(len(start)):
        if step[axis] != 0.0:
            one, other = -start[axis] / step[axis], (last[axis] - start[axis]) / step[axis]
            first, end = max(first, min(one, other) + 1), min(end, max(one, other) - 1)
        elif not 0 <= start[axis] < last[axis]:
            end = 0.0
    begin = int(np.ceil(min(first, float(columns))))
    return begin, max(begin, int(np.floor(end)))


@_compile
def _resample_planes(images, labels, matrix, image_out, label_out):  # type: ignore[no-untyped-def]
    """Resample planes (P, Y, X); all of them are sampled at the same positions, which are computed once."""
    height, width = images.shape[1:]
    rows, columns = image_out.shape[1:]
    ys, xs = np.empty((rows, columns), np.int32), np.empty((rows, columns), np.int32)
    fys, fxs = np.empty((rows, columns), np.float32), np.empty((rows, columns), np.float32)
    cells = np.zeros((rows, columns), np.uint32)  # unsigned, because signed indices are checked for being negative
    spans = np.empty((rows, 2), np.int64)
    start, last = np.empty(2), np.array([height - 1.0, width - 1.0])
    for row in range(rows):
        for axis in range(2):
            centred = matrix[axis, 0] * (row - (rows - 1) / 2) - matrix[axis, 1] * (columns - 1) / 2
            start[axis] = centred + last[axis] / 2
        for column in range(columns):
            y, x = start[0] + matrix[0, 1] * column, start[1] + matrix[1, 1] * column
            ys[row, column], xs[row, column] = int(np.floor(y)), int(np.floor(x))
            fys[row, column], fxs[row, column] = y - ys[row, column], x - xs[row, column]
        spans[row] = _whole_cells(start, matrix[:, 1], last, columns)
        for column in range(spans[row, 0], spans[row, 1]):
            cells[row, column] = ys[row, column] * width + xs[row, column]
    right, below = np.uint32(1), np.uint32(width)
    for plane in range(len(images)):
        flat = images[plane].ravel()
        for row in range(rows):
            first, end = spans[row]
            for column in range(first, end):
                cell, fy, fx = cells[row, column], fys[row, column], fxs[row, column]
                upper = flat[cell] + fx * (flat[cell + right] - flat[cell])
                lower = flat[cell + below] + fx * (flat[cell + below + right] - flat[cell + below])
                image_out[plane, row, column] = upper + fy * (lower - upper)
            for begin, stop in ((0, first), (end, columns)):
                for column in range(begin, stop):
                    y, x, fy, fx = ys[row, column], xs[row, column], fys[row, column], fxs[row, column]
                    image_out[plane, row, column] = 0
                    if not (-1 <= y < height and -1 <= x < width):
                        continue
                    for corner in range(4):
                        at_y, at_x = y + corner // 2, x + corner % 2
                        if 0 <= at_y < height and 0 <= at_x < width:
                            weight = (fy if corner // 2 else 1 - fy) * (fx if corner % 2 else 1 - fx)
                            image_out[plane, row, column] += weight * images[plane, at_y, at_x]
    corners, weights = np.empty(4, labels.dtype), np.empty(4, np.float32)
    for plane in range(len(labels)):
        flat = labels[plane].ravel()
        for row in range(rows):
            (first, end), mixed = spans[row], False
            for column in range(first, end):
                cell = cells[row, column]
                one = flat[cell]
                same = (one == flat[cell + right]) & (one == flat[cell + below]) & (one == flat[cell + below + right])
                label_out[plane, row, column] = one if same else UNDECIDED
                mixed |= not same
            for begin, stop in ((0, first), (first if mixed else end, end), (end, columns)):
                for column in range(begin, stop):
                    if first <= column < end and label_out[plane, row, column] != UNDECIDED:
                        continue
                    y, x, fy, fx = ys[row, column], xs[row, column], fys[row, column], fxs[row, column]
                    if not (-1 <= y < height and -1 <= x < width):
                        label_out[plane, row, column] = OUTSIDE
                        continue
                    for corner in range(4):
                        at_y, at_x = y + corner // 2, x + corner % 2
                        inside = 0 <= at_y < height and 0 <= at_x < width
                        corners[corner] = labels[plane, at_y, at_x] if inside else OUTSIDE
                        weights[corner] = (fy if corner // 2 else 1 - fy) * (fx if corner % 2 else 1 - fx)
                    label_out[plane, row, column] = _vote(corners, weights)


@_compile
def _resample_volumes(images, labels, matrix, image_out, label_out):  # type: ignore[no-untyped-def]
    """Resample volumes (C, Z, Y, X)."""
    depth, height, width = images.shape[1:]
    slices, rows, columns = image_out.shape[1:]
    corners, weights = np.empty(8, labels.dtype), np.empty(8, np.float32)
    zs, ys, xs = np.empty(columns, np.int64), np.empty(columns, np.int64), np.empty(columns, np.int64)
    fzs, fys, fxs = np.empty(columns, np.float32), np.empty(columns, np.float32), np.empty(columns, np.float32)
    cells = np.empty(columns, np.uint32)  # unsigned, as in _resample_planes
    right, below, behind = np.uint32(1), np.uint32(width), np.uint32(height * width)
    start, last = np.empty(3), np.array([depth - 1.0, height - 1.0, width - 1.0])
    for number in range(slices * rows):
        slice_, row = number // rows, number % rows
        for axis in range(3):
            start[axis] = (
                matrix[axis, 0] * (slice_ - (slices - 1) / 2)
                + matrix[axis, 1] * (row - (rows - 1) / 2)
                - matrix[axis, 2] * (columns - 1) / 2
                + last[axis] / 2
            )
        for column in range(columns):
            z, y, x = (
                start[0] + matrix[0, 2] * column,
                start[1] + matrix[1, 2] * column,
                start[2] + matrix[2, 2] * column,
            )
            zs[column], ys[column], xs[column] = int(np.floor(z)), int(np.floor(y)), int(np.floor(x))
            fzs[column], fys[column], fxs[column] = z - zs[column], y - ys[column], x - xs[column]
        first, end = _whole_cells(start, matrix[:, 2], last, columns)
        for column in range(first, end):
            cells[column] = (zs[column] * height + ys[column]) * width + xs[column]
        for channel in range(len(images)):
            flat, out = images[channel].ravel(), image_out[channel, slice_, row]
            for column in range(first, end):
                cell, fz, fy, fx = cells[column], fzs[column], fys[column], fxs[column]
                a = flat[cell] + fx * (flat[cell + right] - flat[cell])
                b = flat[cell + below] + fx * (flat[cell + below + right] - flat[cell + below])
                cell += behind
                c = flat[cell] + fx * (flat[cell + right] - flat[cell])
                d = flat[cell + below] + fx * (flat[cell + below + right] - flat[cell + below])
                upper, lower = a + fy * (b - a), c + fy * (d - c)
                out[column] = upper + fz * (lower - upper)
        for channel in range(len(labels)):
            flat, out = labels[channel].ravel(), label_out[channel, slice_, row]
            for column in range(first, end):
                cell = cells[column]
                one = flat[cell]
                same = (one == flat[cell + right]) & (one == flat[cell + below]) & (one == flat[cell + below + right])
                cell += behind
                same &= (one == flat[cell]) & (one == flat[cell + right])
                same &= (one == flat[cell + below]) & (one == flat[cell + below + right])
                out[column] = one if same else UNDECIDED
        for column in range(columns):
            within = first <= column < end
            undecided = not within
            for channel in range(len(labels)):
                undecided |= label_out[channel, slice_, row, column] == UNDECIDED
            if not undecided:
                continue
            z, y, x, fz, fy, fx = zs[column], ys[column], xs[column], fzs[column], fys[column], fxs[column]
            if not (-1 <= z < depth and -1 <= y < height and -1 <= x < width):
                image_out[:, slice_, row, column] = 0
                label_out[:, slice_, row, column] = OUTSIDE
                continue
            for corner in range(8):
                weight = (fz if corner // 4 else 1 - fz) * (fy if corner // 2 % 2 else 1 - fy)
                weights[corner] = weight * (fx if corner % 2 else 1 - fx)
            for channel in range(0 if within else len(images)):
                value = np.float32(0)
                for corner in range(8):
                    at_z, at_y, at_x = z + corner // 4, y + corner // 2 % 2, x + corner % 2
                    if 0 <= at_z < depth and 0 <= at_y < height and 0 <= at_x < width:
                        value += weights[corner] * images[channel, at_z, at_y, at_x]
                image_out[channel, slice_, row, column] = value
            for channel in range(len(labels)):
                for corner in range(8):
                    at_z, at_y, at_x = z + corner // 4, y + corner // 2 % 2, x + corner % 2
                    inside = 0 <= at_z < depth and 0 <= at_y < height and 0 <= at_x < width
                    corners[corner] = labels[channel, at_z, at_y, at_x] if inside else OUTSIDE
                label_out[channel, slice_, row, column] = _vote(corners, weights)
