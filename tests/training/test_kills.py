"""A run that is killed with SIGKILL at random moments and continued each time ends like an uninterrupted one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from umamba.records import RunFolder
from umamba.runs import PreparedDataset

KILLS = 5
SETTINGS = ["trainer.max_epochs=6", "trainer.limit_train_batches=8", "augmentation=nnunet", "predict.validation=false"]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a run in a process group of its own."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def seconds_of_a_run(arguments: list[str]) -> float:
    """Return how long an uninterrupted run takes."""
    begin = time.monotonic()
    process = start(arguments)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_five_kills_leave_the_weights_bit_identical(
    small_settings: list[str], small_paths: Path, prepared: PreparedDataset, project_dir: Path, workers: int
) -> None:
    del prepared  # small_paths holds it

    def arguments(name: str) -> list[str]:
        folders = [f"paths.{kind}={small_paths / kind}" for kind in ("raw", "preprocessed", "runs")]
        more = [*SETTINGS, f"data.num_workers={workers}", "trainer.deterministic=true", f"name={name}"]
        return [sys.executable, str(project_dir / "train.py"), *small_settings, *folders, *more]

    def folder(name: str) -> RunFolder:
        (path,) = (small_paths / "runs" / name).glob("*/*/*")
        return RunFolder(path)

    whole, killed = f"whole_{workers}", f"killed_{workers}"
    duration = seconds_of_a_run(arguments(whole))
    moments = random.Random(workers)
    for _ in range(KILLS):
        process = start(arguments(killed))
        # Any moment from the start-up, which takes most of the time of so small a run, to the end.
        time.sleep(duration * moments.uniform(0.2, 0.95))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    seconds_of_a_run(arguments(killed))
    ours, theirs = (torch.load(folder(name).last, weights_only=True) for name in (killed, whole))
    assert ours["epoch"] == theirs["epoch"] == 5
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(ours["state_dict"][name], tensor) for name, tensor in theirs["state_dict"].items())
    rows = [folder(name).metrics.read_text().splitlines() for name in (killed, whole)]
    assert len(rows[0]) == len(rows[1]) == 7
