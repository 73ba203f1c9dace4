"""The scan of tensors without data (device "meta"): shapes, and what a backend keeps for the backward pass.

`umamba.networks.cost` uses it.
"""

from typing import Any

import torch
from torch import Tensor

_CHUNK = 128  # one state is kept for about this many tokens by the CPU and the Triton backend


class _Shapes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        u, _, A = tensors[0], tensors[1], tensors[2]
        assert u is not None
        assert A is not None
        batch, channels, length = u.shape
        kept = u.new_empty((batch, channels, -(-length // _CHUNK) + 1, A.shape[1]))
        ctx.save_for_backward(*tensors, kept)
        return torch.empty_like(u), u.new_empty((batch, channels, A.shape[1]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(None if tensor is None else torch.empty_like(tensor) for tensor in ctx.saved_tensors[:-1])


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
    """Return the results' shapes; the arguments are those of `selective_scan`.

    Returns:
        out (B, D, L) and the last state (B, D, N), without data.
    """
    return _Shapes.apply(u, delta, A, B, C, D, z, delta_bias)
