"""Random convolutions: another contrast and texture for the same shapes (Xu et al., ICLR 2021, arXiv 2007.13003).

The filter is a sum of shifted channels, because a convolution on a GPU may round to TF32.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from umamba.patches.intensity import EPSILON, ChannelTransform
from umamba.patches.seeding import draw_uniform
from umamba.settings.augmentation import Convolution

EDGE = 3  # voxels of the filter along each axis


class ConvolveRandomly(ChannelTransform):
    """Filter each channel by random weights, restore its mean and standard deviation, and mix it with the channel.

    Args:
        convolution: probabilities and range of the filtered share.
        in_plane: the filter has one voxel along the first axis: 2D patches and flat 3D patches.
    """

    def __init__(self, convolution: Convolution, in_plane: bool) -> None:
        super().__init__(convolution.p, convolution.p_channel)
        self.share = convolution.share
        self.kernel = (1 if in_plane else EDGE, EDGE, EDGE)

    def draw_channel(self) -> tuple[Tensor, float]:
        """Draw the weights (Z, Y, X) of the filter and the share of the filtered channel."""
        return torch.randn(self.kernel), draw_uniform(*self.share)

    def change(self, channel_ZYX: Tensor, drawn: tuple[Tensor, float]) -> Tensor:
        """Return the mixed channel."""
        return self.change_rows(channel_ZYX[None], torch.from_numpy(self.numbers(drawn, ())).float()[None])[0]

    def numbers(self, drawn: Any, shape: Sequence[int]) -> np.ndarray:
        """Return the weights and the share."""
        weights, share = drawn
        return np.append(weights.numpy().astype(np.float64).ravel(), share)

    def change_rows(self, rows_RZYX: Tensor, numbers_RN: Tensor) -> Tensor:
        """Return the mixed channels; beyond the border the outermost voxels continue."""
        border = [side for edge in reversed(self.kernel) for side in (edge // 2, edge // 2)]
        padded = functional.pad(rows_RZYX[None], border, mode="replicate")
        filtered = torch.zeros_like(rows_RZYX)
        depth, height, width = rows_RZYX.shape[1:]
        for tap, (z, y, x) in enumerate(itertools.product(*map(range, self.kernel))):
            shifted = padded[0, :, z : z + depth, y : y + height, x : x + width]
            filtered.addcmul_(shifted, numbers_RN[:, tap].view(-1, 1, 1, 1))
        (mean, std), (own_mean, own_std) = (_mean_and_std(each) for each in (rows_RZYX, filtered))
        restored = (filtered - own_mean) * (std / own_std.clamp_min(EPSILON)) + mean
        return torch.lerp(rows_RZYX, restored, numbers_RN[:, -1].view(-1, 1, 1, 1))


def _mean_and_std(rows_RZYX: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and population standard deviation of each channel, (R, 1, 1, 1)."""
    mean = rows_RZYX.mean((1, 2, 3), keepdim=True)
    return mean, (rows_RZYX - mean).square().mean((1, 2, 3), keepdim=True).sqrt()
