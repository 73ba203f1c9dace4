"""The compiled CPU scan as a PyTorch operator, for autograd, autocast, torch.compile and gradient checkpointing.

Each thread computes a sample or a range of its channels. The split depends only on the shapes and the number of
threads, so that results repeat bit for bit.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umamba.networks.scan.cpu_kernels import CHUNK, LANES, backward, forward


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
        out (B, D, L) and the last state (B, D, N).
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    needs_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out, last, _ = _scan(*tensors, delta_softplus, needs_gradient)
    return out, last


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
    arguments = _Arguments(u, delta, A, B, C, D, z, delta_bias)
    batch, channels, length = u.shape
    states = (len(arguments.A), LANES)
    out = np.empty((batch, channels, length), arguments.dtype)
    last = np.empty((batch, channels, *states), arguments.dtype)
    starts = np.empty((batch, channels, -(-length // CHUNK) if keep_states else 0, *states), arguments.dtype)

    def work(task: tuple[int, int, int]) -> None:
        forward(*arguments.arrays(), delta_softplus, arguments.constant, *task, out, last, starts)

    _in_threads(work, _tasks(batch, channels))
    final = last.reshape(batch, channels, -1)[:, :, : A.shape[1]].copy()
    return torch.from_numpy(out), torch.from_numpy(final), torch.from_numpy(starts)


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states):  # type: ignore[no-untyped-def]
    batch, channels, length = u.shape
    chunks = -(-length // CHUNK) if keep_states else 0
    return (
        u.new_empty((batch, channels, length)),
        u.new_empty((batch, channels, A.shape[1])),
        u.new_empty((batch, channels, chunks, -(-A.shape[1] // LANES), LANES)),
    )


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
    arguments = _Arguments(u, delta, A, B, C, D, z, delta_bias)
    dtype, (batch, channels, _) = arguments.dtype, u.shape
    grad_u, grad_delta = np.empty(u.shape, dtype), np.empty(u.shape, dtype)
    grad_z = np.empty(u.shape if z is not None else (batch, channels, 0), dtype)
    tasks = _tasks(batch, channels)
    # Gradients that are sums over samples or channels: each task fills its own, and they are added in order at the end.
    grad_A = np.zeros((batch, *arguments.A.shape), dtype)
    grad_D, grad_bias = np.zeros((batch, channels), dtype), np.zeros((batch, channels), dtype)
    grad_B = np.zeros((len(tasks), *arguments.B.shape[1:]), dtype)
    grad_C = np.zeros((len(tasks), *arguments.C.shape[1:]), dtype)
    gradient, kept = _array(grad), starts.numpy()

    def work(numbered: tuple[int, tuple[int, int, int]]) -> None:
        number, task = numbered
        sample = task[0]
        backward(
            *arguments.arrays(), delta_softplus, arguments.constant, *task, kept, gradient,
            grad_u, grad_delta, grad_A[sample], grad_B[number], grad_C[number],
            grad_D[sample], grad_z, grad_bias[sample],
        )  # fmt: skip

    _in_threads(work, list(enumerate(tasks)))
    samples = [task[0] for task in tasks]
    return (
        torch.from_numpy(grad_u),
        torch.from_numpy(grad_delta),
        torch.from_numpy(_by_state(grad_A.sum(0), A.shape[1])),
        torch.from_numpy(_like(grad_B, samples, B, batch)),
        torch.from_numpy(_like(grad_C, samples, C, batch)),
        torch.from_numpy(grad_D.sum(0)),
        torch.from_numpy(grad_z),
        torch.from_numpy(grad_bias.sum(0)),
    )


@_scan_backward.register_fake
def _(grad, u, delta, A, B, C, D, z, delta_bias, starts, delta_softplus):  # type: ignore[no-untyped-def]
    channels = u.shape[1]
    return (
        torch.empty_like(u, memory_format=torch.contiguous_format),
        torch.empty_like(u, memory_format=torch.contiguous_format),
        A.new_empty(A.shape),
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        u.new_empty((channels,)),
        u.new_empty(u.shape if z is not None else (u.shape[0], channels, 0)),
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


class _Arguments:
    """The scan's tensors as arrays for the compiled code; B and C have the states of a token side by side, padded."""

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
    ) -> None:
        batch, channels, _ = u.shape
        self.u, self.delta = _array(u), _array(delta)
        self.dtype = self.u.dtype
        self.A, self.B, self.C = _by_lane(_array(A)), _by_token(B), _by_token(C)
        zeros = np.zeros(channels, self.dtype)
        self.D = zeros if D is None else _array(D)
        self.bias = zeros if delta_bias is None else _array(delta_bias)
        self.z = np.empty((batch, channels, 0), self.dtype) if z is None else _array(z)
        self.constant = B.ndim == 2

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Return the arrays in the order in which the compiled functions take them."""
        return self.u, self.delta, self.A, self.B, self.C, self.D, self.z, self.bias


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array


def _by_lane(array: np.ndarray) -> np.ndarray:
    """Reshape (..., rows, N) to (..., K, rows, LANES), padded with zeros; the padded states stay 0 in the scan."""
    *front, rows, states = array.shape
    groups = -(-states // LANES)
    if groups == 1 and states == LANES:
        return array.reshape(*front, 1, rows, LANES)
    padded = np.zeros((*front, groups, rows, LANES), array.dtype)
    for k in range(groups):
        part = array[..., k * LANES : (k + 1) * LANES]
        padded[..., k, :, : part.shape[-1]] = part
    return padded


def _by_state(array: np.ndarray, states: int) -> np.ndarray:
    """Reverse `_by_lane` for `states` states."""
    joined = array.swapaxes(-3, -2).reshape(*array.shape[:-3], array.shape[-2], -1)
    return np.ascontiguousarray(joined[..., :states])


def _by_token(matrix: Tensor) -> np.ndarray:
    """Return B or C as (B, G, K, L, LANES), or as (1, D, K, 1, LANES) if it is the same for all tokens."""
    if matrix.ndim == 2:  # (D, N): each channel is a group of its own
        return _by_lane(_array(matrix[None, :, None]))
    grouped = matrix[:, None] if matrix.ndim == 3 else matrix
    return _by_lane(_array(grouped.transpose(2, 3)))


def _like(parts: np.ndarray, samples: list[int], matrix: Tensor, batch: int) -> np.ndarray:
    """Sum the tasks' gradients (tasks, G, K, L or 1, LANES) and return them in the shape of B or C."""
    states = matrix.shape[1] if matrix.ndim == 2 else matrix.shape[-2]
    parts = _by_state(parts, states)  # (tasks, G, L or 1, N)
    if matrix.ndim == 2:
        return np.ascontiguousarray(parts.sum(0)[:, 0])
    if len(samples) > batch:
        parts = np.stack([parts[[s == sample for s in samples]].sum(0) for sample in range(batch)])
    turned = parts.swapaxes(2, 3)
    return np.ascontiguousarray(turned[:, 0] if matrix.ndim == 3 else turned)


def _tasks(batch: int, channels: int) -> list[tuple[int, int, int]]:
    """Return tasks (sample, first channel, end): whole samples if there are enough for all threads, else parts."""
    parts = min(channels, -(-torch.get_num_threads() // batch))
    edges = [channels * part // parts for part in range(parts + 1)]
    return [(b, first, stop) for b in range(batch) for first, stop in pairwise(edges)]


def _in_threads(work: Any, tasks: list[Any]) -> None:
    threads = min(torch.get_num_threads(), len(tasks))
    if threads == 1:
        for task in tasks:
            work(task)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, tasks))
