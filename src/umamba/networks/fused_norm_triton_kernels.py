"""The Triton kernels of InstanceNorm, the sum with a residual, and LeakyReLU; see fused_norm_triton.py.

A program computes a part of an instance (a channel of a sample): `span` voxels of it, in tiles of ROWS voxels, for
CHANNELS channels. Voxels and channels are `by_voxel` and `by_channel` elements apart. X_HALF: the map is float16.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl


@triton.jit
def _bounded(value, HALF: tl.constexpr):
    """Return float32 values within the range of float16 if HALF; NaN stays NaN (docs/nan.md)."""
    if HALF:
        value = tl.where(value > 65504.0, 65504.0, tl.where(value < -65504.0, -65504.0, value))
    return value


@triton.jit
def _tile(channels, voxels, span, by_channel, by_voxel, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return of this program: its channels (1, CHANNELS), rows (ROWS, 1), voxels, and the first elements' offsets."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    row = tl.arange(0, ROWS)[:, None]
    first = tl.program_id(0).to(tl.int64) * span
    length = tl.minimum(voxels - first, span).to(tl.int32)
    sample = tl.program_id(2).to(tl.int64) * channels * voxels
    offset = sample + channel.to(tl.int64) * by_channel + (first + row) * by_voxel
    return channel, row, length, offset


@triton.jit
def statistics(
    x, means, squares, channels, voxels, span, by_channel, by_voxel,
    X_HALF: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Store mean and sum of squared deviations of each part, both (parts, B, C)."""
    channel, row, length, offset = _tile(channels, voxels, span, by_channel, by_voxel, ROWS, CHANNELS)
    known = channel < channels
    mean = tl.zeros([ROWS, CHANNELS], tl.float32)
    square = tl.zeros([ROWS, CHANNELS], tl.float32)
    seen = 0.0
    for start in range(0, length, ROWS):
        counts = known & (start + row < length)
        value = _bounded(tl.load(x + offset, mask=counts, other=0).to(tl.float32), X_HALF)
        seen += 1.0
        away = tl.where(counts, value - mean, 0.0)
        mean += away * (1.0 / seen)
        square += away * (value - mean)
        offset += ROWS * by_voxel
    own = (tl.maximum(length - row + ROWS - 1, 0) // ROWS).to(tl.float32)  # voxels of each lane
    whole = tl.sum(mean * own, 0) / length.to(tl.float32)
    apart = mean - whole[None, :]
    spread = tl.sum(square + own * apart * apart, 0)
    to = (tl.program_id(0) * tl.num_programs(2) + tl.program_id(2)) * channels + channel
    tl.store(means + to, whole[None, :], mask=known)
    tl.store(squares + to, spread[None, :], mask=known)


@triton.jit
def merge(means, squares, mean, rstd, instances, parts, voxels, span, eps, PARTS: tl.constexpr):
    """Store mean and 1 / sqrt(variance + eps) of each instance, both (B, C)."""
    part = tl.arange(0, PARTS)
    there = part < parts
    at = part * instances + tl.program_id(0)
    own = tl.minimum(tl.maximum(voxels - part.to(tl.int64) * span, 0), span).to(tl.float32)
    centre = tl.load(means + at, mask=there, other=0)
    whole = tl.sum(centre * own, 0) / voxels
    apart = tl.where(there, centre - whole, 0.0)
    spread = tl.sum(tl.load(squares + at, mask=there, other=0) + own * apart * apart, 0)
    tl.store(mean + tl.program_id(0), whole)
    tl.store(rstd + tl.program_id(0), 1.0 / tl.sqrt(spread / voxels + eps))


@triton.jit
def normalise(
    x, residual, weight, bias, mean, rstd, y, channels, voxels, span, by_channel, by_voxel, slope,
    RESIDUAL: tl.constexpr, X_HALF: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Store LeakyReLU((x - mean) * rstd * weight + bias + residual); a slope of one leaves LeakyReLU out."""
    channel, row, length, offset = _tile(channels, voxels, span, by_channel, by_voxel, ROWS, CHANNELS)
    known = channel < channels
    instance = tl.program_id(2) * channels + channel
    centre = tl.load(mean + instance, mask=known, other=0)
    scale = tl.load(rstd + instance, mask=known, other=0) * tl.load(weight + channel, mask=known, other=0)
    shift = tl.load(bias + channel, mask=known, other=0).to(tl.float32)
    for start in range(0, length, ROWS):
        counts = known & (start + row < length)
        value = _bounded(tl.load(x + offset, mask=counts, other=0).to(tl.float32), X_HALF)
        z = (value - centre) * scale + shift
        if RESIDUAL:
            z += tl.load(residual + offset, mask=counts, other=0).to(tl.float32)
        z = _bounded(z, X_HALF)
        tl.store(y + offset, tl.where(z > 0, z, z * slope).to(y.dtype.element_ty), mask=counts)
        offset += ROWS * by_voxel


@triton.jit
def _before_activation(grad, y, offset, counts, slope, ACTIVATION: tl.constexpr, X_HALF: tl.constexpr):
    """Return the gradient before LeakyReLU, which has the sign of its output; zero where float16 was clamped."""
    gradient = tl.load(grad + offset, mask=counts, other=0).to(tl.float32)
    if ACTIVATION:
        out = tl.load(y + offset, mask=counts, other=0).to(tl.float32)
        if X_HALF:
            lowest = (tl.full([1, 1], -65504.0, tl.float32) * slope).to(tl.float16).to(tl.float32)
            gradient = tl.where((out >= 65504.0) | (out <= lowest), 0.0, gradient)
        gradient = tl.where(out > 0, gradient, gradient * slope)
    return gradient


@triton.jit
def gradient_sums(
    grad, x, y, mean, totals, products, channels, voxels, span, by_channel, by_voxel, slope,
    ACTIVATION: tl.constexpr, X_HALF: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Store for each part the sums of the gradient g before LeakyReLU and of g * (x - mean), both (parts, B, C)."""
    channel, row, length, offset = _tile(channels, voxels, span, by_channel, by_voxel, ROWS, CHANNELS)
    known = channel < channels
    centre = tl.load(mean + tl.program_id(2) * channels + channel, mask=known, other=0)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    product = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(0, length, ROWS):
        counts = known & (start + row < length)
        gradient = _before_activation(grad, y, offset, counts, slope, ACTIVATION, X_HALF)
        value = _bounded(tl.load(x + offset, mask=counts, other=0).to(tl.float32), X_HALF)
        total += gradient
        product += gradient * tl.where(counts, value - centre, 0.0)
        offset += ROWS * by_voxel
    to = (tl.program_id(0) * tl.num_programs(2) + tl.program_id(2)) * channels + channel
    tl.store(totals + to, tl.sum(total, 0)[None, :], mask=known)
    tl.store(products + to, tl.sum(product, 0)[None, :], mask=known)


@triton.jit
def differentiate(
    grad, x, y, weight, mean, rstd, totals, products, grad_x, grad_residual,
    channels, voxels, span, by_channel, by_voxel, slope,
    RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, X_HALF: tl.constexpr, ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Store the gradients of x and of the residual; totals and products are those of whole instances (B, C)."""
    channel, row, length, offset = _tile(channels, voxels, span, by_channel, by_voxel, ROWS, CHANNELS)
    known = channel < channels
    instance = tl.program_id(2) * channels + channel
    centre = tl.load(mean + instance, mask=known, other=0)
    inverse = tl.load(rstd + instance, mask=known, other=0)
    a = inverse * tl.load(weight + channel, mask=known, other=0)
    b = -a * inverse * inverse * tl.load(products + instance, mask=known, other=0) / voxels
    c = -a * tl.load(totals + instance, mask=known, other=0) / voxels
    for start in range(0, length, ROWS):
        counts = known & (start + row < length)
        gradient = _before_activation(grad, y, offset, counts, slope, ACTIVATION, X_HALF)
        read = tl.load(x + offset, mask=counts, other=0).to(tl.float32)
        value = _bounded(read, X_HALF)
        found = a * gradient + b * (value - centre) + c
        if X_HALF:
            found = tl.where(value == read, found, 0.0)  # clamped
        tl.store(grad_x + offset, found.to(grad_x.dtype.element_ty), mask=counts)
        if RESIDUAL:
            tl.store(grad_residual + offset, gradient.to(grad_residual.dtype.element_ty), mask=counts)
        offset += ROWS * by_voxel
