"""Copies on the CPU's bfloat16 path in one pass where PyTorch's operators make several; the values are equal."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from umamba.networks.fused_norm import channels_last, in_blocks


class HalfWeight(torch.autograd.Function):
    """A weight in bfloat16 with the channels last, which is how a convolution reads it.

    Otherwise autocast changes its type, and then both directions of the convolution copy it into this layout. The
    gradient gets its type and the layout of the weight in one pass, too.
    """

    @staticmethod
    def forward(context: Any, weight: Tensor) -> Tensor:
        """Return the weight (C, inputs, *kernel)."""
        context.dtype = weight.dtype
        return weight.to(torch.bfloat16, memory_format=channels_last(weight.ndim - 2))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the weight."""
        return gradient.to(context.dtype, memory_format=torch.contiguous_format)


class JoinedCells(torch.autograd.Function):
    """The cells of a transposed convolution side by side as a feature map, followed by the channels of a skip."""

    @staticmethod
    def forward(context: Any, cells: Tensor, skip: Tensor | None) -> Tensor:
        """Return (B, C + K, *S * kernel), bfloat16 with the channels last.

        Args:
            context: remembers the shapes.
            cells: (B, *S, *kernel, C), bfloat16 and contiguous.
            skip: (B, K, *S * kernel), bfloat16 with the channels last; None: there is none.
        """
        from umamba.networks.one_pass_kernels import join

        dim = (cells.ndim - 2) // 2
        sizes = [
            length * step for length, step in zip(cells.shape[1 : 1 + dim], cells.shape[1 + dim : -1], strict=True)
        ]
        channels, kept = cells.shape[-1], 0 if skip is None else skip.shape[1]
        context.cells, context.kept = cells.shape, kept
        result = cells.new_empty((len(cells), *sizes, channels + kept))
        parts, out = _bits_of_cells(cells), _bits_of_map(result)
        other = np.empty((*out.shape[:-1], 0), np.int16) if skip is None else _bits_of_map(skip.movedim(1, -1))
        rows = out.shape[0] * out.shape[1] * out.shape[2]
        in_blocks(lambda first, stop: join(parts, other, first, stop, out), rows, out.size)
        return result.movedim(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of cells and skip."""
        from umamba.networks.one_pass_kernels import separate

        whole = gradient.to(torch.bfloat16).movedim(1, -1).contiguous()
        to_cells = whole.new_empty(context.cells)
        to_skip = whole.new_empty((*whole.shape[:-1], context.kept))
        read, parts, other = _bits_of_map(whole), _bits_of_cells(to_cells), _bits_of_map(to_skip)
        rows = read.shape[0] * read.shape[1] * read.shape[2]
        in_blocks(lambda first, stop: separate(read, first, stop, parts, other), rows, read.size)
        return to_cells, to_skip.movedim(-1, 1) if context.kept else None


def _bits(x: Tensor) -> np.ndarray:
    """Return the bits of a contiguous bfloat16 tensor as an array that shares its memory."""
    array: np.ndarray = x.detach().view(torch.int16).numpy()
    return array


def _bits_of_cells(cells: Tensor) -> np.ndarray:
    """Return the bits of cells (B, *S, *kernel, C) with three spatial axes, the first of one voxel in 2D."""
    if cells.ndim == 6:
        cells = cells.unsqueeze(1).unsqueeze(4)
    return _bits(cells)


def _bits_of_map(rows: Tensor) -> np.ndarray:
    """Return the bits of a map (B, *S, C) with three spatial axes, the first of one voxel in 2D."""
    return _bits(rows.unsqueeze(1) if rows.ndim == 4 else rows)
