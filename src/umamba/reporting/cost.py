"""What each run cost: hours, memory, parameters and FLOPs, all from its files."""

import math
from dataclasses import dataclass

import pandas

from umamba.reporting.results import Results

_MEMORY = "memory/peak_gb"


@dataclass(frozen=True)
class Cost:
    """Cost of one training.

    Attributes:
        dataset, method, fold, seed: the run.
        epochs: completed epochs.
        hours: of training and validation batches, by the measured seconds of a training batch; NaN if unknown.
        memory_gb: the most that was logged, of the GPU or, without one, of the main process; NaN if none was.
        parameters: parameters of the network, None if run.json does not say it.
        step_flops: FLOPs of forward and backward of a batch, None if run.json does not say it.
    """

    dataset: str
    method: str
    fold: int | str
    seed: int
    epochs: int
    hours: float
    memory_gb: float
    parameters: int | None
    step_flops: float | None


def costs(results: Results) -> list[Cost]:
    """Return the cost of each run that has begun."""
    found = []
    for state in results.states:
        run = state.run
        curve = results.curves.get(run.folder)
        if curve is None:
            continue
        status = run.folder.status()
        found.append(
            Cost(
                *(run.dataset, run.method, run.fold, run.seed),
                epochs=len(curve),
                hours=hours(curve, run.batches),
                memory_gb=float(curve[_MEMORY].max()) if _MEMORY in curve else math.nan,
                parameters=status.get("parameters"),
                step_flops=status.get("step_flops"),
            )
        )
    return found


def hours(curve: pandas.DataFrame, batches: int) -> float:
    """Return the hours of a run's batches: its seconds per training batch, for all batches of each epoch."""
    if "time/iteration_s" not in curve:
        return math.nan
    return float(curve["time/iteration_s"].sum()) * batches / 3600
