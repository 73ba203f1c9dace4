"""What is drawn for a patch that another device augments: the same draws in the same order as for a patch of a worker.

The worker that reads the region draws everything, the noise included, so that the patch does not depend on the device
and the CPU never waits for the device.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umamba.patches.intensity import AddNoise, ChannelTransform
from umamba.patches.spatial import MirrorPatch

Rows = list[tuple[int, np.ndarray]]  # the channels that are changed, each with its numbers


class Drawn:
    """The draws of one patch.

    It is no dataclass, because Lightning and PyTorch would look into a dataclass for tensors to move.

    Attributes:
        matrix: of rotation and scaling, see `RotateScaleCrop.draw_matrix`; None: the patch is the centre of its region.
        rows: number of a transform in the chain -> the channels that it changes.
        noise: standard deviation of the noise; None: there is none.
        mirrored: axes that are mirrored, 1 is Z.
    """

    __slots__ = ("matrix", "mirrored", "noise", "rows")

    def __init__(self, matrix: np.ndarray | None) -> None:
        self.matrix = matrix
        self.rows: dict[int, Rows] = {}
        self.noise: float | None = None
        self.mirrored: tuple[int, ...] = ()


def draw_all(transforms: Sequence[Any], matrix: np.ndarray | None, shape: Sequence[int]) -> tuple[Drawn, list[Tensor]]:
    """Draw for all transforms of a patch as `apply_all` does, without applying them.

    Args:
        transforms: the chain of a patch, without transforms of TorchIO.
        matrix: what the chain's `RotateScaleCrop` has drawn.
        shape: of the patch (C, Z, Y, X).

    Returns:
        The draws, and the noise (C, Z, Y, X) float32 in a list, which is empty if the patch gets none.
    """
    drawn, noise = Drawn(matrix), list[Tensor]()
    torch.rand(1)  # the draw of tio.Compose, whose probability is 1
    for number, step in enumerate(transforms):
        if torch.rand(1).item() > step.probability:
            continue
        if isinstance(step, AddNoise):
            values, drawn.noise = step.draw(shape)
            noise.append(values)
        elif isinstance(step, ChannelTransform):
            drawn.rows[number] = [(channel, step.numbers(own, shape[1:])) for channel, own in step.draw(shape)]
        elif isinstance(step, MirrorPatch):
            drawn.mirrored = step.draw()
    return drawn, noise
