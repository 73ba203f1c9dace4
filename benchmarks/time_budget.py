"""A time budget against a fixed schedule of the same duration, and a run that was killed against one planned for that.

    python benchmarks/time_budget.py PATH_OF_DATASET --minutes 5 --seeds 0 1 2 --folder FOLDER [KEY=VALUE ...]

For each seed one process after the other trains: to the budget; with nnU-Net's polynomial decay and as many epochs as
the first run had, at its length of the epochs; and, with --kill, to three times the budget, killed when the budget is
used. The validation cases of the fold are scored. It prints the mean Dice of each, and how far the training was from
its budget.
"""

import argparse
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from umamba.cli.compose import settings_of
from umamba.records import RunFolder
from umamba.records.tables import read_metrics, read_scores
from umamba.runs import prepare
from umamba.runs.score import predict_and_score
from umamba.settings import TrainSettings


def given(arguments: argparse.Namespace, name: str, seed: int, *more: str) -> list[str]:
    """Return the overrides of a run."""
    root = arguments.dataset.resolve()
    paths = [f"paths.{part}={arguments.folder.resolve() / part}" for part in ("preprocessed", "runs")]
    return [f"dataset.root={root}", f"name={name}", f"seed={seed}", "logger=csv", *paths, *arguments.overrides, *more]


def dice_of(folder: RunFolder) -> float:
    """Return the mean Dice over cases of the mean over labels."""
    table = read_scores(folder.validation_scores)
    return float(table.groupby("case")["dsc"].mean().mean())


def train(overrides: list[str], kill_at_s: float | None = None) -> RunFolder:
    """Train in a process; with `kill_at_s`, kill it when so much of its budget is used, and score what it left."""
    settings = settings_of(TrainSettings, overrides)
    folder = RunFolder.of(settings)
    process = subprocess.Popen([sys.executable, "-m", "umamba", "train", *overrides])
    while kill_at_s is not None and process.poll() is None:
        rows = read_metrics(folder.metrics)
        if rows and float(rows[-1].get("time/used_s") or 0) >= kill_at_s:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.2)
    code = process.wait()
    if kill_at_s is None and code:
        raise SystemExit(f"the training ended with code {code}")
    if kill_at_s is not None:
        predict_and_score(settings, prepare(settings), folder)
    return folder


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kill", action="store_true")
    arguments, arguments.overrides = parser.parse_known_args()
    seconds = 60 * arguments.minutes
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("seed  budget_s  used_s  off  budget  fixed  killed")
    means: dict[str, list[float]] = {"budget": [], "fixed": [], "killed": []}
    for seed in arguments.seeds:
        minutes = f"{arguments.minutes:g}"
        timed = train(given(arguments, f"budget_{minutes}", seed, f"budget={seconds:g}s"))
        rows, plan = read_metrics(timed.metrics), timed.status()["budget"]
        used = float(rows[-1]["time/used_s"])
        same = [f"trainer.max_epochs={len(rows)}", f"data.iterations_per_epoch={plan['iterations']}"]
        same += [f"data.val_iterations={plan['val_iterations']}", "data.validate_cases_every=0"]
        same += [f"data.num_workers={plan['workers']}"]
        fixed = train(given(arguments, f"fixed_{minutes}", seed, *same))
        found = {"budget": dice_of(timed), "fixed": dice_of(fixed)}
        if arguments.kill:
            longer = given(arguments, f"killed_{minutes}", seed, f"budget={3 * seconds:g}s")
            found["killed"] = dice_of(train(longer, kill_at_s=seconds))
        for name, value in found.items():
            means[name].append(value)
        shown = "  ".join(f"{found.get(name, float('nan')):.4f}" for name in means)
        print(f"{seed}  {seconds:.0f}  {used:.0f}  {used / seconds - 1:+.1%}  {shown}", flush=True)
    print("mean", {name: round(sum(values) / len(values), 4) for name, values in means.items() if values})


if __name__ == "__main__":
    main()
