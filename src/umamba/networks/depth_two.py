"""A workaround for wrong bfloat16 gradients of 3D convolutions on CPUs; it changes the class of foreign layers.

The bug: PyTorch 2.13 on a CPU with AVX512_BF16 computes the weight gradient of a 3D convolution from uninitialised
memory if the feature map is two voxels deep, the kernel is three voxels deep with a padding of one, and there are 16 or
more channels. The gradient is then NaN, or plausible and wrong. If the input is padded before the convolution, the
gradient is right, so `DepthTwoConv3d` does that.

This project's blocks use `DepthTwoConv3d` directly. MONAI and modules that a user adds make `nn.Conv3d` layers in their
own code, which cannot be told to use another class. `protect_gradients` therefore changes the class of these layers
after they are made; parameters and their names stay. Only `build_network` calls it.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class DepthTwoConv3d(nn.Conv3d):
    """A 3D convolution that, on the CPU, pads feature maps of depth two itself (see the module's first lines)."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, Z, Y, X) to the same output as `nn.Conv3d`."""
        if input.device.type != "cpu" or input.shape[2] != 2 or self.padding[0] != 1:
            return super().forward(input)
        padded = F.pad(input, (0, 0, 0, 0, 1, 1))
        inner = (0, *self.padding[1:])
        return F.conv3d(padded, self.weight, self.bias, self.stride, inner, self.dilation, self.groups)


def protect_gradients(network: nn.Module) -> None:
    """Turn the `nn.Conv3d` layers of a network into `DepthTwoConv3d`, in place; parameters and their names stay.

    Args:
        network: any module; layers with another padding mode than zeros, and subclasses of `nn.Conv3d`, stay as they
            are.
    """
    for module in network.modules():
        if type(module) is nn.Conv3d and module.padding_mode == "zeros":
            module.__class__ = DepthTwoConv3d
