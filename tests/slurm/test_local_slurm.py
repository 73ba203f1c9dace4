"""Studies on a real SLURM of one node: an array, a requeue in mid-training, a warning of the limit, a cancellation."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

STUDY = """question: Does it go on?
runs:
  - experiment=cell_unet
folds: [all]
seeds: [0]
"""
LONG = ("smoke=true", "trainer.max_epochs=12", "trainer.limit_train_batches=30")
LONGER = ("smoke=true", "trainer.max_epochs=24", "trainer.limit_train_batches=80")
SMALL = ("slurm.gpus=0", "slurm.cpus=1", "slurm.memory_gb=7", "slurm.time_limit=00:30:00", "slurm.max_parallel=2")


def said(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("sinfo") is None or not any(word in said("sinfo", "-h", "-o", "%t") for word in ("idle", "mix")),
        reason="needs a running SLURM",
    ),
]


def umamba(folder: Path, *arguments: str) -> str:
    """Run `umamba` in a folder and return what it prints."""
    command = [sys.executable, "-m", "umamba", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def wait_for(condition: Callable[[], bool], limit_s: float) -> None:
    """Wait until something holds; fail after the limit."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, said("squeue", "-r")
        time.sleep(0.5)


def jobs(folder: Path, study: str, number: int = 1) -> dict[str, str]:
    """Return the job numbers of a submission."""
    path = folder / "runs" / "slurm" / study / f"list_{number:03d}_jobs.json"
    return dict(json.loads(path.read_text()))


def epochs(folder: Path) -> list[int]:
    """Return the epochs of the only run."""
    paths = list((folder / "runs").glob("smoke_cell_unet/*/*/*/metrics.csv"))
    assert len(paths) <= 1, "a second run folder"
    if not paths:
        return []
    with paths[0].open(newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def in_queue(job: str) -> list[str]:
    """Return the states of a job's tasks that SLURM still has."""
    return said("squeue", "-h", "-r", "-o", "%T", "-j", job).split()


@pytest.fixture
def one_run(tmp_path: Path) -> tuple[Path, str, str]:
    """Submit a study of one run of twelve epochs; return folder, study and job when it has trained for two."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "sweep.yaml").write_text(STUDY)
    study = str(tmp_path / "one")
    assert row(umamba(tmp_path, "study", study, *LONG)) == ["pending", "0/12", "", "", ""]
    umamba(tmp_path, "slurm", "submit", study, *SMALL, *LONG)
    wait_for(lambda: len(epochs(tmp_path)) >= 2, 900)
    before = len(epochs(tmp_path))
    state, epoch, left, score, _ = row(umamba(tmp_path, "study", study, *LONG))
    assert before <= int(epoch.removesuffix("/12")) <= len(epochs(tmp_path))
    assert (state, score) == ("running", "")
    assert left.endswith("s")
    return tmp_path, study, jobs(tmp_path, "one")["train"]


def finish(folder: Path, study: str) -> None:
    """Wait for the run's end, and check that it is whole and alone."""
    wait_for(lambda: "1 done," in umamba(folder, "study", study, *LONG), 1800)
    assert epochs(folder) == list(range(12))
    state, epoch, left, score, remark = row(umamba(folder, "study", study, *LONG))
    assert (state, epoch, left, remark) == ("done", "12/12", "", "")
    assert 0 <= float(score) <= 1
    assert "Nothing to submit" in umamba(folder, "slurm", "submit", study, *SMALL, *LONG)


def row(table: str) -> list[str]:
    """Return state, epoch, time left, score and remark of the only run of a table of states."""
    (line,) = (line for line in table.splitlines() if line.startswith("│"))
    return [cell.strip() for cell in line.strip("│").split("│")][3:]


@pytest.mark.parametrize("how", ["requeued by the cluster", "warned before the limit"])
def test_a_requeued_run_goes_on_in_its_folder(one_run: tuple[Path, str, str], how: str) -> None:
    folder, study, job = one_run
    if how == "requeued by the cluster":
        said("scontrol", "requeue", f"{job}_0")
    else:
        said("scancel", "--signal=USR1", "--batch", f"{job}_0")  # what --signal=B:USR1@120 has SLURM send
    wait_for(lambda: in_queue(job) == ["PENDING"], 180)
    before = len(epochs(folder))
    why = (
        "the time limit approached"
        if how.startswith("warned")
        else "the cluster took the node back, or the job was cancelled"
    )
    waiting = ["pending", f"{before}/12", "", "", f"stopped: {why}"]
    assert row(umamba(folder, "study", study, *LONG)) == waiting
    assert "Nothing to submit" in umamba(folder, "slurm", "submit", study, *SMALL, *LONG)  # it is in the queue
    said("scontrol", "update", f"JobId={job}_0", "StartTime=now")  # SLURM makes a requeued job wait for two minutes
    finish(folder, study)
    log = next((folder / "runs" / "slurm" / "one" / "logs").glob(f"{job}_0.log")).read_text()
    assert f"Continuing runs/smoke_cell_unet/2d/fold_all/seed_0 after epoch {before}" in log


def test_a_refused_array_leaves_nothing_in_the_queue(tmp_path: Path) -> None:
    """The node has no GPU, so SLURM takes the preparation and refuses the array."""
    (tmp_path / "one (é)").mkdir()
    (tmp_path / "one (é)" / "sweep.yaml").write_text(STUDY)
    given = ["slurm", "submit", "one (é)", "slurm.gpus=1", *SMALL[1:], *LONG, "paths.runs=run (1)"]
    command = [sys.executable, "-m", "umamba", *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "sbatch refused" in done.stderr
    (number,) = re.findall(r"were cancelled: (\d+)\.", done.stderr)
    wait_for(lambda: not in_queue(number), 60)
    assert not list((tmp_path / "run (1)").rglob("list_*.json"))
    assert "The request fits the study." not in umamba(tmp_path, "slurm", "dry-run", "one (é)", *given[3:])


def test_a_run_longer_than_the_time_limit_is_done_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "sweep.yaml").write_text(STUDY)
    study = str(tmp_path / "one")
    short = [text.replace("00:30:00", "00:02:00") for text in SMALL]
    umamba(tmp_path, "slurm", "submit", study, *short, "slurm.warn_s=60", *LONGER)
    job = jobs(tmp_path, "one")["train"]

    def done() -> bool:
        if in_queue(job) == ["PENDING"] and epochs(tmp_path):
            said("scontrol", "update", f"JobId={job}_0", "StartTime=now")
        return "1 done," in umamba(tmp_path, "study", study, *LONGER)

    wait_for(done, 1800)
    assert epochs(tmp_path) == list(range(24))
    log = next((tmp_path / "runs" / "slurm" / "one" / "logs").glob(f"{job}_0.log")).read_text()
    assert log.count("Continuing runs/smoke_cell_unet/2d/fold_all/seed_0 after epoch") >= 1
    assert "DUE TO TIME LIMIT" not in log  # it left before it was killed


def test_two_processes_train_one_run_and_go_on_after_a_requeue(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "sweep.yaml").write_text(STUDY)
    study = str(tmp_path / "one")
    umamba(tmp_path, "slurm", "submit", study, *SMALL, "slurm.extra=[--ntasks-per-node=2]", *LONG)
    job = jobs(tmp_path, "one")["train"]
    wait_for(lambda: len(epochs(tmp_path)) >= 2, 900)
    said("scontrol", "requeue", f"{job}_0")
    wait_for(lambda: in_queue(job) == ["PENDING"], 180)
    before = len(epochs(tmp_path))
    assert row(umamba(tmp_path, "study", study, *LONG))[:2] == ["pending", f"{before}/12"]
    said("scontrol", "update", f"JobId={job}_0", "StartTime=now")
    finish(tmp_path, study)
    log = next((tmp_path / "runs" / "slurm" / "one" / "logs").glob(f"{job}_0.log")).read_text()
    assert log.count(f"Continuing runs/smoke_cell_unet/2d/fold_all/seed_0 after epoch {before}") == 1


def test_a_cancelled_run_is_submitted_again(one_run: tuple[Path, str, str]) -> None:
    folder, study, job = one_run
    said("scancel", job, jobs(folder, "one")["collect"])
    wait_for(lambda: not in_queue(job), 180)
    assert "1 pending," in umamba(folder, "study", study, *LONG)
    assert "Submitted 1 of 1" in umamba(folder, "slurm", "submit", study, *SMALL, *LONG)
    finish(folder, study)


def test_an_array_of_six_runs_two_at_a_time_and_is_reported(tmp_path: Path) -> None:
    umamba(tmp_path, "slurm", "submit", "table7_organs_mr_2d", *SMALL, "smoke=true")
    job = jobs(tmp_path, "table7_organs_mr_2d")["train"]
    running: list[int] = []

    def done() -> bool:
        running.append(in_queue(job).count("RUNNING"))
        return not in_queue(jobs(tmp_path, "table7_organs_mr_2d")["collect"])

    wait_for(done, 2400)
    assert max(running) == 2
    assert "6 done, 0 running, 0 pending, 0 failed" in umamba(tmp_path, "study", "table7_organs_mr_2d", "smoke=true")
    page = tmp_path / "runs" / "reports" / "table7_organs_mr_2d" / "index.html"
    assert "6 of 6 runs are done" in page.read_text()
