"""The Triton scan as a PyTorch operator, for autograd, autocast, torch.compile and gradient checkpointing.

Block sizes depend only on the shapes, not on timings or the device, so that results repeat bit for bit.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from umamba.networks.scan.triton_kernels import carry_over, chunk_totals, gradients, outputs

_TILE = 2048  # elements (n, t) of each array that a program holds
_LONGEST, _SHORTEST = 128, 16  # limits of the tokens of a chunk
_ENOUGH = 2048  # programs that fill a large GPU; with more work, each program computes more channels


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Run the scan; the arguments are those of `selective_scan`, in any dtypes and strides, on a CUDA device.

    Returns:
        out (B, D, L) in u's dtype, and the last state (B, D, N) in float32, or in float64 if u is float64.
    """
    out, carried = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return out, carried[:, :, -1].detach().clone()


@torch.library.custom_op("umamba::selective_scan_triton", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Return out (B, D, L), and the states at the start of each chunk and at the end (B, D, chunks + 1, N)."""
    call = _Call(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    carried = call.carry(call.u, call.B, backward=False)
    outputs[call.grid(call.parts)](
        *call.u, *call.delta, *call.z, *call.B, *call.C, call.A, call.D, call.bias, carried, out,
        *call.sizes, call.parts, **call.softplus, **call.blocks,
    )  # fmt: skip
    return out, carried


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus):  # type: ignore[no-untyped-def]
    batch, channels, length = u.shape
    chunks = -(-length // _chunk_tokens(A.shape[1], length))
    return u.new_empty(u.shape), u.new_empty((batch, channels, chunks + 1, A.shape[1]), dtype=_state_dtype(u))


@torch.library.custom_op("umamba::selective_scan_triton_backward", mutates_args=())
def _scan_backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    carried: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z and delta_bias; ignore those of absent arguments."""
    call = _Call(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    (batch, channels, length), states = u.shape, A.shape[1]
    constant = B.ndim == 2
    # Limit the parts, so that the partial sums of the gradients of B and C need no more memory than u and delta.
    parts = min(call.parts, max(1, channels // call.groups // states))

    def empty(*shape: int, like: Tensor | None = None) -> Tensor:
        return torch.empty(shape, dtype=call.dtype if like is None else like.dtype, device=u.device)

    gradient = _rows(grad)
    carried_back = call.carry(gradient, call.C, backward=True)
    grad_u, grad_delta = empty(*u.shape, like=u), empty(*u.shape, like=delta)
    grad_z = empty(*(u.shape if z is not None else (0,)), like=z)
    grad_A = empty(batch, channels, call.chunks, states)
    grad_D, grad_bias = empty(batch, channels, call.chunks), empty(batch, channels, call.chunks)
    per_group = (parts, batch, call.groups, states, call.chunks if constant else length)
    grad_B, grad_C = empty(*per_group), empty(*per_group)
    gradients[call.grid(parts)](
        *call.u, *call.delta, *call.z, *call.B, *call.C, *gradient, call.A, call.D, call.bias, carried, carried_back,
        grad_u, grad_delta, grad_z, grad_A, grad_B, grad_C, grad_D, grad_bias,
        *call.sizes, parts, CONSTANT=constant, **call.softplus, **call.blocks,
    )  # fmt: skip
    return (
        grad_u,
        grad_delta,
        grad_A.sum((0, 2)).to(A.dtype),
        _like(grad_B, B),
        _like(grad_C, C),
        grad_D.sum((0, 2)).to(u.dtype if D is None else D.dtype),
        grad_z,
        grad_bias.sum((0, 2)).to(u.dtype if delta_bias is None else delta_bias.dtype),
    )


@_scan_backward.register_fake
def _(grad, u, delta, A, B, C, D, z, delta_bias, carried, delta_softplus):  # type: ignore[no-untyped-def]
    channels = (u.shape[1],)
    return (
        u.new_empty(u.shape),
        delta.new_empty(u.shape),
        A.new_empty(A.shape),
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        (u if D is None else D).new_empty(channels),
        u.new_empty((0,), dtype=carried.dtype) if z is None else z.new_empty(u.shape),
        (u if delta_bias is None else delta_bias).new_empty(channels),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors, output[1])


def _differentiate(ctx: Any, grad: Tensor, grad_carried: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, carried = ctx.saved_tensors
    found = _scan_backward(grad, *tensors, carried, ctx.delta_softplus)
    wanted = (None if tensor is None else gradient for tensor, gradient in zip(tensors, found, strict=True))
    return (*wanted, None)


_scan.register_autograd(_differentiate, setup_context=_save)


class _Call:
    """The scan's arguments in the form that the kernels take, and the division of the work into programs."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> None:
        self.batch, channels, length = u.shape
        states = A.shape[1]
        self.dtype = _state_dtype(u)
        self.u, self.delta = _rows(u), _rows(delta)
        self.z = (None, 0, 0) if z is None else _rows(z)
        self.A, self.D, self.bias = (None if t is None else t.contiguous() for t in (A, D, delta_bias))
        grouped_B, grouped_C = _grouped(B, u.shape), _grouped(C, u.shape)
        self.B, self.C = (grouped_B, *grouped_B.stride()), (grouped_C, *grouped_C.stride())
        self.groups = grouped_B.shape[1]
        tokens = _chunk_tokens(states, length)
        self.chunks = triton.cdiv(length, tokens)
        self.parts = min(
            max(1, _ENOUGH // (self.batch * self.groups * self.chunks)), triton.cdiv(channels // self.groups, 4)
        )
        self.sizes = (channels, length, states, self.groups)
        self.softplus = {"SOFTPLUS": delta_softplus}
        rows = triton.next_power_of_2(states)
        self.blocks = {"STATES": rows, "TOKENS": tokens, "num_warps": max(1, min(8, rows * tokens // 512))}

    def grid(self, parts: int) -> tuple[int, int, int]:
        """Return the grid of programs if the channels of each group are divided into `parts`."""
        return self.chunks, self.groups * parts, self.batch

    def carry(self, x: tuple[Any, ...], matrix: tuple[Any, ...], backward: bool) -> Tensor:
        """Return the states at the start of each chunk and the last one; with `backward`, their gradients."""
        channels, _, states, _ = self.sizes
        values = x[0]
        totals = torch.empty((self.batch, channels, self.chunks, states), dtype=self.dtype, device=values.device)
        spans = torch.empty((self.batch, channels, self.chunks), dtype=self.dtype, device=values.device)
        carried = torch.empty((self.batch, channels, self.chunks + 1, states), dtype=self.dtype, device=values.device)
        chunk_totals[self.grid(self.parts)](
            *x, *self.delta, *self.z, *matrix, self.A, self.bias, totals, spans, *self.sizes, self.parts,
            BACKWARD=backward, **self.softplus, **self.blocks,
        )  # fmt: skip
        rows = self.blocks["STATES"]
        at_once = min(max(16, 1024 // rows), triton.next_power_of_2(self.chunks))
        carry_over[(self.batch * channels,)](
            totals, spans, self.A, carried, channels, self.chunks, states,
            BACKWARD=backward, STATES=rows, CHUNKS=at_once, num_warps=4,
        )  # fmt: skip
        return carried


def _chunk_tokens(states: int, length: int) -> int:
    """Return the number of tokens of a chunk: as many as a program can hold with all their states."""
    longest = min(_LONGEST, max(_SHORTEST, _TILE // triton.next_power_of_2(states)))
    return min(longest, max(_SHORTEST, triton.next_power_of_2(length)))


def _state_dtype(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _rows(tensor: Tensor) -> tuple[Tensor, int, int]:
    """Return the tensor (B, D, L) with contiguous L, and its strides of B and D."""
    rows = tensor if tensor.stride(2) == 1 else tensor.contiguous()
    return rows, rows.stride(0), rows.stride(1)


def _grouped(matrix: Tensor, shape: torch.Size) -> Tensor:
    """Return a view (B, G, N, L) of B or C; (D, N), the same for all tokens, gets one group for each channel."""
    if matrix.ndim == 2:  # (D, N)
        return matrix[None, :, :, None].expand(shape[0], -1, -1, shape[2])
    return matrix[:, None] if matrix.ndim == 3 else matrix


def _like(parts: Tensor, matrix: Tensor) -> Tensor:
    """Sum the gradients (parts, B, G, N, L or chunks) and return them in the shape of B or C."""
    if matrix.ndim == 2:
        return parts.sum((0, 1, 4)).to(matrix.dtype)
    total = parts[0] if len(parts) == 1 else parts.sum(0)
    return (total[:, 0] if matrix.ndim == 3 else total).to(matrix.dtype)
