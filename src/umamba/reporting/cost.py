"""The cost of each run: hours, memory, parameters and FLOPs, read from its files."""

import math
from dataclasses import dataclass

import pandas

from umamba.reporting.results import Results

_MEMORY = "memory/peak_gb"


@dataclass(frozen=True)
class Cost:
    """Cost of one training.

    Attributes:
        dataset: the benchmark.
        method: the network.
        fold: the fold.
        seed: the seed.
        epochs: completed epochs.
        hours: time of all batches, from the measured time of a training batch; NaN if unknown.
        memory_gb: largest logged memory of the GPU, or of the main process if it trained on a CPU; NaN if unknown.
        parameters: parameters of the network; None if unknown.
        step_flops: FLOPs of the forward and backward pass of a batch; None if unknown.
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
    """Return the cost of each run that has begun.

    Args:
        results: the results of the study.
    """
    found = []
    for state in results.states:
        run = state.run
        curve = results.curves.get(run.folder)
        if curve is None:
            continue
        status = run.folder.readable_status()
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
    """Return the hours of a run: the seconds of a training batch times the batches of an epoch, summed over epochs.

    Args:
        curve: metrics.csv of the run.
        batches: training and validation batches of an epoch.
    """
    if "time/iteration_s" not in curve:
        return math.nan
    return float(curve["time/iteration_s"].sum()) * batches / 3600
