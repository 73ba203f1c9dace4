"""Parameters, FLOPs, seconds and memory of a training step of each method of a study, on one CPU thread.

python benchmarks/study_steps.py experiments/controls_nuclei paths.raw=RAW > experiments/controls_nuclei/steps.csv
python benchmarks/study_steps.py experiments/controls_nuclei --equal-time experiments/controls_nuclei_time > steps.csv

`batch_s` is the making of a batch of patches, `step_s` the training on it: forward, loss, backward, clipping and
optimiser, in the precision of the recipe. Methods take turns, step by step, after two steps of warm-up. Both are
medians of the CPU time of the process, which on one thread equals the time on an idle core, so that other work on the
machine counts less. `activations_mib` is what autograd keeps for a batch, as `umamba describe` counts it.

--equal-time writes the sweep of a second study, in which every method has the time of the first one: an epoch has as
many batches as take as long as those of the first method.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import machine

from umamba.cli.compose import settings_of
from umamba.cli.planned_runs import dataset_and_method
from umamba.networks import build_network
from umamba.networks.cost import network_cost
from umamba.patches import PatchDataModule
from umamba.planning import fold_cases
from umamba.reporting.names import TIMED
from umamba.runs.preparation import plan_of, preprocess
from umamba.settings import TrainSettings
from umamba.sweeps import StudyFile, read_study
from umamba.training.losses import DeepSupervisionLoss, build_loss
from umamba.training.schedules import build_optimizer

COLUMNS = (
    *("dataset", "method", "iterations", "parameters", "step_gflop", "activations_mib", "batch_s", "step_s"),
    "machine",
)


class Method:
    """A method of the study in training.

    Args:
        line: the overrides of its run.
        overrides: further overrides.
        steps: number of steps that will be asked for.
    """

    def __init__(self, line: tuple[str, ...], overrides: tuple[str, ...], steps: int) -> None:
        settings = settings_of(TrainSettings, (*line, *overrides))
        self.settings, self.recipe = settings, settings.recipe
        self.dataset, self.name = dataset_and_method(line, settings)
        prepared = preprocess(plan_of(settings), settings)
        self.configuration = prepared.configuration
        given = (prepared.configuration, prepared.num_channels, prepared.labels.num_classes)
        self.cost = network_cost(settings.architecture, *given)
        torch.manual_seed(0)
        self.network = build_network(settings.architecture, *given, settings.recipe.deep_supervision)
        self.optimizer = build_optimizer(self.network.parameters(), settings.recipe.optimizer)
        self.loss = DeepSupervisionLoss(build_loss(prepared.labels, self.configuration.batch_dice, self.recipe.loss))
        train, held_out = fold_cases(prepared.store.case_ids, settings.fold)
        module = PatchDataModule(
            *(prepared.store, prepared.configuration, prepared.labels, train, held_out),
            seed=0,
            augmentation=settings.augmentation,
            iterations=steps,
            oversample_foreground=settings.recipe.oversample_foreground,
        )
        self.batches: Iterator[Any] = iter(module.train_dataloader())
        self.batch_s: list[float] = []
        self.step_s: list[float] = []

    def step(self) -> None:
        """Make a batch, train on it, and note the CPU time of both."""
        start = time.process_time()
        batch = next(self.batches)
        middle = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bf16-mixed"):
            loss = self.loss(self.network(batch["image"]), batch["label"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip_norm or float("inf"))
        self.optimizer.step()
        self.batch_s.append(middle - start)
        self.step_s.append(time.process_time() - middle)

    @property
    def seconds(self) -> tuple[float, float]:
        """Median seconds of a batch of patches and of the training on it."""
        return statistics.median(self.batch_s[2:]), statistics.median(self.step_s[2:])

    def row(self) -> list[object]:
        """Return the values of `COLUMNS`."""
        size, (batch_s, step_s) = self.configuration.batch_size, self.seconds
        return [
            *(self.dataset, self.name, self.settings.trainer.max_epochs * self.settings.train_batches),
            *(self.cost.parameters, f"{3 * self.cost.flops * size / 1e9:.2f}"),
            *(f"{self.cost.activation_bytes * size / 2**20:.1f}", f"{batch_s:.4f}", f"{step_s:.4f}", machine()),
        ]


def equal_time(study: StudyFile, methods: list[Method]) -> str:
    """Return the sweep.yaml of a study in which all methods have the time of the first one.

    All methods make their batches of patches by the same code, so that one median over all of them counts.
    """
    batch_s = statistics.median(second for method in methods for second in method.batch_s[2:])
    first, lines = methods[0], []
    given = yaml.safe_load((study.folder / "sweep.yaml").read_text())
    for method, line in zip(methods, given["runs"], strict=True):
        share = (batch_s + first.seconds[1]) / (batch_s + method.seconds[1])
        batches = max(1, round(first.settings.train_batches * share))
        timed = f" name={method.settings.name}_{TIMED} trainer.limit_train_batches={batches}"
        lines.append(
            line if method is first else " ".join(p for p in line.split() if not p.startswith("name=")) + timed
        )
    runs = "".join(f"  - {line.strip()}\n" for line in lines)
    return (
        f"# {study.name} at equal time: the batches of an epoch follow from the seconds in steps.csv\n"
        "# (benchmarks/study_steps.py --equal-time wrote this file).\n"
        f"question: {given['question']} (equal time)\n"
        f"common: >-\n  {given['common']}\nruns:\n{runs}folds: {given['folds']}\nseeds: {given['seeds']}\n"
    )


def main() -> None:
    """Print a row for each method of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder with sweep.yaml")
    parser.add_argument("overrides", nargs="*", help="overrides of every run")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each method")
    parser.add_argument("--equal-time", type=Path, help="folder of the study that is written")
    arguments = parser.parse_intermixed_args()  # overrides may stand after the options
    torch.set_num_threads(1)
    study = read_study(arguments.study.parent, arguments.study.name)
    methods = [Method(line, tuple(arguments.overrides), arguments.steps + 2) for line in study.runs]
    for _ in range(arguments.steps + 2):
        for method in methods:
            method.step()
    table = csv.writer(sys.stdout)
    table.writerow(COLUMNS)
    table.writerows(method.row() for method in methods)
    if arguments.equal_time is not None:
        arguments.equal_time.mkdir(parents=True, exist_ok=True)
        (arguments.equal_time / "sweep.yaml").write_text(equal_time(study, methods))


if __name__ == "__main__":
    main()
