"""The inner part of a Mamba block in ONNX: convolution, projections, selective scan and gate.

The scan is h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t], y[t] = C[t] h[t] (Gu and Dao, 2023, section 3): a loop
over the tokens, which the standard calls Scan. Chunks of tokens side by side were no faster in ONNX Runtime.
"""

import torch

from umamba.inference.onnx_builder import Builder, UnexportableError, Value


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
    by_state = A.t().contiguous()  # (N, inner): the channels side by side, which is the longer axis
    rows, values = (length, 1, inner), b.add("Mul", [delta, u], u.shape)
    shapes = ((delta, rows), (values, rows), (B, (length, states, 1)), (C, (length, 1, states)))

    def step(inside: Builder, before: list[Value], parts: list[Value]) -> list[Value]:
        (state,), (delta, values, B, C) = before, parts
        decay = inside.add("Exp", [inside.add("Mul", [delta, by_state], state.shape)], state.shape)
        kept = inside.add("Mul", [decay, state], state.shape)
        after = inside.add("Add", [kept, inside.add("Mul", [B, values], state.shape)], state.shape)
        return [after, inside.add("MatMul", [C, after], (1, inner))]

    start = b.value(torch.zeros(states, inner))
    _, y = b.scan([start], [b.reshape(each, shape) for each, shape in shapes], [(1, inner)], step)
    return b.reshape(y, (length, inner))
