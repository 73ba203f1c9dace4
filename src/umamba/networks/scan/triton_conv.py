"""The causal depthwise convolution of a Mamba block with its SiLU, and the gradients, in Triton.

Tokens are rows, (B, L, D), as in triton_kernels.py. A program is one warp whose lanes are channels; it walks through a
stretch of tokens in steps of eight, with their inputs and those of the taps before them in registers.
"""

import triton
import triton.language as tl
from torch import Tensor

from umamba.networks.scan.triton_kernels import LANES, on_device, sigmoid, state_dtype, unaligned

_GROUP = tl.constexpr(8)  # tokens of a step
_FEW, _MANY = 64, 1024  # limits of the tokens of a program
_ENOUGH = 4096  # programs that fill a large GPU


def conv_into(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Fill out with silu(conv(x)), where the convolution is causal and depthwise.

    Args:
        x: input (B, L, D), in any strides.
        weight: (D, taps); the last tap is that of the token itself.
        bias: (D,).
        out: is filled (B, L, D), contiguous.
    """
    span, grid = _division(x)
    w = weight.T.to(state_dtype(x)).contiguous()
    with on_device(x):
        _forward[grid](x, *x.stride(), w, bias, out, x.shape[2], x.shape[1], span, TAPS=len(w), num_warps=1)


def conv_back_into(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
    """Fill grad_x (B, L, D) for the gradient of `conv_into`'s output (B, L, D), contiguous.

    Returns:
        The gradients of weight (D, taps) and bias (D,), in float32 (float64).
    """
    batch, length, channels = x.shape
    span, grid = _division(x)
    w = weight.T.to(state_dtype(x)).contiguous()
    grad_weight, grad_bias = w.new_empty((batch, grid[0], len(w), channels)), w.new_empty((batch, grid[0], channels))
    with on_device(x):
        _backward[grid](
            x, *x.stride(), w, bias, grad, grad_x, *grad_x.stride(), grad_weight, grad_bias, channels, length, span,
            TAPS=len(w), PADDED=triton.next_power_of_2(len(w)), num_warps=1,
        )  # fmt: skip
    return grad_weight.sum((0, 1)).T, grad_bias.sum((0, 1))


def _division(x: Tensor) -> tuple[int, tuple[int, int, int]]:
    """Return the tokens of a program, a function of the shape alone, and the grid of programs."""
    batch, length, channels = x.shape
    blocks = triton.cdiv(channels, LANES.value)
    span = triton.next_power_of_2(triton.cdiv(batch * blocks * length, _ENOUGH))
    span = min(_MANY, max(_FEW, span))
    return span, (triton.cdiv(length, span), blocks, batch)


@triton.jit
def _tokens(place, stride, t, COUNT: tl.constexpr, length, dtype: tl.constexpr):
    """Load COUNT tokens from token t, which is at `place`, as a tuple; those outside the sequence are zeros."""
    found = ()
    for i in tl.static_range(COUNT):
        inside = (t + i >= 0) & (t + i < length)
        found = found + (tl.load(place, mask=inside, other=0).to(dtype),)  # noqa: RUF005
        place += stride
    return found


@triton.jit
def _weights(weight, d, channels, TAPS: tl.constexpr):
    """Load the weights of all taps as a tuple."""
    found = ()
    for k in tl.static_range(TAPS):
        found = found + (tl.load(weight + k * channels + d),)  # noqa: RUF005
    return found


@triton.jit
def _convolved(w, x, i: tl.constexpr, shift, TAPS: tl.constexpr):
    """Return the convolution at the i-th token."""
    total = shift
    for k in tl.static_range(TAPS):
        total += w[k] * x[i + k]
    return total


@unaligned
def _forward(x, x_b, x_t, x_d, weight, bias, out, channels, length, span, TAPS: tl.constexpr):
    """Fill out (B, L, D); weight is (taps, D)."""
    dtype: tl.constexpr = weight.dtype.element_ty
    d, b = tl.program_id(1) * LANES + tl.arange(0, LANES), tl.program_id(2).to(tl.int64)
    real, own = d < channels, tl.minimum(d, channels - 1)
    shift, w = tl.load(bias + own).to(dtype), _weights(weight, own, channels, TAPS)
    first = tl.program_id(0) * span
    row = first.to(tl.int64)
    px = x + b * x_b + (row - (TAPS - 1)) * x_t + own.to(tl.int64) * x_d
    to = out + (b * length + row) * channels + d
    for t in range(first, tl.minimum(first + span, length), _GROUP):
        xs = _tokens(px, x_t, t - (TAPS - 1), _GROUP + TAPS - 1, length, dtype)
        for i in tl.static_range(_GROUP):
            y = _convolved(w, xs, i, shift, TAPS)
            tl.store(to, y * sigmoid(y), mask=real & (t + i < length))
            to += channels
        px += _GROUP * x_t


@unaligned
def _backward(
    x, x_b, x_t, x_d, weight, bias, grad, grad_x, grad_x_b, grad_x_t, grad_x_d, grad_weight, grad_bias,
    channels, length, span, TAPS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Fill grad_x; the caller adds up grad_weight (B, programs, taps, D) and grad_bias (B, programs, D)."""
    dtype: tl.constexpr = weight.dtype.element_ty
    d, b = tl.program_id(1) * LANES + tl.arange(0, LANES), tl.program_id(2).to(tl.int64)
    real, own = d < channels, tl.minimum(d, channels - 1)
    shift, w = tl.load(bias + own).to(dtype), _weights(weight, own, channels, TAPS)
    tap = tl.arange(0, PADDED)[:, None]
    by_weight, by_bias = tl.zeros([PADDED, LANES], dtype), tl.zeros([LANES], dtype)
    first = tl.program_id(0) * span
    row = first.to(tl.int64)
    px = x + b * x_b + (row - (TAPS - 1)) * x_t + own.to(tl.int64) * x_d
    pg = grad + (b * length + row) * channels + own
    to = grad_x + b * grad_x_b + row * grad_x_t + own.to(tl.int64) * grad_x_d
    for t in range(first, tl.minimum(first + span, length), _GROUP):
        # The gradients of the convolution's outputs reach back over its taps: those of later tokens, too, are needed.
        xs = _tokens(px, x_t, t - (TAPS - 1), _GROUP + 2 * (TAPS - 1), length, dtype)
        gs = _tokens(pg, channels, t, _GROUP + TAPS - 1, length, dtype)
        by_conv = ()
        for i in tl.static_range(_GROUP + TAPS - 1):
            y = _convolved(w, xs, i, shift, TAPS)
            s = sigmoid(y)
            by_conv = by_conv + (gs[i] * s * (1 + y * (1 - s)),)  # noqa: RUF005
        for i in tl.static_range(_GROUP):
            by_x = w[TAPS - 1] * by_conv[i]
            for k in tl.static_range(1, TAPS):
                by_x += w[TAPS - 1 - k] * by_conv[i + k]
            tl.store(to, by_x, mask=real & (t + i < length))
            to += grad_x_t
            by_bias += by_conv[i]
        for k in tl.static_range(TAPS):
            total = xs[k] * by_conv[0]  # type: ignore[misc]
            for i in tl.static_range(1, _GROUP):
                total += xs[i + k] * by_conv[i]
            by_weight += tl.where(tap == k, total[None, :], 0)
        px, pg = px + _GROUP * x_t, pg + _GROUP * channels
    program = b * tl.num_programs(0) + tl.program_id(0)
    at = (program * TAPS + tap) * channels + d[None, :]
    tl.store(grad_weight + at, by_weight, mask=(tap < TAPS) & real[None, :])
    tl.store(grad_bias + program * channels + d, by_bias, mask=real)
