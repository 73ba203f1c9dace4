"""Convolution, projections, Triton scan and gate of a Mamba block as one operation.

All arrays are channel-first, (B, rows, L), so that nothing is transposed. For the backward pass it keeps only its
inputs and the states at the start of each chunk of the scan. Backward computes convolution, step sizes, B and C again,
because they are cheap.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba.networks.scan.triton import _scan, _scan_backward


def mix(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
) -> Tensor:
    """Compute the inner part of a Mamba block.

    Args:
        xz: output of `Mamba.in_proj` (B, 2 inner, L): the input of the scan, then that of the gate.
        conv_weight: weight of the causal depthwise convolution (inner, 1, d_conv).
        conv_bias: its bias (inner,).
        x_weight: weight of `Mamba.x_proj` (dt_rank + 2 N, inner).
        dt_weight: weight of `Mamba.dt_proj` (inner, dt_rank).
        dt_bias: its bias (inner,).
        A: diagonal of the state matrix (inner, N).
        D: weight of the scan's input in its output (inner,).

    Returns:
        The gated output of the scan (B, inner, L).
    """
    y: Tensor = _Mix.apply(xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D)
    return y


def _scan_inputs(
    states: int, x: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_weight: Tensor, dt_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return u, delta (B, inner, L), B and C (B, N, L) for the input x of the scan's branch (B, inner, L)."""
    inner, _, taps = conv_weight.shape
    u = F.silu(F.conv1d(x, conv_weight, conv_bias, padding=taps - 1, groups=inner)[..., : x.shape[2]])
    rank = dt_weight.shape[1]
    dt, B, C = (x_weight @ u).split([rank, states, states], dim=1)
    return u, dt_weight @ dt, B, C


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        xz, *weights, dt_bias, A, D = tensors
        x, z = xz.chunk(2, dim=1)
        u, delta, B, C = _scan_inputs(A.shape[1], x, *weights)
        out, carried = _scan(u, delta, A, B, C, D, z, dt_bias, True)
        ctx.save_for_backward(*tensors, carried)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        xz, *weights, dt_bias, A, D, carried = ctx.saved_tensors
        x, z = xz.chunk(2, dim=1)
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (x, *weights)]
            scanned = _scan_inputs(A.shape[1], *leaves)
        u, delta, B, C = (tensor.detach() for tensor in scanned)
        grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias = _scan_backward(
            grad, u, delta, A, B, C, D, z, dt_bias, carried, True
        )
        grad_x, *grad_weights = torch.autograd.grad(scanned, leaves, (grad_u, grad_delta, grad_B, grad_C))
        return torch.cat([grad_x, grad_z], dim=1), *grad_weights, grad_bias, grad_A, grad_D
