"""A way around wrong gradients of 3D convolutions in bfloat16 on CPUs.

Seen with torch 2.13 on a CPU with AVX512_BF16: where a map is two voxels deep, and the kernel three with a padding of
one, the weight gradient of a convolution of 16 or more channels is computed from memory that was never written: NaN,
or plausible and wrong. The same convolution of an input that was padded beforehand is right.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class DepthTwoConv3d(nn.Conv3d):
    """A 3D convolution that pads maps of two voxels' depth itself, on the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, Z, Y, X) as `nn.Conv3d` does."""
        if input.device.type != "cpu" or input.shape[2] != 2 or self.padding[0] != 1:
            return super().forward(input)
        padded = F.pad(input, (0, 0, 0, 0, 1, 1))
        inner = (0, *self.padding[1:])
        return F.conv3d(padded, self.weight, self.bias, self.stride, inner, self.dilation, self.groups)


def protect_gradients(network: nn.Module) -> None:
    """Make all 3D convolutions of a network, MONAI's too, of the class above; names and weights stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d and module.padding_mode == "zeros":
            module.__class__ = DepthTwoConv3d
