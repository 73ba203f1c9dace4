"""Skip, count and report steps with non-finite gradients; too many in a row end the attempt to train.

The check sees the gradients after they are averaged over all ranks, so that all ranks make the same decision.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from umamba.io import atomic_path
from umamba.records.torch_file import write_torch

log = logging.getLogger(__name__)

IN_A_ROW = 5  # this number of skipped steps in a row ends the attempt
IN_A_ROW_SCALED = 25  # for float16, because its loss scaler overflows on purpose until it finds its factor


class Diverged(Exception):
    """Training gave non-finite gradients several times in a row."""


class SkipNonFinite(Callback):
    """Skips optimiser steps with non-finite gradients, and saves the first batch of each series of skipped steps.

    The metric `train/skipped_steps` counts them by epoch. A file holds `batch` (image, label, case_id), `epoch`,
    `batch_index`, `seed` and `first_nonfinite`, the layer that gave the first non-finite value.

    Args:
        folder: folder of the saved batches.
        seed: the run's seed.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.batch: dict[str, Any] = {}
        self.batch_index = 0
        self.in_a_row = 0
        self.skipped = 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the epoch's count."""
        self.skipped = 0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch, so that it can be saved if its gradients are not finite."""
        self.batch, self.batch_index = batch, batch_idx

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Remove the gradients if they are not finite; the optimiser then changes nothing.

        Raises:
            Diverged: too many in a row.
        """
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if not gradients or torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        scaled = trainer.precision == "16-mixed"
        if self.in_a_row == (IN_A_ROW if scaled else 1):
            self.keep(trainer, pl_module)
        for parameter in pl_module.parameters():
            parameter.grad = None
        self.skipped += 1
        if self.in_a_row >= (IN_A_ROW_SCALED if scaled else IN_A_ROW):
            raise Diverged(
                f"{self.in_a_row} steps in a row without finite gradients, epoch {trainer.current_epoch + 1}, "
                f"precision {trainer.precision}; the first batch and layer are in {self.folder}"
            )

    def keep(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the batch and the name of the layer that gave the first non-finite value."""
        layer = first_nonfinite(pl_module, self.batch, trainer)
        if not trainer.is_global_zero:
            return
        name = f"epoch_{trainer.current_epoch + 1:04d}_batch_{self.batch_index:04d}.pt"
        content = {
            "batch": {key: v.cpu() if isinstance(v, Tensor) else v for key, v in self.batch.items()},
            "epoch": trainer.current_epoch,
            "batch_index": self.batch_index,
            "seed": self.seed,
            "first_nonfinite": layer,
        }
        try:
            with atomic_path(self.folder / name) as temporary:
                write_torch(content, temporary)
        except (OSError, RuntimeError) as error:  # a full disk must not end the run here
            log.warning("%s could not be written: %s", self.folder / name, error)
        log.info(
            "Skipped a step whose gradients are not finite (epoch %d, batch %d, precision %s; first in %s): %s",
            trainer.current_epoch + 1,
            self.batch_index,
            trainer.precision,
            layer,
            self.folder / name,
        )

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the epoch's count."""
        pl_module.log("train/skipped_steps", float(self.skipped))


def first_nonfinite(module: Any, batch: dict[str, Any], trainer: lightning.Trainer) -> str:
    """Name the first non-finite value: the image, a layer's output, the loss, or a parameter's gradient.

    Args:
        module: the `SegmentationModule`; its forward pass runs again, and the step's gradients must still be there.
        batch: "image" (B, C, *patch) and "label" (B, 1, *patch), on the module's device.
        trainer: the Trainer, whose precision is used.

    Returns:
        "the image", the layer's name in the network, "the loss", or "the gradient of <parameter>".
    """
    if not torch.isfinite(batch["image"]).all():
        return "the image"
    found: list[str] = []
    with torch.no_grad(), trainer.precision_plugin.forward_context(), watched(module.network, found):
        loss = module.loss(module(batch["image"]), batch["label"])
    if found:
        return found[0]
    if not torch.isfinite(loss):
        return "the loss"
    # The backward pass starts at the last layer, so the last parameter with a non-finite gradient got it first.
    names = [
        name for name, p in module.network.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    return f"the gradient of {names[-1]}" if names else "the gradients (another rank's)"


@contextmanager
def watched(network: nn.Module, found: list[str]) -> Iterator[None]:
    """Collect, within the block, the names of layers whose output is not finite.

    Args:
        network: the network; its layers without children have forward hooks within the block.
        found: the list to which the names are appended, in the order of the forward pass.
    """
    with ExitStack() as stack:
        for name, layer in network.named_modules():
            if any(True for _ in layer.children()):
                continue

            def look(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and not torch.isfinite(output).all():
                    found.append(name)

            stack.callback(layer.register_forward_hook(look).remove)
        yield
