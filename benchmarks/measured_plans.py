"""Predicted and measured peak of the training step that planner.measure=true chooses, for every backbone.

    python benchmarks/measured_plans.py PATH_OF_DATASET --folder FOLDER --budgets 20 [KEY=VALUE ...]

Each backbone gets random budgets (GB, log-uniform between --low and --high). The chosen step is measured once more in a
new process ("again"). `predicted` is what followed from the other steps that were measured, `plan` what the plan says.
It prints their ratios to the last measurement, and whether any step was above its budget.
"""

import argparse
import math
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umamba.cli.compose import settings_of
from umamba.io import UserError, read_json
from umamba.networks.build import architecture_names
from umamba.runs.identity import checkpoint_record
from umamba.runs.measured_plan import kept_copies, with_measured_plan
from umamba.runs.preparation import plan_of
from umamba.runs.trainer import chosen_precision, trains_on_cuda
from umamba.settings import TrainSettings
from umamba.training.measured_step import step_peak


def main() -> None:
    """Measure, and print a line for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--budgets", type=int, default=3)
    parser.add_argument("--low", type=float, default=1.0)
    parser.add_argument("--high", type=float, default=5.0)
    parser.add_argument("--architectures", nargs="+", default=list(architecture_names()))
    arguments, overrides = parser.parse_known_args()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    print("architecture  budget_gb  patch  batch  accumulate  checkpointing  again_gb  again/predicted  /plan  /budget")
    generator = np.random.default_rng(0)
    above = 0
    for name in arguments.architectures:
        for _ in range(arguments.budgets):
            budget = float(np.exp(generator.uniform(np.log(arguments.low), np.log(arguments.high))))
            given = [f"dataset.root={arguments.dataset.resolve()}", f"architecture={name}", "planner.measure=true"]
            given += [f"planner.gpu_memory_gb={budget:.4g}", "logger=csv", *overrides]
            given += [f"paths.{part}={arguments.folder.resolve() / part}" for part in ("preprocessed", "runs")]
            try:
                settings = with_measured_plan(settings_of(TrainSettings, given))
            except UserError as error:
                print(name, f"{budget:.2f}", "refused:", error)
                continue
            record = checkpoint_record(settings, plan_of(settings))
            trainer, device = settings.trainer, "cuda" if trains_on_cuda(settings) else "cpu"
            again = step_peak(
                replace(record, fingerprint_hash=None),
                trainer.activation_checkpointing,
                kept_copies(settings),
                device,
                chosen_precision(settings),
            )
            above += again > budget * 1e9
            choice = chosen(arguments.folder, settings_of(TrainSettings, given).planner.gpu_memory_gb)
            predicted = "-" if choice["predicted"] is None else f"{again / choice['predicted']:.3f}"
            patch = "x".join(map(str, record.configuration.patch_size))
            print(
                f"{name}  {budget:.2f}  {patch}  {record.configuration.batch_size}  {trainer.accumulate_grad_batches}  "
                f"{trainer.activation_checkpointing}  {again / 1e9:.2f}  {predicted}  "
                f"{again / choice['measured']:.3f}  {again / budget / 1e9:.2f}",
                flush=True,
            )
    print(f"{above} steps above their budget")


def chosen(folder: Path, budget_gb: float | None) -> dict[str, Any]:
    """Return the content of the file that keeps the choice for a budget; each backbone has budgets of its own."""
    assert budget_gb is not None
    files = (folder / "preprocessed").glob("*/measured_*.json")
    return next(content for content in map(read_json, files) if math.isclose(content["budget"], budget_gb * 1e9))


if __name__ == "__main__":
    main()
