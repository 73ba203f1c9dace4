"""A head that classifies whole cases from the bottleneck of a segmentation network.

A backbone that can have one has `bottleneck_channels`, `bottleneck(x)` (the deepest feature map, without the decoder)
and `segment_with_bottleneck(x)` (what `forward` returns, and the bottleneck of the same pass).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from umamba.io import UserError

_LENGTH = 16
_NEEDED = ("bottleneck_channels", "bottleneck", "segment_with_bottleneck")


class CaseHead(nn.Module):
    """A linear map from the pooled bottleneck to the logits of each task.

    The mean alone would not do: behind InstanceNorm the mean of a channel is nearly the same for every image, while the
    maximum tells whether the channel found something anywhere.

    The features are scaled to the length of sixteen of them, whatever the width of the network. Without that their
    length grows with the channels, the gradient of the head exceeds that of the network, and clipping both together
    slows the segmentation down.

    Because the map is linear, the mean of the logits over the tiles of an image equals the logits of the mean features.

    Args:
        channels: of the bottleneck.
        sizes: number of classes of each task.
    """

    def __init__(self, channels: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.scale = (_LENGTH / (2 * channels)) ** 0.5
        self.tasks = nn.ModuleList(nn.Linear(2 * channels, size) for size in sizes)

    def forward(self, bottleneck: Tensor) -> list[Tensor]:
        """Map a bottleneck (B, C, *S) to logits (B, classes) float32 for each task."""
        features = self.scale * pooled(bottleneck)
        with torch.autocast(features.device.type, enabled=False):
            return [task(features) for task in self.tasks]


def pooled(bottleneck: Tensor) -> Tensor:
    """Return mean and maximum over the voxels of a feature map: (B, C, *S) to (B, 2C) float32.

    >>> pooled(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]])).tolist()
    [[2.0, -1.0, 3.0, 0.0]]
    """
    voxels = bottleneck.flatten(2).float()
    return torch.cat([voxels.mean(2), voxels.amax(2)], dim=1)


def build_case_head(network: nn.Module, name: str, sizes: Sequence[int]) -> CaseHead:
    """Build the head of a network.

    Args:
        network: what `build_network` returned.
        name: of its architecture, for the message.
        sizes: number of classes of each task.

    Raises:
        UserError: the backbone does not give its bottleneck.
    """
    missing = [needed for needed in _NEEDED if not hasattr(network, needed)]
    if missing:
        raise UserError(
            f"heads.case: architecture.name={name} has no {', no '.join(missing)}, which a classification head needs. "
            "Take another architecture, or add them (docs/own-architecture.md)."
        )
    backbone: Any = network
    return CaseHead(int(backbone.bottleneck_channels), sizes)
