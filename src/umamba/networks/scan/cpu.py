"""The compiled CPU scan: on NumPy arrays, and as a PyTorch operator for autograd, autocast and torch.compile.

Inside, tokens are rows: (B, L, D). Each task computes a range of channels of a sample. The tasks depend only on the
shapes and their sums are added in order, so that results are the same for any number of threads, bit for bit.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umamba.networks.scan.cpu_kernels import (
    CHUNK,
    add_parts,
    backward,
    forward,
    signature_of_backward,
    signature_of_forward,
    signature_of_parts,
)
from umamba.networks.scan.vector_math import LANES, LOG2_E
from umamba.networks.threads import in_threads

Array = NDArray[Any]

_ENOUGH = 16  # tasks of a scan; more would need more memory for the gradients of B and C
_SMALL = 100_000  # states of all tokens; with fewer, a second thread starts later than the first one ends


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
    """Run the scan; the arguments are those of `selective_scan`, all float32 or all float64, on the CPU.

    Returns:
        out (B, D, L), a view of memory with tokens as rows, and the last state (B, D, N).
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    needs_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    rows_u, rows_delta, rows_z = (None if t is None else t.transpose(1, 2) for t in (u, delta, z))
    rows_B, rows_C = (_rows_of(matrix, u.shape) for matrix in (B, C))
    out, last, _ = _scan(rows_u, rows_delta, A, rows_B, rows_C, D, rows_z, delta_bias, delta_softplus, needs_gradient)
    return out.transpose(1, 2), last


def _rows_of(matrix: Tensor, shape: torch.Size) -> Tensor:
    """Return a view (B, L, G, N) of B or C; (D, N), the same for all tokens, gets one group for each channel."""
    if matrix.ndim == 2:
        return matrix.expand(shape[0], shape[2], -1, -1)
    return matrix.transpose(1, 2).unsqueeze(2) if matrix.ndim == 3 else matrix.permute(0, 3, 1, 2)


def scan_into(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    delta_bias: Array | None,
    out: Array,
    *,
    delta_softplus: bool = True,
    threads: int = 1,
) -> None:
    """Run the scan on arrays with tokens as rows and write its output into an array, without other large arrays.

    Args:
        u: input (B, L, D), float32 or float64 like all other arrays; any strides, but channels side by side are faster.
        delta: step sizes (B, L, D).
        A: diagonal of the state matrix (D, N).
        B: input matrix (B, L, N), or (B, L, G, N) for G groups of channels.
        C: output matrix, in the shape of B.
        D: weight of the input in the output (D,); None: 0.
        z: gate (B, L, D); None: no gate.
        delta_bias: is added to delta (D,); None: 0.
        out: is filled (B, L, D); it must not overlap the other arrays.
        delta_softplus: take the softplus of delta plus its bias.
        threads: number of threads; the results do not depend on it.

    Raises:
        ValueError: the arrays have different or other dtypes.
    """
    arrays = (u, delta, B, C, out, *(() if z is None else (z,)))
    if len({each.dtype for each in arrays}) > 1 or u.dtype not in (np.float32, np.float64):
        raise ValueError(f"The scan's arrays must be all float32 or all float64, not {[str(a.dtype) for a in arrays]}.")
    grouped_B, grouped_C = (matrix if matrix.ndim == 4 else matrix[:, :, None] for matrix in (B, C))
    run_forward(Arguments(u, delta, A, grouped_B, grouped_C, D, z, delta_bias, delta_softplus), out, None, threads)


class Arguments:
    """The scan's arrays in the form in which the compiled functions take them."""

    def __init__(
        self,
        u: Array,
        delta: Array,
        A: Array,
        B: Array,
        C: Array,
        D: Array | None,
        z: Array | None,
        delta_bias: Array | None,
        delta_softplus: bool,
    ) -> None:
        self.batch, self.length, self.channels = u.shape
        self.dtype, self.groups, self.states = u.dtype, B.shape[2], A.shape[1]
        self.u, self.delta, self.softplus = u, delta, delta_softplus
        self.A = by_block((A.astype(np.float64) * LOG2_E).astype(self.dtype), self.groups)
        self.B, self.C = (m if m.strides[3] == m.itemsize else np.ascontiguousarray(m) for m in (B, C))
        zeros = np.zeros(self.channels, self.dtype)
        self.D = by_block((zeros if D is None else D)[:, None], self.groups)[:, 0]
        self.bias = by_block((zeros if delta_bias is None else delta_bias)[:, None], self.groups)[:, 0]
        self.z = u[:, :0] if z is None else z
        self.blocks = len(self.A)
        # Ranges of blocks; a task is a range of a sample.
        parts = min(self.blocks, -(-_ENOUGH // self.batch))
        edges = [self.blocks * part // parts for part in range(parts + 1)]
        self.parts = list(pairwise(edges))

    def arrays(self) -> tuple[Any, ...]:
        """Return the arrays in the order in which the compiled functions take them."""
        return self.u, self.delta, self.A, self.B, self.C, self.D, self.z, self.bias, self.softplus

    def by_channel(self, blocks: Array) -> Array:
        """Reverse `by_block`: turn (..., blocks, N, LANES) into (..., D, N)."""
        *front, _, states, _ = blocks.shape
        rows = blocks.swapaxes(-1, -2).reshape(*front, self.groups, -1, states)[..., : self.channels // self.groups, :]
        return np.ascontiguousarray(rows.reshape(*front, self.channels, states))

    def run(self, work: Callable[[Any], None], tasks: Sequence[Any], threads: int) -> None:
        """Call `work` with each task."""
        small = self.batch * self.length * self.channels * self.states < _SMALL
        in_threads(work, tasks, 1 if small else threads)


def by_block(rows: Array, groups: int = 1) -> Array:
    """Turn (D, N) into (blocks, N, LANES), padded with zeros at the end of each group of channels."""
    width = len(rows) // groups
    blocks = -(-width // LANES)
    padded = np.zeros((groups, blocks * LANES, rows.shape[1]), rows.dtype)
    padded[:, :width] = rows.reshape(groups, width, -1)
    return np.ascontiguousarray(padded.reshape(groups * blocks, LANES, -1).swapaxes(1, 2))


def number_of_chunks(length: int) -> int:
    """Return the number of chunks of a sequence."""
    return -(-length // CHUNK)


def shape_of_starts(batch: int, length: int, channels: int, groups: int, states: int) -> tuple[int, ...]:
    """Return the shape of the states that the forward pass keeps for the backward pass."""
    return batch, number_of_chunks(length), groups * -(-(channels // groups) // LANES), states, LANES


def run_forward(scan: Arguments, out: Array, starts: Array | None, threads: int) -> Array:
    """Fill out (B, L, D) and, if wanted, the states at the start of each chunk; return the last state (B, D, N)."""
    kernel = _forward(scan.dtype)
    last = np.empty((scan.batch, scan.blocks, scan.states, LANES), scan.dtype)
    kept = np.empty((scan.batch, 0, scan.blocks, scan.states, LANES), scan.dtype) if starts is None else starts

    def work(task: tuple[int, int, int]) -> None:
        kernel(*scan.arrays(), *task, out, last, kept)

    scan.run(work, [(b, *part) for b in range(scan.batch) for part in scan.parts], threads)
    return scan.by_channel(last)


def run_backward(
    scan: Arguments,
    starts: Array,
    grad: Array,
    grad_u: Array,
    grad_delta: Array,
    grad_B: Array,
    grad_C: Array,
    grad_z: Array,
    threads: int,
) -> tuple[Array, Array, Array]:
    """Fill the gradients of u, delta, z (B, L, D), B and C (B, L, G, N); return those of A, D and the bias.

    grad_z has length 0 if there is no gate.
    """
    kernel, dtype, parts = _backward(scan.dtype), scan.dtype, len(scan.parts)
    # Gradients that are sums over samples or channels: each task fills its own, and they are added in order at the end.
    grad_A = np.zeros((scan.batch, *scan.A.shape), dtype)
    grad_D, grad_bias = (
        np.zeros((scan.batch, scan.blocks, LANES), dtype),
        np.zeros((scan.batch, scan.blocks, LANES), dtype),
    )
    rows = (scan.batch, scan.length, scan.groups, -(-scan.states // LANES) * LANES)
    parts_B, parts_C = np.zeros((parts, *rows), dtype), np.zeros((parts, *rows), dtype)

    def work(task: tuple[int, int]) -> None:
        b, part = task
        kernel(
            *scan.arrays(), b, *scan.parts[part], starts, grad, grad_u, grad_delta, grad_A[b],
            parts_B[part, b], parts_C[part, b], grad_D[b], grad_z, grad_bias[b],
        )  # fmt: skip

    scan.run(work, [(b, part) for b in range(scan.batch) for part in range(parts)], threads)
    join = _add_parts(scan.dtype)
    join(parts_B, grad_B)
    join(parts_C, grad_C)
    of_D, of_bias = (scan.by_channel(each.sum(0)[:, None])[:, 0] for each in (grad_D, grad_bias))
    return scan.by_channel(grad_A.sum(0)), of_D, of_bias


@functools.cache
def _forward(dtype: Any) -> Any:
    """Return the compiled function for a dtype; it does not check its arguments."""
    return forward.compile(signature_of_forward(dtype))


@functools.cache
def _backward(dtype: Any) -> Any:
    return backward.compile(signature_of_backward(dtype))


@functools.cache
def _add_parts(dtype: Any) -> Any:
    return add_parts.compile(signature_of_parts(dtype))


def array(tensor: Tensor) -> Array:
    """Return a tensor's memory as an array."""
    found: Array = tensor.detach().numpy()
    return found


def _arguments(*tensors: Tensor | None, delta_softplus: bool) -> Arguments:
    arrays: list[Any] = [None if tensor is None else array(tensor) for tensor in tensors]
    return Arguments(*arrays, delta_softplus)


@torch.library.custom_op("umamba::selective_scan_cpu", mutates_args=(), device_types="cpu")
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
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out (B, L, D), the last state (B, D, N) and, with `keep_states`, the states at the start of each chunk."""
    arguments = _arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus)
    out, starts = u.new_empty(u.shape), u.new_empty(_kept(u, A, B, keep_states))
    last = run_forward(arguments, array(out), array(starts) if keep_states else None, torch.get_num_threads())
    return out, torch.from_numpy(last), starts


def _kept(u: Tensor, A: Tensor, B: Tensor, keep_states: bool) -> tuple[int, ...]:
    batch, length, channels = u.shape
    return shape_of_starts(batch, length if keep_states else 0, channels, B.shape[2], A.shape[1])


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states):  # type: ignore[no-untyped-def]
    last = u.new_empty((u.shape[0], u.shape[2], A.shape[1]))
    return u.new_empty(u.shape), last, u.new_empty(_kept(u, A, B, keep_states))


@torch.library.custom_op("umamba::selective_scan_cpu_backward", mutates_args=(), device_types="cpu")
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
    starts: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z and delta_bias; ignore those of absent arguments."""
    arguments = _arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus)
    grad_u, grad_delta, grad_B, grad_C = (each.new_empty(each.shape) for each in (u, delta, B, C))
    grad_z = u.new_empty(u.shape if z is not None else (u.shape[0], 0, u.shape[2]))
    small = run_backward(
        arguments, array(starts), array(grad), array(grad_u), array(grad_delta), array(grad_B), array(grad_C),
        array(grad_z), torch.get_num_threads(),
    )  # fmt: skip
    grad_A, grad_D, grad_bias = (torch.from_numpy(each) for each in small)
    return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias


@_scan_backward.register_fake
def _(grad, u, delta, A, B, C, D, z, delta_bias, starts, delta_softplus):  # type: ignore[no-untyped-def]
    channels = u.shape[2]
    return (
        u.new_empty(u.shape),
        u.new_empty(u.shape),
        A.new_empty(A.shape),
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        u.new_empty((channels,)),
        u.new_empty(u.shape if z is not None else (u.shape[0], 0, channels)),
        u.new_empty((channels,)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _differentiate(ctx: Any, grad: Tensor, grad_last: Tensor, grad_starts: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, starts = ctx.saved_tensors
    found = _scan_backward(grad, *tensors, starts, ctx.delta_softplus)
    wanted = (None if tensor is None else gradient for tensor, gradient in zip(tensors, found, strict=True))
    return (*wanted, None, None)


_scan.register_autograd(_differentiate, setup_context=_save)
