"""Convolutional blocks in 2D and 3D, named and ordered as in nnU-Net's dynamic-network-architectures and in U-Mamba.

Feature maps are (B, C, *S) with S = (Z, Y, X) or (Y, X). All convolutions have a bias except the projections of the
residual encoder; norms are InstanceNorm with affine weights, activations LeakyReLU of slope 0.01.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba.networks.cpu_layers import LARGEST_HALF as LARGEST_HALF
from umamba.networks.cpu_layers import (
    ChannelsLastConv2d,
    ChannelsLastConv3d,
    ChannelsLastTransposed2d,
    ChannelsLastTransposed3d,
    NormActivation2d,
    NormActivation3d,
    on_fast_path,
)
from umamba.networks.cpu_layers import saturated as saturated

SLOPE = 0.01


@dataclass(frozen=True)
class Operators:
    """The layer classes for 2D or for 3D."""

    conv: Callable[..., nn.Module]
    transposed: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    average_pool: Callable[..., nn.Module]


def operators(dim: int) -> Operators:
    """Return the layer classes for `dim` 2 or 3."""
    if dim == 2:
        return Operators(ChannelsLastConv2d, ChannelsLastTransposed2d, NormActivation2d, nn.AvgPool2d)
    return Operators(ChannelsLastConv3d, ChannelsLastTransposed3d, NormActivation3d, CellMean3d)


class _CellMean(torch.autograd.Function):
    """Average pooling whose kernel is its stride; PyTorch's own gradient has no deterministic form on a GPU in 3D."""

    @staticmethod
    def forward(context: Any, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Return the mean of each cell."""
        context.size, context.kernel = x.shape[2:], kernel
        return F.avg_pool3d(x, kernel, kernel)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient: each voxel has its share of its cell's, and zero beyond the last whole cell."""
        found = gradients[0] / math.prod(context.kernel)
        sizes = [axis * step for axis, step in zip(found.shape[2:], context.kernel, strict=True)]
        cells = found[:, :, :, None, :, None, :, None]
        a, b, c = context.kernel
        found = cells.expand(-1, -1, -1, a, -1, b, -1, c).reshape(*found.shape[:2], *sizes)
        rest = [whole - size for whole, size in zip(context.size, sizes, strict=True)]
        padding = [side for missing in reversed(rest) for side in (0, missing)]
        return F.pad(found, padding) if any(rest) else found, None


class CellMean3d(nn.AvgPool3d):
    """Average pooling in 3D whose kernel is its stride; deterministic on a GPU if PyTorch is asked to be."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, Z, Y, X) to the same output and gradient as `nn.AvgPool3d`."""
        if input.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
            return super().forward(input)
        pooled: Tensor = _CellMean.apply(input, self.kernel_size)
        return pooled


def convolution(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], bias: bool = True
) -> nn.Module:
    """Return a convolution, padded so that a stride of 1 keeps the size.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: odd kernel size of each axis; two or three entries make a 2D or 3D convolution.
        stride: stride of each axis.
        bias: whether it has a bias.
    """
    padding = tuple(size // 2 for size in kernel)
    return operators(len(kernel)).conv(inputs, outputs, tuple(kernel), tuple(stride), padding, bias=bias)


def norm(channels: int, dim: int) -> nn.Module:
    """Return InstanceNorm with weight and bias for `dim` 2 or 3."""
    return operators(dim).norm(channels, eps=1e-5, affine=True)


def ones(dim: int) -> tuple[int, ...]:
    """Return the kernel or stride of one voxel on each of `dim` axes."""
    return (1,) * dim


class ConvNorm(nn.Module):
    """Convolution, norm, LeakyReLU.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: kernel size of each axis.
        stride: stride of each axis.
        bias: whether the convolution has a bias.
        activate: whether there is a LeakyReLU.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        bias: bool = True,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs, kernel, stride, bias)
        self.norm = norm(outputs, len(kernel))
        self.slope = SLOPE if activate else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *S) to (B, outputs, *S / stride)."""
        return self.norm(self.conv(x), None, self.slope)


class ConvStack(nn.Module):
    """A stage of the plain U-Net: convolution, norm and LeakyReLU, repeated.

    Args:
        count: number of convolutions.
        inputs: input channels.
        outputs: output channels.
        kernel: kernel size of each axis.
        stride: stride of the first convolution on each axis.
    """

    def __init__(self, count: int, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        first = ConvNorm(inputs, outputs, kernel, stride)
        rest = (ConvNorm(outputs, outputs, kernel, ones(len(kernel))) for _ in range(count - 1))
        self.convs = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *S) to (B, outputs, *S / stride)."""
        return self.convs(x)


class ResidualBlock(nn.Module):
    """The block of nnU-Net's residual encoder (ResNet-D): two convolutions beside a skip.

    The skip is average pooling if the block is strided, then a 1x1 convolution with norm if the number of channels
    changes; otherwise it is the identity.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: kernel size of each axis.
        stride: stride of each axis.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        unit = ones(len(kernel))
        self.conv1 = ConvNorm(inputs, outputs, kernel, stride)
        self.conv2 = ConvNorm(outputs, outputs, kernel, unit, activate=False)
        self.skip = nn.Sequential()
        if any(step != 1 for step in stride):
            self.skip.append(operators(len(kernel)).average_pool(tuple(stride), tuple(stride)))
        if inputs != outputs:
            self.skip.append(ConvNorm(inputs, outputs, unit, unit, bias=False, activate=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *S) to (B, outputs, *S / stride)."""
        return self.conv2.norm(self.conv2.conv(self.conv1(x)), self.skip(x), SLOPE)


class ProjectionBlock(nn.Module):
    """U-Mamba's residual block: two convolutions beside a strided 1x1 convolution without norm as the skip.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: kernel size of each axis.
        stride: stride of each axis.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        dim = len(kernel)
        self.conv1 = convolution(inputs, outputs, kernel, stride)
        self.norm1 = norm(outputs, dim)
        self.conv2 = convolution(outputs, outputs, kernel, ones(dim))
        self.norm2 = norm(outputs, dim)
        self.conv3 = convolution(inputs, outputs, ones(dim), stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *S) to (B, outputs, *S / stride)."""
        y = self.norm1(self.conv1(x), None, SLOPE)
        return self.norm2(self.conv2(y), saturated(self.conv3(x)), SLOPE)


class NearestUpsample(nn.Module):
    """Nearest-neighbour upsampling, then a 1x1 convolution.

    Args:
        inputs: input channels.
        outputs: output channels.
        stride: upsampling factor of each axis.
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        dim = len(stride)
        self.scale = [float(step) for step in stride]
        self.conv = convolution(inputs, outputs, ones(dim), ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *S) to (B, outputs, *S * stride)."""
        if on_fast_path(x):  # the same values, because the kernel has one voxel; fewer voxels to multiply
            return F.interpolate(self.conv(x), scale_factor=self.scale, mode="nearest")
        return self.conv(F.interpolate(x, scale_factor=self.scale, mode="nearest"))


def transposed_upsample(inputs: int, outputs: int, stride: Sequence[int]) -> nn.Module:
    """Return a transposed convolution whose kernel size equals its stride, the upsampling factor of each axis."""
    return operators(len(stride)).transposed(inputs, outputs, tuple(stride), tuple(stride))


def residual_stack(first: nn.Module, count: int, channels: int, kernel: Sequence[int]) -> list[nn.Module]:
    """Return `count` blocks: `first`, then residual blocks that keep the size and the number of channels."""
    unit = ones(len(kernel))
    return [first, *(ResidualBlock(channels, channels, kernel, unit) for _ in range(count - 1))]


def initialise_convolutions(network: nn.Module) -> None:
    """Draw He-normal weights (slope 0.01) and set biases to zero in all 2D and 3D convolutions, in no other layer."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
