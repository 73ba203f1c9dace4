"""Pretraining without labels: hide blocks of the image, and let the network reconstruct them (masked autoencoder).

Hidden voxels are 0, the mean of a z-scored image. As in nnssl's masked autoencoder for convolutional networks (Wald et
al., CVPR 2025, arXiv 2410.23132), the loss is the squared error of the hidden voxels alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss as squared_error

from umamba.io import UserError
from umamba.patches.seeding import generator_of
from umamba.planning import Configuration
from umamba.records import CheckpointRecord
from umamba.settings import MaskingSettings
from umamba.training.module import SegmentationModule

LARGEST_BLOCK = 16  # voxels of an edge, if none is given


def block_size(masking: MaskingSettings, configuration: Configuration) -> tuple[int, ...]:
    """Return the edges of a block: as given, or those of a voxel of the deepest feature map, at most 16.

    Args:
        masking: the settings.
        configuration: the plan's configuration, whose strides and patch are read.

    Raises:
        UserError: the patch is a single block, so that nothing of it could be seen.
    """
    deepest = [math.prod(strides) for strides in zip(*configuration.strides, strict=True)]
    block = masking.block or tuple(min(edge, LARGEST_BLOCK) for edge in deepest)
    if all(edge >= size for edge, size in zip(block, configuration.patch_size, strict=True)):
        raise UserError(
            f"masking.block={list(block)}: a block covers the whole patch of {list(configuration.patch_size)} voxels, "
            "so that all of it or nothing would be hidden. Give smaller blocks."
        )
    return block


def hidden_voxels(size: Sequence[int], block: Sequence[int], share: float, generator: np.random.Generator) -> Tensor:
    """Draw which voxels of a patch are hidden: whole blocks of a grid that begins at its first voxel.

    Args:
        size: of the patch, voxels.
        block: edges of a block, voxels; the last blocks of an axis may be smaller.
        share: of the blocks that are hidden, rounded to a whole number of them, but never none and never all.
        generator: source of the draw.

    Returns:
        bool, of the size of the patch.

    >>> hidden_voxels((4, 4), (2, 4), 0.5, np.random.default_rng(0)).int().tolist()
    [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    grid = [math.ceil(edge / own) for edge, own in zip(size, block, strict=True)]
    count = math.prod(grid)
    hidden = np.zeros(count, dtype=bool)
    hidden[generator.permutation(count)[: min(max(1, round(share * count)), max(1, count - 1))]] = True
    mask = torch.from_numpy(hidden.reshape(grid))
    for axis, (edge, own) in enumerate(zip(size, block, strict=True)):
        mask = mask.repeat_interleave(own, axis).narrow(axis, 0, edge)
    return mask


def reconstruction_loss(output: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean squared error of the hidden voxels.

    Args:
        output: of the network, (B, C, *S).
        image: what it was made from, (B, C, *S).
        hidden: bool (B, 1, *S).
    """
    error = squared_error(output.float(), image.float(), reduction="none") * hidden
    return error.sum() / (hidden.sum() * image.shape[1])


class MaskedModule(SegmentationModule):
    """Trains the network of a segmentation, with the channels of the image in the place of the classes.

    Which blocks of a patch are hidden is a function of (seed, stream, epoch, index), as the patch itself is.

    Args:
        record: with `masking`.
        held_out: see `SegmentationModule`.
        seed: of the run.
    """

    def __init__(self, record: CheckpointRecord, held_out: bool, seed: int) -> None:
        super().__init__(record, held_out)
        assert record.masking is not None
        self.masking, self.seed = record.masking, seed
        self.block = block_size(record.masking, record.configuration)
        network: Any = self.network
        network.deep_supervision = False

    def draw_hidden(self, image: Tensor, stream: str, batch_index: int) -> Tensor:
        """Return which voxels of a batch are hidden.

        Args:
            image: (B, C, *S) of this rank.
            stream: name of the patches, train or val.
            batch_index: number of the batch in the epoch.

        Returns:
            bool (B, 1, *S), on the device of the image.
        """
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        first = batch_index * len(image) * ranks + rank
        masks = [
            hidden_voxels(
                image.shape[2:],
                self.block,
                self.masking.share,
                generator_of(self.seed, stream, self.current_epoch, first + position * ranks, "hidden"),
            )
            for position in range(len(image))
        ]
        return torch.stack(masks)[:, None].to(image.device)

    def loss_of(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a training batch, whose "hidden" `training_step` has drawn."""
        return self._loss(batch["image"], batch["hidden"])

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Return the loss of the hidden voxels of a batch of patches."""
        batch["hidden"] = self.draw_hidden(batch["image"], "train", batch_index)
        loss = self.loss_of(batch)
        finite = torch.isfinite(loss.detach())  # a step with a non-finite loss does not count
        self.train_loss.update(torch.where(finite, loss.detach(), 0.0), len(batch["image"]) * finite)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Log the loss of the hidden voxels of a batch of validation patches."""
        loss = self._loss(batch["image"], self.draw_hidden(batch["image"], "val", batch_index))
        self.log(f"{self.checked}/loss", loss, batch_size=len(batch["image"]), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Nothing else is measured, because nothing is segmented."""

    def _loss(self, image: Tensor, hidden: Tensor) -> Tensor:
        output = self(image.masked_fill(hidden, 0.0))
        return reconstruction_loss(output, image, hidden)
