"""Skip, count and report steps with non-finite gradients; too many in a row end the attempt to train.

The check sees the gradients after they are averaged over all ranks, so that all ranks make the same decision.

With a fused optimiser (on CUDA) the device itself leaves out the step, and this process reads the result one step
later, before it changes the weights again: by then the device has the next step's work and does not run dry.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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


class LateFlag:
    """A value of a device, copied to this process while both go on.

    Args:
        value: a tensor without axes; not 0 means true.
    """

    def __init__(self, value: Tensor) -> None:
        on_gpu = value.device.type == "cuda"
        self.value = torch.empty((), dtype=value.dtype, pin_memory=on_gpu)
        self.value.copy_(value, non_blocking=on_gpu)
        self.copied = torch.cuda.Event() if on_gpu else None
        if self.copied is not None:
            self.copied.record(torch.cuda.current_stream(value.device))

    def __bool__(self) -> bool:
        """Wait for the copy and return the value."""
        if self.copied is not None:
            self.copied.synchronize()
        return bool(self.value.numpy() != 0)


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        batch: its batch.
        batch_index: its place in the epoch.
        skipped: whether the device left it out, which is known one step later; None: this process decides it at once.
    """

    batch: dict[str, Any]
    batch_index: int
    skipped: LateFlag | None = None


class SkipNonFinite(Callback):
    """Skips optimiser steps with non-finite gradients, and saves the first batch of each series of skipped steps.

    The metric `train/skipped_steps` counts them by epoch. A file holds `batch` (image, label, case_id), `epoch`,
    `batch_index`, `batches_of_step`, `seed` and `first_nonfinite`, the layer that gave the first non-finite value. Of a
    step over several batches (trainer.accumulate_grad_batches) it is the last one. Of several processes that train
    together each saves its own batch; those after the first add _rank_1 and so on to the name.

    Args:
        folder: folder of the saved batches.
        seed: the run's seed.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.step = Step({}, 0)
        self.in_a_row = 0
        self.skipped = 0
        self.unread: Step | None = None

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the epoch's count."""
        self.skipped = 0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch, so that it can be saved if its gradients are not finite."""
        self.step = Step(batch, batch_idx)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the optimiser change nothing if the gradients are not finite.

        Raises:
            Diverged: too many in a row.
        """
        self.settle(trainer, pl_module)
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if not gradients:
            self.in_a_row = 0
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        pl_module.gradient_norm = norm
        if optimizer.param_groups[0].get("fused"):
            found = (~torch.isfinite(norm)).float()
            _skip_if(found, optimizer)
            self.unread = replace(self.step, skipped=LateFlag(found))
        elif torch.isfinite(norm):
            self.in_a_row = 0
        else:
            self.count(trainer, pl_module, self.step)
            pl_module.zero_grad()

    def settle(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Read what the device found in the step before; the weights are still those of that step if it was skipped.

        Raises:
            Diverged: too many in a row.
        """
        step, self.unread = self.unread, None
        if step is None:
            return
        if step.skipped:
            self.count(trainer, pl_module, step)
        else:
            self.in_a_row = 0

    def count(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, step: Step) -> None:
        """Count a step without finite gradients, and save the first one of a series.

        Raises:
            Diverged: too many in a row.
        """
        self.in_a_row += 1
        scaled = trainer.precision == "16-mixed"
        if self.in_a_row == (IN_A_ROW if scaled else 1):
            self.keep(trainer, pl_module, step)
        self.skipped += 1
        if self.in_a_row >= (IN_A_ROW_SCALED if scaled else IN_A_ROW):
            raise Diverged(
                f"{self.in_a_row} steps in a row without finite gradients, epoch {trainer.current_epoch + 1}, "
                f"precision {trainer.precision}; the first batch and layer are in {self.folder}"
            )

    def keep(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, step: Step) -> None:
        """Save the step's batch and the name of the layer that gave the first non-finite value."""
        layer = first_nonfinite(pl_module, step.batch, trainer, late=step.skipped is not None)
        own = "" if trainer.is_global_zero else f"_rank_{trainer.global_rank}"
        name = f"epoch_{trainer.current_epoch + 1:04d}_batch_{step.batch_index:04d}{own}.pt"
        content = {
            "batch": {key: v.cpu() if isinstance(v, Tensor) else v for key, v in step.batch.items()},
            "epoch": trainer.current_epoch,
            "batch_index": step.batch_index,
            "batches_of_step": trainer.accumulate_grad_batches,
            "seed": self.seed,
            "first_nonfinite": layer,
        }
        try:
            with atomic_path(self.folder / name) as temporary:
                write_torch(content, temporary)
        except (OSError, RuntimeError) as error:  # a full disk must not end the run here
            log.warning("%s could not be written: %s", self.folder / name, error)
        if not trainer.is_global_zero:
            return
        log.info(
            "Skipped a step whose gradients are not finite (epoch %d, batch %d%s, precision %s; first in %s): %s",
            trainer.current_epoch + 1,
            step.batch_index,
            _accumulated(trainer),
            trainer.precision,
            layer,
            self.folder / name,
        )

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the epoch's count.

        Raises:
            Diverged: with the epoch's last step, too many in a row.
        """
        self.settle(trainer, pl_module)
        pl_module.log("train/skipped_steps", float(self.skipped))


def _accumulated(trainer: lightning.Trainer) -> str:
    """Say that gradients are those of several batches, of which only the last one is looked at."""
    count = trainer.accumulate_grad_batches
    return "" if count == 1 else f", the last of up to {count} batches of its step; another of them may be the cause"


def _skip_if(found: Tensor, optimizer: Optimizer) -> None:
    """Let a fused optimiser's next step change nothing if `found` is 1.

    The momentum of SGD must exist before: PyTorch creates it without values for the first step, which may be skipped.
    Zeros give the same first step, because momentum * 0 + gradient is the gradient.
    """
    optimizer.found_inf = found  # type: ignore[attr-defined]
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def first_nonfinite(module: Any, batch: dict[str, Any], trainer: lightning.Trainer, late: bool = False) -> str:
    """Name the first non-finite value: the image, a layer's output, the loss, or a parameter's gradient.

    Processes that train together all compute the same things here, whatever they find, because a Dice over the batch
    (and synchronised normalisation) waits for all of them.

    Args:
        module: the `SegmentationModule`; its forward pass runs again.
        batch: "image" (B, C, *patch) and "label" (B, 1, *patch), on the module's device.
        trainer: the Trainer, whose precision is used.
        late: the batch's gradients are gone and are computed again; otherwise those of the parameters are looked at.

    Returns:
        "the image", the layer's name in the network, "the loss", or "the gradient of <parameter>".
    """
    found = [] if torch.isfinite(batch["image"]).all() else ["the image"]
    grad = torch.enable_grad() if late else torch.no_grad()
    with grad, trainer.precision_plugin.forward_context(), watched(module.network, found):
        loss = module.loss_of(batch)
    trained = {name: p for name, p in module.network.named_parameters() if p.requires_grad}
    if late:  # not by backward(), which would add them to the next step's, on every rank
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    else:
        gradients = tuple(p.grad for p in trained.values())
    if found:
        return found[0]
    if not torch.isfinite(loss):
        return "the loss"
    # The backward pass starts at the last layer, so the last parameter with a non-finite gradient got it first.
    names = [name for name, g in zip(trained, gradients, strict=True) if g is not None and not torch.isfinite(g).all()]
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
