"""What each run cost: hours and memory from its files, and the size of its network, counted again as its files say."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas

from umamba.labels import LabelSet
from umamba.networks.describe import network_cost
from umamba.planning import Plan
from umamba.reporting.results import Results, read_record

_MEMORY = "memory/peak_gb"


@dataclass(frozen=True)
class Cost:
    """Cost of one training.

    Attributes:
        dataset, method, fold, seed: the run.
        epochs: completed epochs.
        hours: of training and validation batches, by the measured seconds of a training batch; NaN if unknown.
        memory_gb: the most that was logged, of the GPU or, without one, of the main process; NaN if none was.
        parameters: of the network, None if run.json does not say.
        step_flops: of forward and backward of a batch, None if run.json does not say what the network is.
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
        record = read_record(run.folder)
        found.append(
            Cost(
                *(run.dataset, run.method, run.fold, run.seed),
                epochs=len(curve),
                hours=hours(curve, run.batches),
                memory_gb=float(curve[_MEMORY].max()) if _MEMORY in curve else math.nan,
                parameters=record.get("parameters"),
                step_flops=step_flops(record["identity"]) if "identity" in record else None,
            )
        )
    return found


def step_flops(identity: Mapping[str, Any]) -> float:
    """Return the FLOPs of a training step from run.json's identity: three forward passes of a batch.

    The backward pass has two products for each one of the forward pass.
    """
    configuration = Plan.from_json(identity["plan"]).configuration(identity["configuration"])
    classes = LabelSet.from_json(identity["labels"]).num_classes
    forward = network_cost(identity["architecture"], configuration, len(identity["channel_names"]), classes).flops
    return 3.0 * forward * configuration.batch_size


def hours(curve: pandas.DataFrame, batches: int) -> float:
    """Return the hours of a run's batches: its seconds per training batch, for all batches of each epoch."""
    if "time/iteration_s" not in curve:
        return math.nan
    return float(curve["time/iteration_s"].sum()) * batches / 3600
