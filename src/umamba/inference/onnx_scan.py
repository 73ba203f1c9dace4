"""The inner part of a Mamba block in ONNX: convolution, projections, selective scan and gate.

The scan is h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t], y[t] = C[t] h[t] (Gu and Dao, 2023, section 3). A loop
over single tokens spends its time on beginning its steps. Therefore the tokens are cut into chunks of equal length, and
one loop goes through all chunks side by side, as often as a chunk has tokens:

1. each chunk from the state 0 gives the last state that its own tokens make;
2. a loop over the chunks gives the state before each: the decay over a whole chunk is exp(A * sum of delta);
3. each chunk again, from the state before it, gives the outputs.

No exponent is above 0, so nothing overflows, whatever the step sizes. Wide layers fill a step with a single chunk,
which needs the third loop only.
"""

import math
from typing import Any

import torch

from umamba.inference.onnx_builder import Builder, UnexportableError, Value

# States (chunks x state size x channels) that a step of the loop computes: enough to be worth beginning it, few enough
# for the cache of a core.
_STATES = 1 << 16


def chunk_count(length: int, states: int) -> int:
    """Return how many chunks of a sequence are computed side by side.

    Args:
        length: tokens.
        states: state size x channels.

    >>> chunk_count(length=32768, states=2048), chunk_count(length=32768, states=65536), chunk_count(9, 64)
    (32, 1, 3)
    """
    return max(1, min(_STATES // states, math.isqrt(length)))


def mamba_block(
    b: Builder,
    shape: tuple[int, ...],
    xz: Value,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor,
    x_weight: torch.Tensor,
    dt_weight: torch.Tensor,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    keep: bool,
) -> tuple[Value, None, None, None]:
    """Add what `umamba.networks.scan.cpu_layer.mix` computes.

    Args:
        b: receives the operations.
        shape: not used, because the operation has several outputs.
        xz: (1, L, 2 inner).
        conv_weight: (inner, 1, d_conv).
        conv_bias: (inner,).
        x_weight: (dt_rank + 2 N, inner).
        dt_weight: (inner, dt_rank).
        dt_bias: (inner,).
        A: (inner, N).
        D: (inner,).
        keep: whether a backward pass follows.

    Returns:
        The gated output (1, L, inner), and nothing for the outputs that only a backward pass uses.
    """
    batch, length, twice = xz.shape
    if batch != 1 or keep:
        raise UnexportableError("a Mamba block is exported for one image at a time, without gradients")
    inner, rank, states = twice // 2, dt_weight.shape[1], A.shape[1]
    rows = (length, inner)
    x, z = b.split(b.reshape(xz, (length, twice)), (inner, inner), 1)
    columns = b.reshape(b.permute(x, (1, 0)), (1, inner, length))
    taps = conv_weight.shape[2]
    convolved = b.add(
        "Conv", [columns, conv_weight, conv_bias], columns.shape, kernel_shape=[taps], pads=[taps - 1, 0], group=inner
    )
    convolved = b.permute(b.reshape(convolved, (inner, length)), (1, 0))
    u = b.add("Mul", [convolved, b.add("Sigmoid", [convolved], rows)], rows)
    parameters = b.add("MatMul", [u, x_weight.t().contiguous()], (length, rank + 2 * states))
    dt, B, C = b.split(parameters, (rank, states, states), 1)
    delta = b.add("Add", [b.add("MatMul", [dt, dt_weight.t().contiguous()], rows), dt_bias], rows)
    y = selective_scan(b, u, softplus(b, delta), A, B, C)
    y = b.add("Add", [y, b.add("Mul", [u, D], rows)], rows)
    gate = b.add("Mul", [z, b.add("Sigmoid", [z], rows)], rows)
    return b.reshape(b.add("Mul", [y, gate], rows), (1, length, inner)), None, None, None


def softplus(b: Builder, x: Value) -> Value:
    """Add log(1 + exp(x)) with the relative precision of float32 for small results, too, which ONNX's own lacks.

    Args:
        b: receives the operations.
        x: of any shape.
    """
    e = b.add("Exp", [b.add("Neg", [b.add("Abs", [x], x.shape)], x.shape)], x.shape)
    ratio = b.add("Div", [e, b.add("Add", [e, 2.0], x.shape)], x.shape)
    logarithm = b.add("Mul", [b.add("Atanh", [ratio], x.shape), 2.0], x.shape)  # log(1 + e) = 2 atanh(e / (2 + e))
    return b.add("Add", [b.add("Relu", [x], x.shape), logarithm], x.shape)


def selective_scan(b: Builder, u: Value, delta: Value, A: torch.Tensor, B: Value, C: Value) -> Value:
    """Add the scan from the state 0, without D and gate.

    Args:
        b: receives the operations.
        u: input (L, inner).
        delta: step sizes (L, inner), not negative.
        A: (inner, N), negative.
        B: (L, N).
        C: (L, N).

    Returns:
        (L, inner).
    """
    (length, inner), states = u.shape, A.shape[1]
    chunks = chunk_count(length, inner * states)
    steps = -(-length // chunks)
    by_state = A.t().contiguous()  # (N, inner): the channels side by side, which is the longer axis
    values = b.add("Mul", [delta, u], u.shape)
    side_by_side = [
        _by_step(b, each, chunks, steps, shape)
        for each, shape in ((delta, (1, inner)), (values, (1, inner)), (B, (states, 1)), (C, (1, states)))
    ]
    zeros = b.value(torch.zeros(chunks, states, inner))
    first = zeros
    if chunks > 1:
        (last,) = b.scan(
            [zeros], side_by_side[:3], [], lambda inside, before, parts: [_next_state(inside, before, parts, by_state)]
        )
        total = b.add("ReduceSum", [side_by_side[0], b.sizes([0])], (chunks, 1, inner), keepdims=0)
        decay = b.add("Exp", [b.add("Mul", [total, by_state], zeros.shape)], zeros.shape)
        _, first = b.scan([b.value(torch.zeros(states, inner))], [decay, last], [(states, inner)], _next_chunk)

    def step(inside: Builder, before: list[Value], parts: list[Value]) -> list[Value]:
        state = _next_state(inside, before, parts[:3], by_state)
        return [state, inside.add("MatMul", [parts[3], state], (chunks, 1, inner))]

    _, y = b.scan([first], side_by_side, [(chunks, 1, inner)], step)
    y = b.permute(b.reshape(y, (steps, chunks, inner)), (1, 0, 2))
    return b.cut(b.reshape(y, (chunks * steps, inner)), 0, 0, length)


def _by_step(b: Builder, x: Value, chunks: int, steps: int, shape: tuple[int, int]) -> Value:
    """Return rows (L, width) as (steps, chunks, *shape), filled up with zeros: steps of size 0 keep the state."""
    length, width = x.shape
    missing = chunks * steps - length
    if missing:
        x = b.add("Pad", [x, b.sizes([0, 0, missing, 0]), 0.0], (chunks * steps, width), mode="constant")
    x = b.permute(b.reshape(x, (chunks, steps, width)), (1, 0, 2))
    return b.reshape(x, (steps, chunks, *shape))


def _next_state(b: Builder, before: list[Value], parts: list[Value], A: Any) -> Value:
    """Return the state (chunks, N, inner) after a token of each chunk."""
    (state,), (delta, values, B) = before, parts
    decay = b.add("Exp", [b.add("Mul", [delta, A], state.shape)], state.shape)
    kept = b.add("Mul", [decay, state], state.shape)
    return b.add("Add", [kept, b.add("Mul", [B, values], state.shape)], state.shape)


def _next_chunk(b: Builder, before: list[Value], parts: list[Value]) -> list[Value]:
    """Return the state (N, inner) after a chunk, and as output that before it."""
    (state,), (decay, last) = before, parts
    after = b.add("Add", [b.add("Mul", [decay, state], state.shape), last], state.shape)
    return [after, b.add("Identity", [state], state.shape)]
