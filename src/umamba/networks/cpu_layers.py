"""The layers of the U-shaped networks; on a CPU under bfloat16 autocast they keep bfloat16 maps with channels last.

Names, parameters and initial weights are those of PyTorch's layers. The results are, too, everywhere else: in float32,
without Numba, and while a network is compiled, exported or traced, which should see PyTorch's operators only. On a GPU
norm, sum and LeakyReLU are one operator as well (fused_norm_triton.py); its result differs from PyTorch's by rounding.
The CPU differs where oneDNN is slow: a convolution of one input channel gets a second channel of zeros; a kernel of one
voxel and a transposed convolution are matrix products; norm, sum and LeakyReLU are one operator (fused_norm.py). Copies
of weights, and of maps that are upsampled and joined, are made in one pass (one_pass.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba.networks.depth_two import DepthTwoConv3d
from umamba.networks.fused_norm import channels_last, compiled, norm_activation
from umamba.networks.fused_norm_gpu import fused_on_gpu
from umamba.networks.one_pass import HalfWeight, JoinedCells

LARGEST_HALF = torch.finfo(torch.float16).max


def on_fast_path(x: Tensor) -> bool:
    """Return whether layers compute x in bfloat16 with the channels last (see the module's first lines)."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return half and compiled() and x.device.type == "cpu" and x.dtype != torch.float64


def arranged(x: Tensor) -> Tensor:
    """Return (B, C, *S) in bfloat16 with the channels last; x itself if it is so."""
    return x.to(torch.bfloat16, memory_format=channels_last(x.ndim - 2))


def saturated(x: Tensor) -> Tensor:
    """Clamp float16 infinities to +-65504; return other dtypes unchanged.

    Convolutions and sums without a norm overflow float16, and a norm of infinities is NaN from then on (docs/nan.md).
    Finite values do not change.
    """
    return x.clamp(-LARGEST_HALF, LARGEST_HALF) if x.dtype == torch.float16 else x


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution with a kernel of one voxel as a matrix product over the voxels."""
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def _convolved(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    x, weight = arranged(x), layer.weight
    one_voxel = all(size == 1 for size in layer.kernel_size)
    plain = all(step == 1 for step in (*layer.stride, *layer.dilation)) and layer.groups == 1
    if one_voxel and plain and not any(map(int, layer.padding)):
        return _pointwise(x, weight, layer.bias)
    if x.shape[1] == 1 and layer.groups == 1:
        zeros = (*(0, 0) * (x.ndim - 2), 0, 1)
        x, weight = arranged(F.pad(x, zeros)), F.pad(weight, zeros)
    convolution = F.conv2d if x.ndim == 4 else F.conv3d
    padding = layer.padding
    if x.ndim == 5 and x.shape[2] == 2 and padding[0] == 1:  # see depth_two.py
        x, padding = arranged(F.pad(x, (0, 0, 0, 0, 1, 1))), (0, *padding[1:])
    half: Tensor = HalfWeight.apply(weight)
    return convolution(x, half, layer.bias, layer.stride, padding, layer.dilation, layer.groups)  # type: ignore[arg-type]


def _upsampled(layer: nn.ConvTranspose2d | nn.ConvTranspose3d, x: Tensor, skip: Tensor | None) -> Tensor:
    """Return the transposed convolution whose kernel equals its stride: a matrix product, then a rearrangement."""
    x = arranged(x)
    weight = layer.weight.movedim(1, -1)  # (inputs, *kernel, outputs)
    assert layer.bias is not None
    bias = layer.bias.repeat(weight[0, ..., 0].numel())
    cells = F.linear(x.movedim(1, -1), weight.flatten(1).t(), bias).unflatten(-1, weight.shape[1:])
    found: Tensor = JoinedCells.apply(cells, None if skip is None else arranged(skip))
    return found


class ChannelsLastConv2d(nn.Conv2d):
    """A 2D convolution; see the module's first lines."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, Y, X) to the same output as `nn.Conv2d`."""
        return _convolved(self, input) if on_fast_path(input) else super().forward(input)


class ChannelsLastConv3d(DepthTwoConv3d):
    """A 3D convolution; see the module's first lines."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, Z, Y, X) to the same output as `nn.Conv3d`."""
        return _convolved(self, input) if on_fast_path(input) else super().forward(input)


class ChannelsLastTransposed2d(nn.ConvTranspose2d):
    """A transposed 2D convolution whose kernel equals its stride; see the module's first lines."""

    def forward(self, input: Tensor, output_size: list[int] | None = None, skip: Tensor | None = None) -> Tensor:
        """Map (B, C, Y, X) to the output of `nn.ConvTranspose2d`, followed by the channels of a skip."""
        if on_fast_path(input):
            return _upsampled(self, input, skip)
        return _joined(saturated(super().forward(input, output_size)), skip)


class ChannelsLastTransposed3d(nn.ConvTranspose3d):
    """A transposed 3D convolution whose kernel equals its stride; see the module's first lines."""

    def forward(self, input: Tensor, output_size: list[int] | None = None, skip: Tensor | None = None) -> Tensor:
        """Map (B, C, Z, Y, X) to the output of `nn.ConvTranspose3d`, followed by the channels of a skip."""
        if on_fast_path(input):
            return _upsampled(self, input, skip)
        return _joined(saturated(super().forward(input, output_size)), skip)


def _normalised(
    layer: nn.InstanceNorm2d | nn.InstanceNorm3d, x: Tensor, residual: Tensor | None, slope: float
) -> Tensor:
    if x[0, 0].numel() > 1:  # PyTorch's operator refuses a single voxel
        if on_fast_path(x):
            return norm_activation(arranged(x), residual, layer.weight, layer.bias, slope, layer.eps)
        if fused_on_gpu(x):
            from umamba.networks.fused_norm_triton import norm_activation as on_gpu

            return on_gpu(x, residual, layer.weight, layer.bias, slope, layer.eps)
    y = saturated(F.instance_norm(saturated(x), None, None, layer.weight, layer.bias, eps=layer.eps))
    if residual is not None:
        y += residual
        y = saturated(y)
    return y if slope == 1 else F.leaky_relu_(y, slope)


class NormActivation2d(nn.InstanceNorm2d):
    """InstanceNorm in 2D, with the sum with a residual and the LeakyReLU that may follow it."""

    def forward(self, input: Tensor, residual: Tensor | None = None, slope: float = 1.0) -> Tensor:
        """Map (B, C, Y, X) to LeakyReLU(InstanceNorm(input) + residual); a slope of 1 leaves LeakyReLU out."""
        return _normalised(self, input, residual, slope)


class NormActivation3d(nn.InstanceNorm3d):
    """InstanceNorm in 3D, with the sum with a residual and the LeakyReLU that may follow it."""

    def forward(self, input: Tensor, residual: Tensor | None = None, slope: float = 1.0) -> Tensor:
        """Map (B, C, Z, Y, X) to LeakyReLU(InstanceNorm(input) + residual); a slope of 1 leaves LeakyReLU out."""
        return _normalised(self, input, residual, slope)


def upsampled(layer: nn.Module, x: Tensor, skip: Tensor | None) -> Tensor:
    """Return the channels of an upsampled map, then those of a skip, as one feature map.

    Args:
        layer: upsamples.
        x: (B, C, *S).
        skip: (B, K, *T), T being the size of the upsampled map; None: there is none.
    """
    if isinstance(layer, ChannelsLastTransposed2d | ChannelsLastTransposed3d):
        found: Tensor = layer(x, skip=skip)
        return found
    return _joined(saturated(layer(x)), skip)


def _joined(x: Tensor, skip: Tensor | None) -> Tensor:
    if skip is None:
        return x
    if on_fast_path(x):
        x, skip = arranged(x), arranged(skip)
    return torch.cat((x, skip), dim=1)
