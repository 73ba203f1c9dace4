"""InstanceNorm + residual + LeakyReLU in Triton: contiguous maps or channels last; float32, bfloat16 or float16.

Every instance (a channel of a sample) is divided into parts, because 64 instances alone do not fill a GPU. Statistics
are float32: each lane follows the mean of its own voxels (Welford, 1962), and means are merged by Chan, Golub and
LeVeque (1979), so that nothing cancels. The division depends on the shape alone, and sums have a fixed order without
atomic additions; results therefore repeat bit for bit.
"""

import torch
import triton
from torch import Tensor

from umamba.networks.fused_norm import channels_last, register_gradient
from umamba.networks.fused_norm_triton_kernels import differentiate, gradient_sums, merge, normalise, statistics

_TILE = 2048  # elements of a map that a program holds
_WIDEST = 64  # channels of a tile if they are last
_ENOUGH = 2048  # programs that fill a large GPU
_MOST_PARTS = 512  # of an instance


def norm_activation(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, slope: float, eps: float
) -> Tensor:
    """Return LeakyReLU(InstanceNorm(x) + residual) in the dtype and the layout of x.

    In float16, x and the result are clamped to the range of float16 (docs/nan.md).

    Args:
        x: (B, C, *S) float32, bfloat16 or float16 on a CUDA device (any device in Triton's interpreter); contiguous
            or with the channels last, otherwise it is copied.
        residual: same shape, or None.
        weight: (C,) float32.
        bias: (C,) float32.
        slope: of LeakyReLU, more than 0; 1 leaves LeakyReLU out.
        eps: added to the variance.
    """
    y: Tensor = _norm_activation(x, residual, weight, bias, slope, eps)[0]
    return y


@torch.library.custom_op("umamba::norm_activation_triton", mutates_args=())
def _norm_activation(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y in the shape of x, and mean and 1 / sqrt(variance + eps), (B, C) float32."""
    last = _is_last(x)
    x = _arranged(x, last)
    call = _Call(x, last)
    y, mean, rstd = torch.empty_like(x), *call.empty(2)
    means, squares = call.empty(2, call.parts)
    added = None if residual is None else _arranged(residual, last)
    with torch.cuda.device_of(x):
        statistics[call.grid](x, means, squares, *call.sizes, **call.blocks)
        merge[(mean.numel(),)](
            means, squares, mean, rstd, mean.numel(), call.parts, call.voxels, call.span, eps,
            PARTS=triton.next_power_of_2(call.parts), num_warps=1,
        )  # fmt: skip
        normalise[call.grid](
            x, added, weight, bias, mean, rstd, y, *call.sizes, slope, RESIDUAL=added is not None, **call.blocks
        )
    return y, mean, rstd


@_norm_activation.register_fake
def _(x, residual, weight, bias, slope, eps):  # type: ignore[no-untyped-def]
    moments = x.new_empty(x.shape[:2], dtype=torch.float32)
    return _empty_like(x), moments, torch.empty_like(moments)


@torch.library.custom_op("umamba::norm_activation_triton_backward", mutates_args=())
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
    last = _is_last(x)
    x, grad = _arranged(x, last), _arranged(grad, last)
    call = _Call(x, last)
    y = x if y is None else _arranged(y, last)
    activation = slope != 1
    grad_x = torch.empty_like(x)
    grad_residual = torch.empty_like(x, dtype=residual.dtype) if residual is not None else x.new_empty(0)
    parts = x.new_empty((2, call.parts, *x.shape[:2]), dtype=torch.float32)
    with torch.cuda.device_of(x):
        gradient_sums[call.grid](
            grad, x, y, mean, parts[0], parts[1], *call.sizes, slope, ACTIVATION=activation, **call.blocks
        )
        totals, products = parts.sum(1)
        differentiate[call.grid](
            grad, x, y, weight, mean, rstd, totals, products, grad_x, grad_residual, *call.sizes, slope,
            RESIDUAL=residual is not None, ACTIVATION=activation, **call.blocks,
        )  # fmt: skip
    return grad_x, grad_residual, (products * rstd).sum(0).to(weight.dtype), totals.sum(0).to(weight.dtype)


@_norm_activation_backward.register_fake
def _(grad, x, y, residual, weight, mean, rstd, slope):  # type: ignore[no-untyped-def]
    by_residual = x.new_empty(0) if residual is None else _empty_like(x).to(residual.dtype)
    return _empty_like(x), by_residual, torch.empty_like(weight), torch.empty_like(weight)


register_gradient(_norm_activation, _norm_activation_backward)


class _Call:
    """The division of a map (B, C, *S) into programs.

    Args:
        x: the map.
        last: whether its channels are last.
    """

    def __init__(self, x: Tensor, last: bool) -> None:
        batch, channels = x.shape[:2]
        self.voxels = x[0, 0].numel()
        width = min(_WIDEST, triton.next_power_of_2(channels)) if last else 1
        rows = min(max(1, _TILE // width), triton.next_power_of_2(self.voxels))
        groups = batch * triton.cdiv(channels, width)
        parts = min(max(1, _ENOUGH // groups), triton.cdiv(self.voxels, rows), _MOST_PARTS)
        self.span = triton.cdiv(triton.cdiv(self.voxels, parts), rows) * rows
        self.parts = triton.cdiv(self.voxels, self.span)
        self.grid = (self.parts, triton.cdiv(channels, width), batch)
        self.sizes = (channels, self.voxels, self.span, *((1, channels) if last else (self.voxels, 1)))
        self.blocks = {
            "X_HALF": x.dtype == torch.float16,
            "ROWS": rows,
            "CHANNELS": width,
            "num_warps": max(1, min(4, rows * width // 512)),
        }
        self.x = x

    def empty(self, count: int, *before: int) -> list[Tensor]:
        """Return `count` float32 tensors (*before, B, C)."""
        return [self.x.new_empty((*before, *self.x.shape[:2]), dtype=torch.float32) for _ in range(count)]


def _is_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=channels_last(x.ndim - 2))


def _arranged(x: Tensor, last: bool) -> Tensor:
    """Return x contiguous, or with the channels last; x itself if it is so."""
    return x.contiguous(memory_format=channels_last(x.ndim - 2) if last else torch.contiguous_format)


def _empty_like(x: Tensor) -> Tensor:
    layout = channels_last(x.ndim - 2) if _is_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=layout)
