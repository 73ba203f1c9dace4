"""Measure the speed of training before a run with a time budget begins."""

import time
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from umamba.patches import PatchDataModule
from umamba.training.budget import Speed
from umamba.training.freed_memory import freed_memory_kept
from umamba.training.module import SegmentationModule
from umamba.training.trial import trial_trainer

_MOST_STEPS = 60
_LEAST_STEPS = 3  # beside the first one, which starts the workers and allocates memory
_VALIDATION_STEPS = 3


class Stopwatch(Callback):
    """Marks the times of steps and ends training after a while.

    Args:
        seconds: from the end of the first step on.
        clock: seconds that grow evenly.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = seconds
        self.clock = clock
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.val_s: list[float] = []
        self.mark = 0.0

    def _time(self, module: lightning.LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return self.clock()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Mark the start of a step: the batch is there."""
        self.starts.append(self._time(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Mark the end of a step, and stop if enough is known."""
        self.ends.append(self._time(pl_module))
        steps = len(self.ends) - 1
        enough = steps >= _MOST_STEPS or self.ends[-1] - self.ends[0] > self.seconds
        if steps >= _LEAST_STEPS and enough:
            trainer.should_stop = True

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        """Mark the start of a validation step."""
        self.mark = self._time(pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        """Mark the end of a validation step."""
        self.val_s.append(self._time(pl_module) - self.mark)

    def speed(self, measuring_s: float) -> Speed:
        """Return the mean step after the first one, and the fastest validation step.

        Args:
            measuring_s: seconds that the measurement took.
        """
        if len(self.ends) == 1:
            step_s, wait_s = self.ends[0] - self.starts[0], 0.0
        else:
            steps = len(self.ends) - 1
            step_s = (self.ends[-1] - self.ends[0]) / steps
            wait_s = sum(start - end for start, end in zip(self.starts[1:], self.ends, strict=False)) / steps
        return Speed(step_s, wait_s, min(self.val_s, default=0.0), measuring_s)


def measured_speed(
    module: SegmentationModule, datamodule: PatchDataModule, trainer: lightning.Trainer, seconds: float
) -> Speed:
    """Train some steps and validate, measure their duration, and give the module its weights back.

    Args:
        module: the module, whose weights and metrics are as before afterwards.
        datamodule: the patches.
        trainer: the Trainer of the run, whose device, precision, clipping and accumulation the steps have.
        seconds: duration of the training steps.
    """
    began = time.monotonic()
    stopwatch = Stopwatch(seconds)
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    on_cpu = trainer.strategy.root_device.type == "cpu"
    further: dict[str, Any] = {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "max_epochs": 1,
        "limit_val_batches": _VALIDATION_STEPS,
        "callbacks": [stopwatch],
    }
    with trial_trainer(trainer, **further) as watched, freed_memory_kept(on_cpu):
        watched.fit(module, datamodule=datamodule)
    module.load_state_dict(weights)
    module.zero_grad(set_to_none=True)
    module.forget_epoch()
    return stopwatch.speed(time.monotonic() - began)
