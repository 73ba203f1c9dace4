"""InstanceNorm, the sum with a residual, and LeakyReLU compiled for CPUs: bfloat16 feature maps, channels last.

Arrays: x, y, residual and gradients are (B, V, C) for V voxels, the bits of bfloat16 numbers as uint16. Computed in
float32, and sums of sums in float64. The voxels of a sample are cut into blocks of a fixed length, whose partial sums
are added in order, so that results do not depend on the number of threads. A call does the blocks `first` to `stop`,
counted over all samples.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

_compile = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"}, forceinline=True
)


@intrinsic  # type: ignore[untyped-decorator]
def float_of(typing_context: Any, bits: Any) -> Any:
    """Return the float32 that has the bits of a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _bits_of(typing_context: Any, number: Any) -> Any:
    """Return the bits of a float32 as a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


@_compile
def wide(half):
    """Return the float32 of the bits of a bfloat16."""
    return float_of(np.uint32(half) << np.uint32(16))


@_compile
def narrow(number):
    """Return the bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = _bits_of(number)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(np.uint32(0x7FC0) if nan else rounded)


@_compile
def _add_deviations(row, origin, total, squares):
    for c in range(row.shape[0]):
        deviation = wide(row[c]) - origin[c]
        total[c] += deviation
        squares[c] += deviation * deviation


@_compile
def statistics(x, block, first, stop, parts):
    """Fill parts (blocks, 3, C) with each block's first value, and the sum and sum of squares of deviations from it."""
    voxels = x.shape[1]
    blocks = (voxels + block - 1) // block
    for number in range(first, stop):
        sample, begin = number // blocks, number % blocks * block
        origin, total, squares = parts[number, 0], parts[number, 1], parts[number, 2]
        for c in range(x.shape[2]):
            origin[c] = wide(x[sample, begin, c])
        total[:] = 0
        squares[:] = 0
        for v in range(begin, min(voxels, begin + block)):
            _add_deviations(x[sample, v], origin, total, squares)


@_compile
def _normalise_row(row, scale, shift, slope, out):
    for c in range(row.shape[0]):
        z = wide(row[c]) * scale[c] + shift[c]
        out[c] = narrow(z if z > np.float32(0) else z * slope)


@_compile
def _normalise_row_plus(row, scale, shift, slope, residual, out):
    for c in range(row.shape[0]):
        z = wide(row[c]) * scale[c] + shift[c] + wide(residual[c])
        out[c] = narrow(z if z > np.float32(0) else z * slope)


@_compile
def normalise(x, residual, scale, shift, slope, block, first, stop, y):
    """Fill y with LeakyReLU(x * scale + shift + residual); scale and shift are (B, C).

    residual has no voxels if there is none. A slope of one leaves LeakyReLU out.
    """
    voxels = x.shape[1]
    blocks = (voxels + block - 1) // block
    for number in range(first, stop):
        sample, begin = number // blocks, number % blocks * block
        end = min(voxels, begin + block)
        if residual.shape[1] == 0:
            for v in range(begin, end):
                _normalise_row(x[sample, v], scale[sample], shift[sample], slope, y[sample, v])
        else:
            for v in range(begin, end):
                _normalise_row_plus(
                    x[sample, v], scale[sample], shift[sample], slope, residual[sample, v], y[sample, v]
                )


@_compile
def _add_gradients(grad, row, out, mean, slope, total, product):
    for c in range(grad.shape[0]):
        g = wide(grad[c])
        g = g if wide(out[c]) > np.float32(0) else g * slope
        total[c] += g
        product[c] += g * (wide(row[c]) - mean[c])


@_compile
def gradient_sums(grad, x, y, mean, slope, block, first, stop, parts):
    """Fill parts (blocks, 2, C) with sums of the gradient before LeakyReLU, and of its product with x - mean."""
    voxels = x.shape[1]
    blocks = (voxels + block - 1) // block
    for number in range(first, stop):
        sample, begin = number // blocks, number % blocks * block
        total, product = parts[number, 0], parts[number, 1]
        total[:] = 0
        product[:] = 0
        for v in range(begin, min(voxels, begin + block)):
            _add_gradients(grad[sample, v], x[sample, v], y[sample, v], mean[sample], slope, total, product)


# Two passes over a row, because LLVM does not vectorise one pass over so many arrays.


@_compile
def _before_activation(grad, out, slope, before):
    for c in range(grad.shape[0]):
        g = wide(grad[c])
        before[c] = g if wide(out[c]) > np.float32(0) else g * slope


@_compile
def _differentiate_row(before, row, a, b, c0, grad_x):
    for c in range(row.shape[0]):
        grad_x[c] = narrow(a[c] * before[c] + b[c] * wide(row[c]) + c0[c])


@_compile
def _narrow_row(before, grad_residual):
    for c in range(before.shape[0]):
        grad_residual[c] = narrow(before[c])


@_compile
def differentiate(grad, x, y, a, b, c, slope, block, first, stop, grad_x, grad_residual):
    """Fill grad_x with a * g + b * x + c, where g is the gradient before LeakyReLU, and grad_residual with g.

    a, b, c are (B, C). grad_residual has no voxels if there is no residual.
    """
    voxels = x.shape[1]
    blocks = (voxels + block - 1) // block
    before = np.empty(x.shape[2], np.float32)
    for number in range(first, stop):
        sample, begin = number // blocks, number % blocks * block
        for v in range(begin, min(voxels, begin + block)):
            _before_activation(grad[sample, v], y[sample, v], slope, before)
            _differentiate_row(before, x[sample, v], a[sample], b[sample], c[sample], grad_x[sample, v])
            if grad_residual.shape[1] > 0:
                _narrow_row(before, grad_residual[sample, v])
