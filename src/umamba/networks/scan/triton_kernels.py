"""The scan's forward pass in Triton, and what its two passes share.

Tokens are rows: (B, L, D). A program is one warp: each of its 32 lanes is one channel, keeps the N states of that
channel in registers and walks from token to token. The lanes exchange nothing, so the loops have no barrier and no
shuffle. Long sequences are divided into chunks that are computed in parallel, because one warp cannot fill a GPU:

1. `chunk_totals` computes the state after each chunk as if the chunk started from zero, and the sum of its step sizes.
2. `carry_over` scans over the chunks and gives the true state at the start of each chunk. The decay of a chunk is
   exactly exp(A times the sum of its step sizes).
3. `outputs` walks through each chunk again, from its true start.

Arrays: u, delta, z, grad (B, L, D), each followed by its strides of B, L and D; B, C (B, L, G, N), each followed by its
strides of B, L, G and N, or, if CONSTANT, (D, N) with the stride of D in the place of G's and 0 for B and L.
A (N, D) is multiplied by log2(e), because exp2 is one instruction. D and bias (D,) may be None. States (..., N, D) and
out have their channels side by side. Lanes without a channel compute the last channel again and store nothing.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = tl.constexpr(32)
LOG2_E = tl.constexpr(1.4426950408889634)
# Tokens whose loads are issued together. The loops over them name their variable, because Triton 3.3 takes the
# variables of two nested loops for one if both are called _.
UNROLLED = tl.constexpr(8)
# Triton must not assume that these are aligned, because it would then give a lane several channels and distribute the
# states over the lanes.
_STRIDED = ("u", "delta", "z", "grad", "B", "C", "grad_z", "x", "grad_x")
_UNALIGNED = (
    *_STRIDED, *(f"{name}_{axis}" for name in _STRIDED for axis in "btdgn"), "A", "D", "bias", "totals", "spans",
    "carried", "carried_back", "starts", "out", "grad_u", "grad_delta", "parts", "grad_A", "grad_B", "grad_C", "grad_D",
    "grad_bias", "weight", "grad_weight", "channels", "length", "groups", "tokens", "chunks", "first", "span",
)  # fmt: skip


def unaligned(function):
    """Make a kernel that assumes nothing about the alignment of its arguments."""
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(do_not_specialize_on_alignment=[name for name in _UNALIGNED if name in arguments])(function)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which kernels are launched on the device of a tensor; Triton takes the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def state_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of the states: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    return 1 / (1 + tl.exp2(-x * LOG2_E))


@triton.jit
def softplus(x):
    """Return log(1 + exp(x)), accurate also if exp(x) is tiny; above 20 the identity, as in torch."""
    e = tl.exp2(-tl.abs(x) * LOG2_E)
    if x.dtype == tl.float64:
        w = 1 + e
        log1p = tl.where(w == 1, e, tl.log(w) * e / tl.where(w == 1, 1, w - 1))
        return tl.where(x > 20, x, tl.maximum(x, 0) + log1p)
    else:  # e + e^2 q(e), with a Chebyshev fit q of degree 8 on [0, 1]; above 20 it adds less than a rounding error
        q = -0.06751181188 + e * (0.02568278696 + e * -0.004579765977)
        q = 0.1986211000 + e * (-0.1587838574 + e * (0.1162652812 + e * q))
        q = -0.4999999740 + e * (0.3333289236 + e * (-0.2498755210 + e * q))
        return tl.maximum(x, 0) + (e + e * e * q)


@triton.jit
def slope_of_softplus(x):
    """Return the derivative of `softplus`."""
    if x.dtype == tl.float64:
        return tl.where(x > 20, 1, sigmoid(x))
    else:
        return sigmoid(x)


@triton.jit
def place(channels, length, groups, tokens, chunk):
    """Return sample, group, channels of the lanes, which of them are real, first token and number of tokens."""
    in_group = channels // groups
    blocks = tl.cdiv(in_group, LANES)
    group = tl.program_id(1) // blocks
    d = group * in_group + tl.program_id(1) % blocks * LANES + tl.arange(0, LANES)
    begin = chunk * tokens
    return (
        tl.program_id(2).to(tl.int64),
        group,
        d,
        d < (group + 1) * in_group,
        begin,
        tl.minimum(tokens, length - begin),
    )


@triton.jit
def per_channel(vector, d, real, dtype: tl.constexpr):
    """Load a parameter of the channels; zeros if it is absent."""
    if vector is None:
        return tl.zeros([LANES], dtype)
    else:
        return tl.load(vector + d, mask=real, other=0).to(dtype)


@triton.jit
def step_of(raw, SOFTPLUS: tl.constexpr):
    """Return the step sizes for delta plus its bias."""
    if SOFTPLUS:
        return softplus(raw)
    else:
        return raw


@triton.jit
def matrix_start(matrix, m_b, m_t, m_g, b, row, group, CONSTANT: tl.constexpr):
    """Return where B or C of a token starts."""
    if CONSTANT:
        return matrix
    else:
        return matrix + b * m_b + row * m_t + group.to(tl.int64) * m_g


@triton.jit
def column(start, m_g, m_n, d, CONSTANT: tl.constexpr, STATES: tl.constexpr, PADDED: tl.constexpr, dtype: tl.constexpr):
    """Load B or C of a token as (N, 1), or as (N, lanes) if it is the same for all tokens; padded rows are zeros."""
    n = tl.arange(0, PADDED)
    at = n.to(tl.int64) * m_n
    if CONSTANT:
        at_d = at[:, None] + d[None, :].to(tl.int64) * m_g
        return tl.load(start + at_d, mask=(n < STATES)[:, None], other=0).to(dtype)
    elif STATES == PADDED:
        return tl.load(start + at).to(dtype)[:, None]
    else:
        return tl.load(start + at, mask=n < STATES, other=0).to(dtype)[:, None]


@triton.jit
def state_offsets(first, d, channels, real, STATES: tl.constexpr, PADDED: tl.constexpr):
    """Return the offsets of the lanes' states in row `first` of an array (rows, N, D), and which of them are real."""
    n = tl.arange(0, PADDED)
    return (first * STATES + n[:, None]) * channels + d[None, :], (n < STATES)[:, None] & real[None, :]


@unaligned
def chunk_totals(
    u, u_b, u_t, u_d, delta, delta_b, delta_t, delta_d, B, B_b, B_t, B_g, B_n, A, bias, totals, spans,
    channels, length, groups, tokens,
    SOFTPLUS: tl.constexpr, CONSTANT: tl.constexpr, STATES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Fill totals (B, chunks, N, D) and spans (B, chunks, D), the sums of the step sizes."""
    dtype: tl.constexpr = totals.dtype.element_ty
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    b, group, d, real, begin, count = place(channels, length, groups, tokens, chunk)
    own, row = tl.minimum(d, (group + 1) * (channels // groups) - 1), begin.to(tl.int64)
    at, inside = state_offsets(b * chunks + chunk, d, channels, real, STATES, PADDED)
    n_at, n_inside = state_offsets(0, d, channels, real, STATES, PADDED)
    a = tl.load(A + n_at, mask=n_inside, other=0)
    shift = per_channel(bias, d, real, dtype)
    pu = u + b * u_b + row * u_t + own.to(tl.int64) * u_d
    pd = delta + b * delta_b + row * delta_t + own.to(tl.int64) * delta_d
    pb = matrix_start(B, B_b, B_t, B_g, b, row, group, CONSTANT)
    h, span = tl.zeros([PADDED, LANES], dtype), tl.zeros([LANES], dtype)
    for size in tl.static_range(UNROLLED, 0, 1 - UNROLLED):  # by eight tokens, then the rest by one
        for _ in range(0, count // size):
            for token in tl.static_range(size):  # noqa: B007
                step = step_of(tl.load(pd).to(dtype) + shift, SOFTPLUS)
                drive = step * tl.load(pu).to(dtype)
                b_t = column(pb, B_g, B_n, own, CONSTANT, STATES, PADDED, dtype)
                h = tl.exp2(a * step[None, :]) * h + b_t * drive[None, :]
                span += step
                pu, pd, pb = pu + u_t, pd + delta_t, pb + B_t
        count = count % size
    tl.store(totals + at, h, mask=inside)
    tl.store(spans + (b * chunks + chunk) * channels + d, span, mask=real)


@triton.jit
def _after(decay_1, state_1, decay_2, state_2):
    """Compose two steps h -> decay h + state."""
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@unaligned
def carry_over(
    totals, spans, A, carried, channels, chunks, STATES: tl.constexpr, BACKWARD: tl.constexpr, ROWS: tl.constexpr
):
    """Fill carried (B, chunks + 1, N, D) with the state at the start of each chunk and the final state.

    BACKWARD: fill it with the gradient of the state before each chunk; after the last chunk it is 0.
    """
    dtype: tl.constexpr = totals.dtype.element_ty
    q, b = tl.program_id(0) * LANES + tl.arange(0, LANES), tl.program_id(1).to(tl.int64)  # states of all channels
    width = STATES * channels
    real, d = q < width, q % channels
    a = tl.load(A + q, mask=real, other=0)
    first = b * (chunks + 1)
    state = tl.zeros([LANES], dtype)
    tl.store(carried + (first + (chunks if BACKWARD else 0)) * width + q, state, mask=real)
    for start in range(0, chunks, ROWS):
        i = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (i < chunks)[:, None] & real[None, :]
        if BACKWARD:
            i = chunks - 1 - i
        row = b * chunks + i
        span = tl.load(spans + row[:, None] * channels + d[None, :], mask=inside, other=0)
        total = tl.load(totals + row[:, None] * width + q[None, :], mask=inside, other=0)
        decay, reached = tl.associative_scan((tl.exp2(a[None, :] * span), total), 0, _after)
        reached += decay * state[None, :]
        slot = first + (i if BACKWARD else i + 1)
        tl.store(carried + slot[:, None] * width + q[None, :], reached, mask=inside)
        state = tl.sum(tl.where((tl.arange(0, ROWS) == ROWS - 1)[:, None], reached, 0), 0)


@unaligned
def outputs(
    u, u_b, u_t, u_d, delta, delta_b, delta_t, delta_d, z, z_b, z_t, z_d, B, B_b, B_t, B_g, B_n,
    C, C_b, C_t, C_g, C_n, A, D, bias, carried, out, channels, length, groups, tokens,
    SOFTPLUS: tl.constexpr, CONSTANT: tl.constexpr, STATES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Fill out (B, L, D), given the states at the start of each chunk in `carried`."""
    dtype: tl.constexpr = carried.dtype.element_ty
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    b, group, d, real, begin, count = place(channels, length, groups, tokens, chunk)
    own, row = tl.minimum(d, (group + 1) * (channels // groups) - 1), begin.to(tl.int64)
    at, inside = state_offsets(b * (chunks + 1) + chunk, d, channels, real, STATES, PADDED)
    n_at, n_inside = state_offsets(0, d, channels, real, STATES, PADDED)
    a = tl.load(A + n_at, mask=n_inside, other=0)
    shift = per_channel(bias, d, real, dtype)
    skip = per_channel(D, d, real, dtype)
    pu = u + b * u_b + row * u_t + own.to(tl.int64) * u_d
    pd = delta + b * delta_b + row * delta_t + own.to(tl.int64) * delta_d
    pb = matrix_start(B, B_b, B_t, B_g, b, row, group, CONSTANT)
    pc = matrix_start(C, C_b, C_t, C_g, b, row, group, CONSTANT)
    po = out + (b * length + row) * channels + d
    pz = po
    if z is not None:
        pz = z + b * z_b + row * z_t + own.to(tl.int64) * z_d
    h = tl.load(carried + at, mask=inside, other=0)
    for size in tl.static_range(UNROLLED, 0, 1 - UNROLLED):  # by eight tokens, then the rest by one
        for _ in range(0, count // size):
            for token in tl.static_range(size):  # noqa: B007
                step = step_of(tl.load(pd).to(dtype) + shift, SOFTPLUS)
                x = tl.load(pu).to(dtype)
                b_t = column(pb, B_g, B_n, own, CONSTANT, STATES, PADDED, dtype)
                h = tl.exp2(a * step[None, :]) * h + b_t * (step * x)[None, :]
                y = tl.sum(h * column(pc, C_g, C_n, own, CONSTANT, STATES, PADDED, dtype), 0)
                if D is not None:
                    y += skip * x
                if z is not None:
                    gate = tl.load(pz).to(dtype)
                    y *= gate * sigmoid(gate)
                    pz += z_t
                tl.store(po, y, mask=real)
                pu, pd, pb, pc, po = pu + u_t, pd + delta_t, pb + B_t, pc + C_t, po + channels
        count = count % size
