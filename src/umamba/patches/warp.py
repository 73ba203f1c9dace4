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
    image_CZYX: np.ndarray,
    label_CZYX: np.ndarray,
    matrix: np.ndarray,
    size: Sequence[int],
    inside: tuple[Sequence[int], Sequence[int]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return image (C, *size) and label (1, *size) of a patch, sampled at rotated and scaled positions.

    Args:
        image_CZYX: float32; zero outside.
        label_CZYX: integers; -1 outside, which competes like a label. Of labels with equal weights the one at the first
            corner wins.
        matrix: maps offsets from the patch centre to offsets from the source centre; (3, 3), or (2, 2) for the last two
            axes, while the first is cropped.
        size: (Z, Y, X) of the patch, voxels.
        inside: first voxel (3,) of the part of the source outside which image and label are 0 and -1, and the one after
            its last. A rotation about three axes does not look at the rest. None: the whole source.
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
        box = ((0, 0, 0), image_CZYX.shape[1:]) if inside is None else inside
        _resample_volumes(*sources, matrix, image, label, *(np.array(edge) for edge in box))
    return image, label


@_compile
def _vote(labels, weights):  # type: ignore[no-untyped-def]
    """Return the label with the largest sum of weights, the first of equal ones."""
    one = other = labels[0]
    for label in labels:
        if other == one:
            other = label
    mine, theirs, several = 0.0, 0.0, False
    for index in range(len(labels)):
        mine += weights[index] if labels[index] == one else 0.0
        theirs += weights[index] if labels[index] == other else 0.0
        several |= labels[index] != one and labels[index] != other
    if not several:
        return other if theirs > mine else one
    best, most = one, mine
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
    stop = max(begin, int(np.floor(end)))
    while begin < stop and not _is_whole(start, step, last, begin):  # a step so small that it moves nothing
        begin += 1
    while begin < stop and not _is_whole(start, step, last, stop - 1):
        stop -= 1
    return begin, stop


@_compile
def _is_whole(start, step, last, column):  # type: ignore[no-untyped-def]
    """Return whether the position of a column is in [0, last) on every axis."""
    whole = True
    for axis in range(len(start)):
        whole &= 0 <= start[axis] + step[axis] * column < last[axis]
    return whole


@_compile
def _near_columns(start, step, low, high, columns):  # type: ignore[no-untyped-def]
    """Return columns [first, end) whose cells may touch the box of voxels [low, high); all others lie outside it.

    Half a voxel more on each side, because positions are rounded.
    """
    first, end = 0.0, float(columns)
    for axis in range(len(start)):
        nearest, farthest = low[axis] - 1.5, high[axis] + 0.5
        if step[axis] != 0.0:
            one, other = (nearest - start[axis]) / step[axis], (farthest - start[axis]) / step[axis]
            first, end = max(first, min(one, other)), min(end, max(one, other) + 1)
        elif not nearest <= start[axis] <= farthest:
            end = 0.0
        if low[axis] >= high[axis]:
            end = 0.0
    begin = int(np.floor(min(first, float(columns))))
    return begin, max(begin, int(np.ceil(end)))


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
        spans[row, 0], spans[row, 1] = _whole_cells(start, matrix[:, 1], last, columns)
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
def _weigh_corners(fz, fy, fx, weights):  # type: ignore[no-untyped-def]
    """Write the weights of the eight corners of a cell, computed in float64."""
    z_far, y_far, x_far = np.float64(fz), np.float64(fy), np.float64(fx)
    for corner_z, z in enumerate((1 - z_far, z_far)):
        for corner_y, y in enumerate((1 - y_far, y_far)):
            weights[4 * corner_z + 2 * corner_y] = z * y * (1 - x_far)
            weights[4 * corner_z + 2 * corner_y + 1] = z * y * x_far


@_compile
def _resample_volumes(images, labels, matrix, image_out, label_out, low, high):  # type: ignore[no-untyped-def]
    """Resample volumes (C, Z, Y, X), which are 0 and OUTSIDE except in the box of voxels [low, high)."""
    depth, height, width = images.shape[1:]
    slices, rows, columns = image_out.shape[1:]
    corners, weights = np.empty(8, labels.dtype), np.empty(8, np.float32)
    fzs, fys, fxs = np.empty(columns, np.float32), np.empty(columns, np.float32), np.empty(columns, np.float32)
    cells = np.empty(columns, np.uint32)  # unsigned, as in _resample_planes
    right, below, behind = np.uint32(1), np.uint32(width), np.uint32(height * width)
    start, last, step = np.empty(3), np.array([depth - 1.0, height - 1.0, width - 1.0]), matrix[:, 2].copy()
    step_z, step_y, step_x = step[0], step[1], step[2]
    flat_images, flat_labels = images.reshape(len(images), -1), labels.reshape(len(labels), -1)
    for number in range(slices * rows):
        slice_, row = number // rows, number % rows
        for axis in range(3):
            start[axis] = (
                matrix[axis, 0] * (slice_ - (slices - 1) / 2)
                + matrix[axis, 1] * (row - (rows - 1) / 2)
                - matrix[axis, 2] * (columns - 1) / 2
                + last[axis] / 2
            )
        start_z, start_y, start_x = start[0], start[1], start[2]
        begin, stop = _near_columns(start, step, low, high, columns)
        first, end = _whole_cells(start, step, last, columns)
        first = min(max(first, begin), stop)
        end = min(max(end, first), stop)
        for column in range(first, end):
            along_z, along_y, along_x = start_z + step_z * column, start_y + step_y * column, start_x + step_x * column
            low_z, low_y, low_x = np.floor(along_z), np.floor(along_y), np.floor(along_x)
            cells[column] = int((low_z * height + low_y) * width + low_x)
            fzs[column], fys[column], fxs[column] = along_z - low_z, along_y - low_y, along_x - low_x
        for channel in range(len(images)):
            flat, out = flat_images[channel], image_out[channel, slice_, row]
            out[:begin] = 0
            out[stop:] = 0
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
            flat, out, mixed = flat_labels[channel], label_out[channel, slice_, row], False
            out[:begin] = OUTSIDE
            out[stop:] = OUTSIDE
            for column in range(first, end):
                cell = cells[column]
                one = flat[cell]
                same = (one == flat[cell + right]) & (one == flat[cell + below]) & (one == flat[cell + below + right])
                cell += behind
                same &= (one == flat[cell]) & (one == flat[cell + right])
                same &= (one == flat[cell + below]) & (one == flat[cell + below + right])
                out[column] = one if same else UNDECIDED
                mixed |= not same
            for column in range(first, end if mixed else first):
                if out[column] == UNDECIDED:
                    cell = cells[column]
                    corners[0], corners[1] = flat[cell], flat[cell + right]
                    corners[2], corners[3] = flat[cell + below], flat[cell + below + right]
                    cell += behind
                    corners[4], corners[5] = flat[cell], flat[cell + right]
                    corners[6], corners[7] = flat[cell + below], flat[cell + below + right]
                    _weigh_corners(fzs[column], fys[column], fxs[column], weights)
                    out[column] = _vote(corners, weights)
        for edge, stop_edge in ((begin, first), (end, stop)):
            for column in range(edge, stop_edge):
                along_z, along_y, along_x = (
                    start_z + step_z * column,
                    start_y + step_y * column,
                    start_x + step_x * column,
                )
                z, y, x = int(np.floor(along_z)), int(np.floor(along_y)), int(np.floor(along_x))
                if not (-1 <= z < depth and -1 <= y < height and -1 <= x < width):
                    image_out[:, slice_, row, column] = 0
                    label_out[:, slice_, row, column] = OUTSIDE
                    continue
                _weigh_corners(np.float32(along_z - z), np.float32(along_y - y), np.float32(along_x - x), weights)
                for channel in range(len(images)):
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
