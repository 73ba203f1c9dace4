"""Parameters, FLOPs, seconds and memory of a training step of each method of a study, on one CPU thread.

python benchmarks/study_steps.py experiments/controls_nuclei paths.raw=RAW > experiments/controls_nuclei/steps.csv

A step is forward, loss, backward, clipping and optimiser on a batch of noise at the method's plan, in the precision of
its recipe. Methods take turns, step by step, after two steps of warm-up. `step_s` is the median of the CPU time of the
process, which on one thread equals the time on an idle core, so that other work on the machine does not count. The time
for patches, validation and scores is the same for all methods and not included. `activations_mib` is what autograd
keeps for a batch, as `umamba describe` counts it.
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch
from measuring import machine

from umamba.cli.compose import settings_of
from umamba.cli.planned_runs import dataset_and_method
from umamba.networks import build_network
from umamba.networks.cost import network_cost
from umamba.runs.network_at_plan import network_at_plan
from umamba.settings import DescribeSettings
from umamba.sweeps import read_study
from umamba.training.losses import DeepSupervisionLoss, DiceCrossEntropy
from umamba.training.schedules import build_optimizer

COLUMNS = ("dataset", "method", "iterations", "parameters", "step_gflop", "activations_mib", "step_s", "machine")


class Method:
    """A method of the study in training.

    Args:
        line: the overrides of its run.
        overrides: further overrides.
    """

    def __init__(self, line: tuple[str, ...], overrides: tuple[str, ...]) -> None:
        settings = settings_of(DescribeSettings, (*line, *overrides))
        self.dataset, self.name = dataset_and_method(line, settings)
        self.iterations = settings.trainer.max_epochs * settings.train_batches
        found = network_at_plan(settings)
        self.configuration, self.recipe = found.configuration, settings.recipe
        self.cost = network_cost(settings.architecture, found.configuration, found.in_channels, found.num_classes)
        torch.manual_seed(0)
        size = (found.configuration.batch_size, found.in_channels, *found.configuration.patch_size)
        self.image = torch.randn(size)
        self.label = torch.randint(found.num_classes, (size[0], 1, *size[2:]))
        self.network = build_network(
            settings.architecture,
            found.configuration,
            found.in_channels,
            found.num_classes,
            settings.recipe.deep_supervision,
        )
        self.optimizer = build_optimizer(self.network.parameters(), settings.recipe.optimizer)
        self.seconds: list[float] = []
        from umamba.labels import LabelSet

        labels = LabelSet.from_json({"background": 0, **{f"label {i}": i for i in range(1, found.num_classes)}})
        self.loss = DeepSupervisionLoss(DiceCrossEntropy(labels, batch_dice=found.configuration.batch_dice))

    def step(self) -> None:
        """Train on the batch once and note the CPU time."""
        start = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bf16-mixed"):
            loss = self.loss(self.network(self.image), self.label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip_norm or float("inf"))
        self.optimizer.step()
        self.seconds.append(time.process_time() - start)

    def row(self) -> list[object]:
        """Return the values of `COLUMNS`."""
        batch = self.configuration.batch_size
        return [
            self.dataset,
            self.name,
            self.iterations,
            self.cost.parameters,
            f"{3 * self.cost.flops * batch / 1e9:.2f}",
            f"{self.cost.activation_bytes * batch / 2**20:.1f}",
            f"{statistics.median(self.seconds[2:]):.4f}",
            machine(),
        ]


def main() -> None:
    """Print a row for each method of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder with sweep.yaml")
    parser.add_argument("overrides", nargs="*", help="overrides of every run")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each method")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = read_study(arguments.study.parent, arguments.study.name)
    methods = [Method(line, tuple(arguments.overrides)) for line in study.runs]
    for _ in range(arguments.steps + 2):
        for method in methods:
            method.step()
    table = csv.writer(sys.stdout)
    table.writerow(COLUMNS)
    table.writerows(method.row() for method in methods)


if __name__ == "__main__":
    main()
