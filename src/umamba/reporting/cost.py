"""What each run cost: hours, memory, and the size of its network, from its files."""

import math
from dataclasses import dataclass

import pandas

from umamba.reporting.results import Results, read_record

_MEMORY = ("memory/peak_gb", "memory/gpu_peak_gb", "gpu/peak_memory_gb")


@dataclass(frozen=True)
class Cost:
    """Cost of one training.

    Attributes:
        dataset, method, fold, seed: the run.
        epochs: completed epochs.
        hours: of training and validation batches, by the measured seconds of a training batch; NaN if unknown.
        memory_gb: largest memory of the accelerator that was logged, NaN if none was.
        parameters: of the network, None if run.json does not say.
    """

    dataset: str
    method: str
    fold: int | str
    seed: int
    epochs: int
    hours: float
    memory_gb: float
    parameters: int | None


def costs(results: Results) -> list[Cost]:
    """Return the cost of each run that has begun."""
    found = []
    for state in results.states:
        run = state.run
        curve = results.curves.get(run.folder)
        if curve is None:
            continue
        found.append(
            Cost(
                *(run.dataset, run.method, run.fold, run.seed),
                epochs=len(curve),
                hours=hours(curve, run.batches),
                memory_gb=max((float(curve[name].max()) for name in _MEMORY if name in curve), default=math.nan),
                parameters=read_record(run.folder).get("parameters"),
            )
        )
    return found


def hours(curve: pandas.DataFrame, batches: int) -> float:
    """Return the hours of a run's batches: its seconds per training batch, for all batches of each epoch."""
    if "time/iteration_s" not in curve:
        return math.nan
    return float(curve["time/iteration_s"].sum()) * batches / 3600
