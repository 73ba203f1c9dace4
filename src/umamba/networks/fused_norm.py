"""InstanceNorm + residual + LeakyReLU as one PyTorch operator on bfloat16 feature maps with channels last, on the CPU.

PyTorch's own operators read and write such a map nine times, three of them in float32 and in another layout.
"""

import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umamba.networks.threads import in_threads

BLOCK_ELEMENTS = 32768  # of a block of voxels; a sum over a block is in float32
ROW_ELEMENTS = 256  # of a row of the compiled kernels, where the number of voxels allows it
FEW_ELEMENTS = 1 << 18  # so few are computed by the calling thread alone


@cache
def compiled() -> bool:
    """Return whether Numba is installed, which compiles the kernels at their first use."""
    return find_spec("numba") is not None


def channels_last(dim: int) -> torch.memory_format:
    """Return the memory format with the channels last for 2 or 3 spatial axes."""
    return torch.channels_last if dim == 2 else torch.channels_last_3d


def register_gradient(forward: Any, backward: Callable[..., tuple[Tensor, ...]]) -> None:
    """Let an operator of norm, sum and LeakyReLU have a gradient.

    Args:
        forward: the operator: x, residual or None, weight, bias, slope, eps -> y, mean, 1 / standard deviation.
        backward: the gradient of y, x, y, residual, weight, mean, 1 / standard deviation, slope -> the gradients of x,
            residual, weight and bias. y is None without LeakyReLU, which alone needs it; of the residual only layout
            and dtype matter, and without one its gradient is empty.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, residual, weight, _, ctx.slope, _ = inputs
        ctx.likeness = None if residual is None else residual.new_empty(0)
        ctx.save_for_backward(x, None if ctx.slope == 1 else output[0], weight, output[1], output[2])

    def differentiate(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_rstd: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, rstd = ctx.saved_tensors
        to_x, to_residual, to_weight, to_bias = backward(grad, x, y, ctx.likeness, weight, mean, rstd, ctx.slope)
        return to_x, None if ctx.likeness is None else to_residual, to_weight, to_bias, None, None

    forward.register_autograd(differentiate, setup_context=save)


def norm_activation(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, slope: float, eps: float
) -> Tensor:
    """Return LeakyReLU(InstanceNorm(x) + residual) in bfloat16 with the channels last.

    Args:
        x: (B, C, *S), bfloat16 on the CPU.
        residual: same shape, or None.
        weight: (C,) float32.
        bias: (C,) float32.
        slope: of LeakyReLU, more than 0; 1 leaves LeakyReLU out.
        eps: added to the variance.
    """
    y: Tensor = _norm_activation(x, residual, weight, bias, slope, eps)[0]
    return y


@torch.library.custom_op("umamba::norm_activation_cpu", mutates_args=(), device_types="cpu")
def _norm_activation(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from umamba.networks.fused_norm_kernels import normalise, statistics

    x = _arranged(x)
    y = torch.empty_like(x)
    side = _side(x)
    rows, out = _rows(x, side), _rows(y, side)
    block, parts = _parts(rows, 3)
    in_blocks(lambda first, stop: statistics(rows, block, first, stop, parts), len(parts), rows.size)
    mean, variance = _moments(parts, rows.shape, block, side)
    rstd = 1 / np.sqrt(variance + eps)
    scale = rstd * _vector(weight)
    shift = _vector(bias) - mean * scale
    scale, shift = _repeated(scale, side), _repeated(shift, side)
    added = rows[:, :0] if residual is None else _rows(_arranged(residual), side)
    edge = np.float32(slope)
    in_blocks(
        lambda first, stop: normalise(rows, added, scale, shift, edge, block, first, stop, out), len(parts), rows.size
    )
    return y, torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(rstd.astype(np.float32))


@_norm_activation.register_fake
def _(x, residual, weight, bias, slope, eps):  # type: ignore[no-untyped-def]
    moments = x.new_empty(x.shape[:2], dtype=torch.float32)
    return torch.empty_like(x, memory_format=channels_last(x.ndim - 2)), moments, torch.empty_like(moments)


@torch.library.custom_op("umamba::norm_activation_cpu_backward", mutates_args=(), device_types="cpu")
def _norm_activation_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from umamba.networks.fused_norm_kernels import differentiate, gradient_sums

    x, grad = _arranged(x), _arranged(grad)
    grad_x = torch.empty_like(x)
    grad_residual = torch.empty_like(x) if residual is not None else x.new_empty(0)
    side = _side(x)
    g, rows, out = (_rows(each, side) for each in (grad, x, x if y is None else y))
    edge, own_mean, inverse = np.float32(slope), mean.numpy(), rstd.numpy().astype(np.float64)
    centre = _repeated(own_mean, side)
    block, parts = _parts(rows, 2)
    in_blocks(
        lambda first, stop: gradient_sums(g, rows, out, centre, edge, block, first, stop, parts), len(parts), rows.size
    )
    batch, channels, *spatial = x.shape
    voxels = math.prod(spatial)
    sums = parts.reshape(batch, -1, 2, side, channels).sum((1, 3), dtype=np.float64)
    total, product = sums[:, 0], sums[:, 1] * inverse
    a = inverse * _vector(weight)
    b = -a * inverse * product / voxels
    c = -a * total / voxels - b * own_mean
    a, b, c = (_repeated(each, side) for each in (a, b, c))
    to_x, to_residual = _rows(grad_x, side), rows[:, :0] if residual is None else _rows(grad_residual, side)
    in_blocks(
        lambda first, stop: differentiate(g, rows, out, a, b, c, edge, block, first, stop, to_x, to_residual),
        len(parts),
        rows.size,
    )
    by_weight, by_bias = (torch.from_numpy(each.sum(0).astype(np.float32)) for each in (product, total))
    return grad_x, grad_residual, by_weight, by_bias


@_norm_activation_backward.register_fake
def _(grad, x, y, residual, weight, mean, rstd, slope):  # type: ignore[no-untyped-def]
    like = torch.empty_like(x, memory_format=channels_last(x.ndim - 2))
    by_residual = x.new_empty(0) if residual is None else torch.empty_like(like)
    return like, by_residual, torch.empty_like(weight), torch.empty_like(weight)


register_gradient(_norm_activation, _norm_activation_backward)


def _arranged(x: Tensor) -> Tensor:
    """Return x in bfloat16 with the channels last; x itself if it is so."""
    return x.to(torch.bfloat16).contiguous(memory_format=channels_last(x.ndim - 2))


def _side(x: Tensor) -> int:
    """Return how many voxels lie side by side in a row: few channels alone do not fill the registers of a processor."""
    voxels, side = x[0, 0].numel(), 1
    while side * x.shape[1] < ROW_ELEMENTS and voxels % (2 * side) == 0:
        side *= 2
    return side


def _rows(x: Tensor, side: int) -> np.ndarray:
    """Return the bits of a bfloat16 tensor with the channels last as an array that shares its memory.

    Its shape is (B, V / side, side * C) for V voxels.
    """
    rows = x.detach().movedim(1, -1).reshape(len(x), -1, side * x.shape[1])
    array: np.ndarray = rows.view(torch.int16).numpy().view(np.uint16)
    return array


def _repeated(values: np.ndarray, side: int) -> np.ndarray:
    """Return values (B, C) for the channels of a row (B, side * C), in float32."""
    return np.tile(values.astype(np.float32), (1, side))


def _vector(parameter: Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


def _blocks(rows: np.ndarray, block: int) -> int:
    """Return the number of blocks of all samples."""
    return len(rows) * -(-rows.shape[1] // block)


def _parts(rows: np.ndarray, sums: int) -> tuple[int, np.ndarray]:
    """Return the voxels of a block, a function of the shape alone, and room for `sums` sums of each block."""
    block = max(1, BLOCK_ELEMENTS // rows.shape[2])
    return block, np.empty((_blocks(rows, block), sums, rows.shape[2]), np.float32)


def _moments(parts: np.ndarray, shape: tuple[int, ...], block: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance (B, C) in float64 from the sums of `statistics` (Chan, Golub and LeVeque, 1979)."""
    batch, rows, _ = shape
    origin, total, squares = np.moveaxis(parts.reshape(batch, -1, 3, side, shape[2] // side).astype(np.float64), 2, 0)
    counts = np.minimum(block, rows - block * np.arange(origin.shape[1]))[:, None, None]
    means = origin + total / counts
    inner = squares - total**2 / counts
    mean = (counts * means).sum((1, 2)) / (rows * side)
    variance = (inner + counts * (means - mean[:, None, None]) ** 2).sum((1, 2)) / (rows * side)
    return mean, np.maximum(variance, 0)


def in_blocks(work: Callable[[int, int], None], blocks: int, elements: int) -> None:
    """Call work(first, stop) for shares of the blocks, in as many threads as PyTorch uses, or alone if they are few.

    Args:
        work: computes the blocks from `first` up to but excluding `stop`.
        blocks: number of blocks.
        elements: elements of all blocks.
    """
    threads = 1 if elements < FEW_ELEMENTS else min(torch.get_num_threads(), blocks)
    edges = [blocks * part // threads for part in range(threads + 1)]
    in_threads(lambda share: work(*share), list(pairwise(edges)), threads)
