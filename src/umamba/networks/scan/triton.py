"""The Triton scan on tensors, and as a PyTorch operator for autograd, autocast, torch.compile and checkpointing.

Inside, tokens are rows: (B, L, D). Any strides will do, but channels side by side are fast. What is added up in which
order depends only on the shapes, so that results repeat bit for bit.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from umamba.networks.scan.triton_gradients import BLOCK, chunk_totals_back, gradients
from umamba.networks.scan.triton_kernels import (
    LANES,
    LOG2_E,
    carry_over,
    chunk_totals,
    on_device,
    outputs,
    state_dtype,
)

_STEP, _LONGEST = 24, 6  # tokens of a chunk: 1 to 6 times 24, which the unrolled loops of all kernels divide
_ENOUGH = 4096  # programs that fill a large GPU
_WARPS = 8  # of `gradients` that fit into a multiprocessor; so many programs have room for states
_FEWEST_STATES = 16  # with fewer, rows are padded, because `over_lanes` needs as many sums as lanes
_ROWS = 64  # chunks that `carry_over` takes at once


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
        out (B, D, L) in u's dtype, a view of memory with tokens as rows, and the last state (B, D, N) in float32, or
        in float64 if u is float64.
    """
    rows_u, rows_delta, rows_z = (None if t is None else t.transpose(1, 2) for t in (u, delta, z))
    out, carried = _scan(rows_u, rows_delta, A, _rows_of(B), _rows_of(C), D, rows_z, delta_bias, delta_softplus)
    return out.transpose(1, 2), carried[:, -1].detach().transpose(1, 2).clone()


def _rows_of(matrix: Tensor) -> Tensor:
    """Return a view (B, L, G, N) of B or C; (D, N), the same for all tokens, stays."""
    if matrix.ndim == 2:
        return matrix
    return matrix.transpose(1, 2).unsqueeze(2) if matrix.ndim == 3 else matrix.permute(0, 3, 1, 2)


class Arguments:
    """The scan's arguments with tokens as rows, in the form that the kernels take, and the division into programs.

    Args:
        u: input (B, L, D).
        delta: step sizes (B, L, D).
        A: diagonal of the state matrix (D, N).
        B: input matrix (B, L, G, N), or (D, N) if it is the same for all tokens.
        C: output matrix, in the shape of B.
        D: weight of the input in the output (D,), or None.
        z: gate (B, L, D), or None.
        bias: is added to the step sizes (D,), or None.
        softplus: take the softplus of the step sizes.
    """

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        bias: Tensor | None,
        softplus: bool,
    ) -> None:
        self.batch, self.length, self.channels = u.shape
        self.states, self.dtype, self.device = A.shape[1], state_dtype(u), u.device
        self.constant = B.ndim == 2
        self.groups = 1 if self.constant else B.shape[2]
        self.u, self.delta, self.z = _strided(u), _strided(delta), _strided(z)
        self.B, self.C = self._matrix(B), self._matrix(C)
        self.A = (A.T.to(self.dtype) * LOG2_E.value).contiguous()
        self.D, self.bias = (None if t is None else t.contiguous() for t in (D, bias))
        self.blocks = triton.cdiv(self.channels // self.groups, LANES.value)  # of the channels of a group
        self.tokens = tokens_of_chunk(u.shape, self.groups)
        self.chunks = triton.cdiv(self.length, self.tokens)
        self.sizes = (self.channels, self.length, self.groups, self.tokens)
        self.constants = {
            "SOFTPLUS": softplus,
            "CONSTANT": self.constant,
            "STATES": self.states,
            "PADDED": max(_FEWEST_STATES, triton.next_power_of_2(self.states)),
            "num_warps": 1,
        }

    def _matrix(self, matrix: Tensor) -> tuple[Any, ...]:
        """Return B or C and its strides of B, L, G (or D) and N."""
        if self.constant:
            rows = matrix.T.contiguous()
            return rows, 0, 0, rows.stride(1), rows.stride(0)
        return matrix, *matrix.stride()

    def grid(self, chunks: int) -> tuple[int, int, int]:
        """Return the grid of programs for so many chunks at the same time."""
        return chunks, self.groups * self.blocks, self.batch

    def empty(self, *shape: int) -> Tensor:
        """Return an array in the dtype of the states."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def totals(self) -> tuple[Tensor, Tensor]:
        """Return room for the totals and the spans of the chunks."""
        shape = self.batch, self.chunks
        return self.empty(*shape, self.states, self.channels), self.empty(*shape, self.channels)

    def carry(self, totals: Tensor, spans: Tensor, backward: bool) -> Tensor:
        """Return the states (their gradients) at the start of each chunk and at the end (B, chunks + 1, N, D)."""
        carried = self.empty(self.batch, self.chunks + 1, self.states, self.channels)
        carry_over[triton.cdiv(self.states * self.channels, LANES.value), self.batch](
            totals, spans, self.A, carried, self.channels, self.chunks,
            STATES=self.states, BACKWARD=backward, ROWS=min(_ROWS, triton.next_power_of_2(self.chunks)), num_warps=4,
        )  # fmt: skip
        return carried


def _strided(tensor: Tensor | None) -> tuple[Any, ...]:
    """Return a tensor with three axes and its strides."""
    return (None, 0, 0, 0) if tensor is None else (tensor, *tensor.stride())


def tokens_of_chunk(shape: torch.Size, groups: int) -> int:
    """Return the number of tokens of a chunk of the scan of (B, L, D): few for short sequences, to fill a GPU."""
    batch, length, channels = shape
    blocks = groups * triton.cdiv(channels // groups, LANES.value)
    return _STEP * min(_LONGEST, triton.cdiv(batch * blocks * length, _ENOUGH * _STEP))


def run_forward(scan: Arguments, out: Tensor) -> Tensor:
    """Fill out (B, L, D), contiguous; return the states at the start of each chunk and at the end."""
    with on_device(scan.u[0]):
        totals, spans = scan.totals()
        chunk_totals[scan.grid(scan.chunks)](
            *scan.u, *scan.delta, *scan.B, scan.A, scan.bias, totals, spans, *scan.sizes, **scan.constants
        )
        carried = scan.carry(totals, spans, backward=False)
        outputs[scan.grid(scan.chunks)](
            *scan.u, *scan.delta, *scan.z, *scan.B, *scan.C, scan.A, scan.D, scan.bias, carried, out,
            *scan.sizes, **scan.constants,
        )  # fmt: skip
    return carried


@dataclass(frozen=True)
class Gradients:
    """The gradients that are sums: of A (D, N), D and the bias (D,), and of B and C (B, L, G, N) or (D, N)."""

    A: Tensor
    D: Tensor
    bias: Tensor
    B: Tensor
    C: Tensor


def run_backward(
    scan: Arguments, carried: Tensor, grad: Tensor, grad_u: Tensor, grad_delta: Tensor, grad_z: Tensor | None
) -> Gradients:
    """Fill the gradients of u, the step sizes (B, L, D), both contiguous, and z (any strides); return the others."""
    rows = 2 * scan.constants["PADDED"]
    per_chunk = scan.batch, scan.chunks
    grad_A = scan.empty(*per_chunk, scan.states, scan.channels)
    grad_B, grad_C = (scan.empty(*grad_A.shape) if scan.constant else None for _ in range(2))
    grad_D, grad_bias = (scan.empty(*per_chunk, scan.channels) for _ in range(2))
    parts = None if scan.constant else scan.empty(scan.blocks, scan.batch, scan.length, scan.groups, rows)
    rows_of_lanes = scan.blocks * scan.groups * scan.batch
    at_once = min(scan.chunks, triton.cdiv(_programs(scan.device), rows_of_lanes))
    with on_device(grad):
        totals, spans = scan.totals()
        chunk_totals_back[scan.grid(scan.chunks)](
            *_strided(grad), *scan.delta, *scan.z, *scan.C, scan.A, scan.bias, totals, spans,
            *scan.sizes, **scan.constants,
        )  # fmt: skip
        carried_back = scan.carry(totals, spans, backward=True)
        del totals
        kept = scan.tokens // BLOCK.value + BLOCK.value - 1
        starts = scan.empty(at_once * rows_of_lanes, kept, rows // 2, LANES.value)
        for first in range(0, scan.chunks, at_once):
            gradients[scan.grid(min(at_once, scan.chunks - first))](
                *scan.u, *scan.delta, *scan.z, *scan.B, *scan.C, *_strided(grad), scan.A, scan.D, scan.bias,
                carried, carried_back, starts, grad_u, grad_delta, *_strided(grad_z),
                parts, grad_A, grad_B, grad_C, grad_D, grad_bias, *scan.sizes, scan.chunks, first, **scan.constants,
            )  # fmt: skip
    if parts is None:
        assert grad_B is not None
        assert grad_C is not None
        of_B, of_C = (each.sum((0, 1)).T for each in (grad_B, grad_C))
    else:
        half = rows // 2
        of_B, of_C = parts[..., : scan.states].sum(0), parts[..., half : half + scan.states].sum(0)
    return Gradients(grad_A.sum((0, 1)).T, grad_D.sum((0, 1)), grad_bias.sum((0, 1)), of_B, of_C)


def _programs(device: torch.device) -> int:
    """Return how many programs of `gradients` are launched at once: what a device runs at the same time."""
    if device.type != "cuda":
        return 2
    return _WARPS * torch.cuda.get_device_properties(device).multi_processor_count


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
    """Return out (B, L, D), and the states at the start of each chunk and at the end (B, chunks + 1, N, D)."""
    out = u.new_empty(u.shape)
    return out, run_forward(Arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus), out)


def shape_of_states(shape: torch.Size, A: Tensor, groups: int) -> tuple[int, int, int, int]:
    """Return the shape of the states that the forward pass of the scan of (B, L, D) returns."""
    chunks = triton.cdiv(shape[1], tokens_of_chunk(shape, groups))
    return shape[0], chunks + 1, A.shape[1], shape[2]


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus):  # type: ignore[no-untyped-def]
    states = shape_of_states(u.shape, A, 1 if B.ndim == 2 else B.shape[2])
    return u.new_empty(u.shape), u.new_empty(states, dtype=state_dtype(u))


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
    call = Arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    grad_u, grad_delta = u.new_empty(u.shape), delta.new_empty(delta.shape)
    grad_z = None if z is None else z.new_empty(z.shape)
    found = run_backward(call, carried, grad, grad_u, grad_delta, grad_z)
    return (
        grad_u,
        grad_delta,
        found.A.to(A.dtype).contiguous(),
        found.B.to(B.dtype).contiguous(),
        found.C.to(C.dtype).contiguous(),
        found.D.to(u.dtype if D is None else D.dtype),
        u.new_empty(0) if grad_z is None else grad_z,
        found.bias.to(u.dtype if delta_bias is None else delta_bias.dtype),
    )


@_scan_backward.register_fake
def _(grad, u, delta, A, B, C, D, z, delta_bias, carried, delta_softplus):  # type: ignore[no-untyped-def]
    channels = (u.shape[2],)
    return (
        u.new_empty(u.shape),
        delta.new_empty(u.shape),
        A.new_empty(A.shape),
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        (u if D is None else D).new_empty(channels),
        u.new_empty((0,)) if z is None else z.new_empty(u.shape),
        (u if delta_bias is None else delta_bias).new_empty(channels),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, grad_carried: None) -> tuple[Tensor | None, ...]:
    *tensors, carried = ctx.saved_tensors
    if grad is None:
        return (None,) * 9
    found = _scan_backward(grad, *tensors, carried, ctx.delta_softplus)
    wanted = (None if tensor is None else gradient for tensor, gradient in zip(tensors, found, strict=True))
    return (*wanted, None)


_scan.register_autograd(_differentiate, setup_context=_save)
