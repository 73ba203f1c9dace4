"""Choose patch and batch by the measured memory of a network's own training step instead of nnU-Net's estimate.

The candidates are the plans that nnU-Net's rules make for growing memory targets, so topology, shape of the patch and
balance of patch and batch stay theirs. Only the memory of a step is measured; between measurements it is taken as a
line in the voxels of the batch. If the plan of the rules itself does not fit, its batch is split over several steps of
gradient accumulation, then activations are computed again in the backward pass, and only then the patch shrinks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from umamba.io import UserError
from umamba.settings.fields import key

_SAFE = 0.95  # share of the budget up to which a prediction is tried
_SAVED = 4.0  # factor that activation checkpointing may save, before it is measured
_FIRST_STEP = 4.0  # ratio of voxels between the first two measurements
TARGETS = tuple(2 ** (step / 4) for step in range(-28, 21))  # memory targets, as multiples of the rules' own


@dataclass(frozen=True)
class Trial:
    """A training step whose memory can be measured.

    Attributes:
        patch_size: voxels along each plan axis.
        batch_size: patches between two updates of the weights.
        accumulate: steps over which the batch is split; it divides the batch.
        checkpointing: whether activations are computed again in the backward pass.
    """

    patch_size: tuple[int, ...] = key(low=1)
    batch_size: int = key(low=1)
    accumulate: int = key(1, low=1)
    checkpointing: bool = key(False)

    @property
    def step_batch(self) -> int:
        """Patches of a step."""
        return self.batch_size // self.accumulate

    @property
    def voxels(self) -> int:
        """Voxels of a step."""
        return math.prod(self.patch_size) * self.step_batch


@dataclass(frozen=True)
class MeasuredPlan:
    """What was chosen, and the memory of its step in bytes.

    Attributes:
        trial: patch, batch and means.
        budget: bytes that a step may take.
        predicted: bytes, from the measurements of other trials before it was measured; None: too few of them.
        measured: bytes.
        measurements: number of trials that were measured.
    """

    trial: Trial
    budget: float = key(above=0)
    predicted: float | None = key(above=0)
    measured: float = key(above=0)
    measurements: int = key(low=1)

    def sentence(self) -> str:
        """Return the choice in words."""
        trial = self.trial
        means = [f"in {trial.accumulate} steps (trainer.accumulate_grad_batches)"] if trial.accumulate > 1 else []
        means += ["with trainer.activation_checkpointing"] if trial.checkpointing else []
        predicted = "no prediction" if self.predicted is None else f"predicted {self.predicted / 1e9:.2f} GB"
        return (
            f"Measured plan: patch {' x '.join(map(str, trial.patch_size))}, batch {trial.batch_size}"
            f"{' ' if means else ''}{' '.join(means)}: {predicted}, measured {self.measured / 1e9:.2f} GB, of "
            f"{self.budget / 1e9:.2f} GB ({self.measurements} steps measured)."
        )


class _Memory:
    """The measured trials, and the lines through them."""

    def __init__(self, peak_of: Callable[[Trial], float], budget: float) -> None:
        self.peak_of = peak_of
        self.budget = budget
        self.found: dict[Trial, float] = {}
        self.predictions: dict[Trial, float | None] = {}

    def predicted(self, trial: Trial) -> float | None:
        """Return the bytes on the line through the two nearest measured trials; None: there are no two."""
        known = {
            one.voxels: value
            for one, value in self.found.items()
            if one.checkpointing == trial.checkpointing and one != trial and math.isfinite(value)
        }
        nearest = sorted(known, key=lambda voxels: abs(math.log(voxels / trial.voxels)))[:2]
        if len(nearest) < 2:
            return None
        low, high = sorted(nearest)
        slope = max(0.0, (known[high] - known[low]) / (high - low))
        return max(1.0, known[low] + slope * (trial.voxels - low))

    def promising(self, trial: Trial) -> bool:
        """Return whether a trial may fit; without a line for checkpointing, it may save three quarters of the bytes."""
        expected = self.predicted(trial)
        if expected is None and trial.checkpointing:
            plain = self.predicted(Trial(trial.patch_size, trial.batch_size, trial.accumulate))
            expected = None if plain is None else plain / _SAVED
        return expected is None or expected <= self.budget

    def fits(self, trial: Trial) -> bool:
        """Measure a trial, and return whether it stays within the budget."""
        if trial not in self.found:
            self.predictions[trial] = self.predicted(trial)
            self.found[trial] = self.peak_of(trial)
        return self.found[trial] <= self.budget

    def result(self, trial: Trial) -> MeasuredPlan:
        """Return a measured trial as the choice."""
        prediction = self.predictions[trial]
        if prediction is None:
            prediction = self.predicted(trial)
        return MeasuredPlan(trial, self.budget, prediction, self.found[trial], len(self.found))

    def largest(self, trials: Sequence[Trial]) -> int:
        """Return the position of the largest trial that fits; -1: none does.

        Args:
            trials: by rising voxels.
        """
        if not self.fits(trials[0]):
            return -1
        fitting, failing = 0, len(trials)
        reachable = trials[0].voxels * min(_FIRST_STEP, self.budget / self.found[trials[0]])
        second = max(index for index, one in enumerate(trials) if index == 0 or one.voxels <= reachable)
        second = min(max(1, second), len(trials) - 1)
        while 0 < second < failing:
            if self.fits(trials[second]):
                fitting = second
            else:
                failing = second
            promising = [
                index
                for index in range(fitting + 1, failing)
                if (self.predicted(trials[index]) or 0.0) <= _SAFE * self.budget
            ]
            second = max(promising, default=0)
        return fitting


def choose(
    plain: Sequence[Trial], wish: Trial, budget: float, peak_of: Callable[[Trial], float], limit_key: str
) -> MeasuredPlan:
    """Choose patch, batch and means whose measured step stays within a budget.

    Args:
        plain: trials without accumulation and checkpointing, by rising voxels.
        wish: the trial of them that the rules plan without a measurement.
        budget: bytes.
        peak_of: measures the bytes of a trial; infinity: it ran out of memory.
        limit_key: name of the setting of the budget, for messages.

    Raises:
        UserError: not even the smallest trial fits with all means.
    """
    memory = _Memory(peak_of, budget)
    best = memory.largest(plain)
    position = plain.index(wish)
    if best >= position:
        return memory.result(plain[best])
    for checkpointing in (False, True):
        for accumulate in _divisors(wish.batch_size):
            trial = Trial(wish.patch_size, wish.batch_size, accumulate, checkpointing)
            if memory.promising(trial) and memory.fits(trial):
                return memory.result(trial)
    small = [Trial(one.patch_size, one.batch_size, one.batch_size, True) for one in plain[: position + 1]]
    found = memory.largest(_rising(small))
    if found >= 0:
        return memory.result(_rising(small)[found])
    if best >= 0:
        return memory.result(plain[best])
    least = min(memory.found.values())
    if math.isinf(least):
        raise UserError(
            f"{limit_key}: not even the smallest training step of this network could be measured, because its process "
            "ended: it ran out of memory, or it was started by a script without `if __name__ == '__main__':`. Free "
            "memory, mend the script, or give a smaller network."
        )
    raise UserError(
        f"{limit_key}={budget / 1e9:.3g}: the smallest training step of this network takes {least / 1e9:.2f} GB, with "
        "accumulation and activation checkpointing. Give more memory, or a smaller network (plan.features_per_stage or "
        "the architecture group)."
    )


def plain_trials(planned: Callable[[float], Mapping[str, Any] | None]) -> list[Trial]:
    """Return the plans of the rules for growing memory targets as trials, by rising voxels.

    Args:
        planned: patch_size and batch_size of the plan for a multiple of the rules' memory target; None: there is none,
            because the values that the user pins do not fit it.
    """
    found = [planned(target) for target in TARGETS]
    trials = {Trial(tuple(one["patch_size"]), int(one["batch_size"])) for one in found if one is not None}
    return _rising(sorted(trials, key=lambda trial: (trial.voxels, trial.patch_size)))


def _rising(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials by rising voxels, one for each number of them."""
    return [trials[0], *(two for one, two in pairwise(trials) if two.voxels > one.voxels)]


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
