"""Measure the parts of a training step in the first minute, and name the setting to change if data are slow."""

import logging
import time

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from umamba.io.resources import available_cpus
from umamba.patches import PatchDataModule
from umamba.patches.datamodule import WAITING

log = logging.getLogger(__name__)

PARTS = ("data wait", "transfer", "forward", "backward", "optimiser")
MEASURED_S = 45.0  # duration of the measurement, which synchronises the device at each mark
MEASURED_STEPS = 100


class StepTimes(Callback):
    """Measures the parts of the first steps and reports their shares; the first step is a warm-up and does not count.

    Args:
        datamodule: the datamodule, which measures the transfer to the device.
    """

    def __init__(self, datamodule: PatchDataModule) -> None:
        self.datamodule = datamodule
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.steps = -1
        self.begin = 0.0
        self.mark = 0.0
        self.done = False

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock of the first wait."""
        self.begin = self.begin or time.perf_counter()
        self.lap(pl_module)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Count the time since the last mark as waiting and transfer."""
        if self.done:
            return
        elapsed = self.lap(pl_module)
        transfer = min(self.datamodule.transfer_s, elapsed)
        self.add("transfer", transfer)
        self.add("data wait", elapsed - transfer)

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: torch.Tensor
    ) -> None:
        """Count the forward pass."""
        self.end_of("forward", pl_module)

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count the backward pass."""
        self.end_of("backward", pl_module)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Count the optimiser, and report once enough steps were measured."""
        last = batch_idx + 1 == trainer.num_training_batches
        if not self.done:
            self.end_of("optimiser", pl_module)
            self.steps += 1
            enough = time.perf_counter() - self.begin > MEASURED_S or self.steps >= MEASURED_STEPS
            if self.steps > 0 and (enough or last):
                self.done = True
                self.datamodule.synchronize_transfer = False
                if trainer.is_global_zero:
                    log.info(self.report())
        if last:  # the same step on all ranks
            self.choose_device(trainer, pl_module)

    def choose_device(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Choose where patches are augmented if the settings leave it open, by the mean wait of all ranks."""
        if not self.datamodule.undecided or self.steps < 1:
            return
        waiting = self.seconds["data wait"] / max(sum(self.seconds.values()), 1e-9)
        shared = trainer.strategy.reduce(torch.tensor(waiting, device=module.device), reduce_op="mean")
        choice = self.datamodule.choose_device(float(shared), trainer.current_epoch)
        if trainer.is_global_zero:
            log.info(choice)

    def lap(self, module: lightning.LightningModule) -> float:
        """Return the seconds since the last mark, the device's work included."""
        if self.done:
            return 0.0
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        now = time.perf_counter()
        elapsed, self.mark = now - self.mark, now
        return elapsed

    def end_of(self, part: str, module: lightning.LightningModule) -> None:
        """Count the time since the last mark as one part."""
        if not self.done:
            self.add(part, self.lap(module))

    def add(self, part: str, seconds: float) -> None:
        """Count seconds, except those of the warm-up step."""
        if self.steps >= 0:
            self.seconds[part] += seconds

    def report(self) -> str:
        """Return a sentence on the mean step, the share of each part, and the setting to change."""
        total = sum(self.seconds.values())
        shares = {part: seconds / total if total else 0.0 for part, seconds in self.seconds.items()}
        listed = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        line = f"Step {total / max(1, self.steps):.3f} s: {listed}."
        if shares["data wait"] <= WAITING:
            return line
        workers, cpus = self.datamodule.num_workers, available_cpus()
        if workers < cpus - 1:
            return f"{line} The network waits for data: set data.num_workers={cpus - 1} (now {workers})."
        named = "" if self.datamodule.automatic else "set augmentation.device=gpu, or "
        return (
            f"{line} The network waits for data, and all {cpus} CPUs of this allocation make patches: {named}ask for "
            "more CPUs."
        )
