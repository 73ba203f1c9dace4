"""Train to a time budget: the lengths of epochs and validation, the schedule by the clock, and the averaged weights.

The schedule is warm-up, stable, decay (wsd), because its stable part does not depend on the length of the training. The
run keeps a polynomial-decay average of the weights (Shamir and Zhang, 2013, section 4), which removes the noise of a
constant rate as a decay would, and needs no length either. Checkpoints hold the average as the network's weights, so
that a run that was killed leaves a usable network.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

from umamba.patches.datamodule import WAITING

log = logging.getLogger(__name__)

EPOCHS = 60  # a kill costs at most the epoch in which it falls
LONGEST_EPOCH_S, SHORTEST_EPOCH_S = 120.0, 6.0
FEWEST_EPOCHS = 10  # of a budget so short that the shortest epochs are too long for it
MOST_EPOCHS = 500  # half of the default of trainer.max_epochs, because training may become faster than measured
VALIDATION_SHARE, MOST_VALIDATION_SHARE = 0.05, 0.1
MOST_VALIDATION, LEAST_VALIDATION = 50, 2  # batches
SAVING_S = 0.5  # assumed for the checkpoint and the rest of the first epoch
_LEAST_EPOCH = 0.1  # share of an epoch for which no other one is begun
_EXPONENT = 12.0
_NEW = 0.5  # weight of the last epoch in the running means of the speed


@dataclass(frozen=True)
class Speed:
    """What a training step costs on this machine.

    Attributes:
        step_s: seconds of a training step, waiting for patches included.
        wait_s: seconds of it that the network waited for patches.
        val_step_s: seconds of a validation step.
        measuring_s: seconds that the measurement took.
    """

    step_s: float
    wait_s: float
    val_step_s: float
    measuring_s: float


@dataclass(frozen=True)
class BudgetPlan:
    """How a run spends its time budget, as run.json records it.

    Attributes:
        seconds: the budget.
        ends: when training ends, in seconds since 1970; None: the budget is a duration.
        iterations: training batches of an epoch.
        val_iterations: validation batches of an epoch.
        workers: processes that make patches.
        step_s: measured seconds of a training step.
        val_step_s: measured seconds of a validation step.
        measuring_s: seconds of the budget that the measurement took.
    """

    seconds: float
    ends: float | None
    iterations: int
    val_iterations: int
    workers: int
    step_s: float
    val_step_s: float
    measuring_s: float

    @property
    def rest_s(self) -> float:
        """Expected seconds of an epoch beside its training steps."""
        return self.val_iterations * self.val_step_s + SAVING_S

    def sentence(self) -> str:
        """Return what the plan is, for the user."""
        epochs = self.seconds / (self.iterations * self.step_s + self.rest_s)
        end = "" if self.ends is None else f" (until {datetime.fromtimestamp(self.ends):%Y-%m-%d %H:%M})"
        return (
            f"Time budget {self.seconds:.0f} s{end}: {self.step_s:.3g} s a step measured, so about "
            f"{epochs * self.iterations:.0f} iterations in epochs of {self.iterations}, with {self.val_iterations} "
            f"validation batches each (data.num_workers={self.workers})."
        )


def plan_budget(
    seconds: float,
    ends: float | None,
    speed: Speed,
    *,
    workers: int,
    iterations: int | None = None,
    val_iterations: int | None = None,
) -> BudgetPlan:
    """Return how to spend a time budget at a measured speed.

    An epoch takes a sixtieth of the budget, at least 6 s and at most two minutes. Validation takes a twentieth of it.
    Where a step is so slow that two validation batches take more than a tenth, epochs are longer, up to a tenth of the
    budget.

    Args:
        seconds: the budget.
        ends: when training ends, in seconds since 1970; None: the budget is a duration.
        speed: what was measured.
        workers: processes that make patches.
        iterations: training batches of an epoch, if the user gives them.
        val_iterations: validation batches of an epoch, if the user gives them; 0: none.

    >>> plan_budget(900, None, Speed(0.5, 0.0, 0.25, 10.0), workers=1).iterations
    28
    """
    shortest_s = min(SHORTEST_EPOCH_S, seconds / FEWEST_EPOCHS)
    epoch_s = max(min(seconds / EPOCHS, LONGEST_EPOCH_S), shortest_s, seconds / MOST_EPOCHS)
    if val_iterations is None:
        fitting = round(VALIDATION_SHARE * epoch_s / max(speed.val_step_s, 1e-9))
        val_iterations = max(LEAST_VALIDATION, min(MOST_VALIDATION, fitting))
    longest_s = max(epoch_s, seconds / FEWEST_EPOCHS)
    epoch_s = max(epoch_s, min(longest_s, val_iterations * speed.val_step_s / MOST_VALIDATION_SHARE))
    if iterations is None:
        rest_s = val_iterations * speed.val_step_s + SAVING_S
        iterations = max(1, round((epoch_s - rest_s) / speed.step_s))
    return BudgetPlan(
        seconds, ends, iterations, val_iterations, workers, speed.step_s, speed.val_step_s, speed.measuring_s
    )


def needed_workers(workers: int, speed: Speed, cpus: int) -> int:
    """Return how many processes make patches as fast as the network takes them.

    Args:
        workers: processes at the measurement.
        speed: what was measured.
        cpus: processors that may be used.

    >>> needed_workers(1, Speed(0.3, 0.1, 0.1, 5.0), cpus=8), needed_workers(1, Speed(0.3, 0.01, 0.1, 5.0), cpus=8)
    (2, 1)
    """
    if speed.wait_s <= WAITING * speed.step_s:
        return workers
    wanted = math.ceil(max(1, workers) * speed.step_s / max(speed.step_s - speed.wait_s, 1e-9))
    return max(workers, min(cpus, wanted))


class PolynomialAverage(WeightAveraging):
    """Averages the weights of all steps so far, those of step t with a weight of about t ** exponent.

    The average looks back over a constant share of the training, whatever its length is: its mean age is
    1 / (exponent + 2) of the steps so far.

    Args:
        device: where the average is kept; None: with the network.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__(device=device, multi_avg_fn=_add_step)


@torch.no_grad()
def _add_step(average: Sequence[Tensor], present: Sequence[Tensor], steps: Tensor | int) -> None:
    """Add the weights after a step to the average of those before: Shamir and Zhang's equation (3).

    Args:
        average: tensors of the average, which are changed.
        present: the weights now.
        steps: number of steps in the average.
    """
    weight = (_EXPONENT + 1) / (float(steps) + 1 + _EXPONENT)
    if average[0].is_floating_point():
        torch._foreach_lerp_(list(average), list(present), weight)
    else:
        for mean, value in zip(average, present, strict=True):
            mean.copy_(value)


class BudgetSchedule(Callback):
    """Ends training when a time budget is used, and tells the module which share of it is.

    The share is read from the clock at the start of each epoch, and grows with the steps within it. The last epoch is
    cut to the steps that fit. The seconds used are part of the checkpoint, so that a run continues with the rest; time
    after the last checkpoint of a killed run does not count.

    Args:
        plan: how the budget is spent.
        clock: seconds that grow evenly.
        now: seconds since 1970.
    """

    def __init__(
        self,
        plan: BudgetPlan,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.plan = plan
        self.clock, self.now = clock, now
        self.seconds = plan.seconds
        self.before = plan.measuring_s  # seconds used before this process began to train
        self.began: float | None = None
        self.epoch_start: float | None = None  # seconds used
        self.training_s: float | None = None
        self.step_s = plan.step_s
        self.rest_s = plan.rest_s
        self.steps = 0  # of the present epoch
        self.epoch_s = 0.0  # expected

    @property
    def used(self) -> float:
        """Seconds of the budget used so far, over all continuations."""
        return self.before + (0.0 if self.began is None else self.clock() - self.began)

    def share(self, step: int) -> float:
        """Return the expected share of the budget that is used before a step of the present epoch.

        Args:
            step: number of the step in the epoch, from 0.
        """
        start = 0.0 if self.epoch_start is None else self.epoch_start
        within = self.epoch_s * step / self.steps if self.steps else 0.0
        return min(1.0, (start + within) / max(self.seconds, 1e-9))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock; end at once if nothing is left."""
        self.began = self.clock()
        if self.plan.ends is not None:
            self.seconds = self.used + max(0.0, self.plan.ends - self.now())
        if self._fitting() < 1 and trainer.current_epoch > 0:
            log.info("No time is left for another step: training ends after epoch %d.", trainer.current_epoch)
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Plan the epoch: its steps, and the share of the budget at each of them."""
        used = self.used
        if self.epoch_start is not None and self.training_s is not None:
            measured = used - self.epoch_start - self.training_s
            self.rest_s += _NEW * (measured - self.rest_s)
        self.epoch_start, self.training_s = used, None
        self.steps = max(1, min(int(trainer.num_training_batches), self._fitting()))
        self.epoch_s = self.steps * self.step_s + self.rest_s
        module: Any = pl_module
        module.share_done = self._done(trainer, 0)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the learning rate of the step."""
        module: Any = pl_module
        module.share_done = self._done(trainer, batch_idx)
        module.set_learning_rate()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure the epoch at its last step, and end training there if the budget has no room for more steps."""
        if batch_idx + 1 != self.steps:
            return
        assert self.epoch_start is not None
        self.training_s = self.used - self.epoch_start
        self.step_s += _NEW * (self.training_s / self.steps - self.step_s)
        batches = int(trainer.num_training_batches)
        if self.steps == batches:
            return
        more = min(batches - self.steps, self._fitting())
        if more < self._least(batches):
            trainer.should_stop = True
        else:  # training became faster
            self.steps += more
            self.epoch_s = self.training_s + more * self.step_s + self.rest_s

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the seconds used; end training if the rest is too short for a tenth of an epoch."""
        pl_module.log("time/used_s", self.used)
        if self._fitting() < self._least(int(trainer.num_training_batches)):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds used so far, the measured speed, and what the next epoch needs to measure the last one."""
        speed = {"step_s": self.step_s, "rest_s": self.rest_s}
        return {"used": self.used, **speed, "epoch_start": self.epoch_start, "training_s": self.training_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.before, self.step_s, self.rest_s = (float(state_dict[name]) for name in ("used", "step_s", "rest_s"))
        self.epoch_start, self.training_s = state_dict["epoch_start"], state_dict["training_s"]

    def _fitting(self) -> int:
        """Return the steps that fit into the rest of the budget, with the validation after them."""
        return math.floor((self.seconds - self.used - self.rest_s) / max(self.step_s, 1e-9))

    def _least(self, batches: int) -> float:
        """Return the steps below which the rest of the budget is left unused."""
        return max(1.0, _LEAST_EPOCH * batches)

    def _done(self, trainer: lightning.Trainer, step: int) -> float:
        """Return the share of the training before a step, by time or by trainer.max_epochs, whichever ends first."""
        epochs = (trainer.current_epoch + step / self.steps) / (trainer.max_epochs or math.inf)
        return max(self.share(step), min(1.0, epochs))
