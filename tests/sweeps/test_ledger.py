"""The state of a run from its files alone, against files written by hand as training writes them."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from umamba.records import RunFolder
from umamba.records.tables import main_score, read_scores
from umamba.sweeps import PlannedRun, left_to_do, run_state, state_table
from umamba.sweeps.ledger import duration

NOW = 1_000_000.0


def planned(folder: Path, max_epochs: int = 10) -> PlannedRun:
    """Return a run of `folder`."""
    return PlannedRun(("experiment=a_b",), RunFolder(folder), "a", "b", "all", 0, max_epochs, 20, "x")


def write(folder: Path, name: str, text: str, age_s: float = 0.0) -> None:
    """Write a file of a run folder, as old as said."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (NOW - age_s, NOW - age_s))


def metrics(epochs: int, iteration_s: float = 2.0) -> str:
    """Return a metrics.csv."""
    rows = [f"{epoch},0.5,{iteration_s}" for epoch in range(epochs)]
    return "\n".join(["epoch,train/loss,time/iteration_s", *rows]) + "\n"


def test_nothing_there_is_pending(tmp_path: Path) -> None:
    state = run_state(planned(tmp_path / "none"), NOW)
    assert (state.state, state.epochs, state.reason) == ("pending", 0, "")


def test_a_live_run_is_running_with_epoch_and_time_left(tmp_path: Path) -> None:
    write(tmp_path, "run.json", json.dumps({"state": "training", "max_epochs": 10}), age_s=300)
    write(tmp_path, "metrics.csv", metrics(4), age_s=30)
    state = run_state(planned(tmp_path), NOW)
    assert (state.state, state.epochs) == ("running", 4)
    assert state.eta_s == 6 * 20 * 2.0  # six epochs of twenty batches of two seconds


def test_the_time_left_of_a_budget_is_its_rest(tmp_path: Path) -> None:
    status = {"state": "training", "max_epochs": 1000, "budget": {"seconds": 900.0}}
    write(tmp_path, "run.json", json.dumps(status), age_s=300)
    write(tmp_path, "metrics.csv", "epoch,time/iteration_s,time/used_s\n0,2.0,20\n1,2.0,35\n", age_s=30)
    assert run_state(planned(tmp_path, 1000), NOW).eta_s == 865.0


def test_a_budget_decides_the_length_of_an_epoch_and_the_table_counts_none(tmp_path: Path) -> None:
    status = {
        "state": "training",
        "max_epochs": 1000,
        "budget": {"seconds": 9e5, "iterations": 90, "val_iterations": 9},
    }
    write(tmp_path, "run.json", json.dumps(status), age_s=5000)
    write(tmp_path, "metrics.csv", metrics(4, iteration_s=10.0), age_s=2500)
    run = replace(planned(tmp_path, 1000), learnt={"budget": 9e5})
    state = run_state(run, NOW)
    assert state.state == "running", "three epochs of 99 steps of 10 s are longer than the silence"
    assert list(state_table([state], "s").columns[4].cells) == ["4"]
    assert list(state_table([replace(state, run=planned(tmp_path, 1000))], "s").columns[4].cells) == ["4/1000"]


@pytest.mark.parametrize(
    ("age_s", "iteration_s", "expected"), [(500, 2, "running"), (700, 2, "failed"), (700, 30, "running")]
)
def test_silence_means_death_after_ten_minutes_and_three_epochs(
    tmp_path: Path, age_s: float, iteration_s: float, expected: str
) -> None:
    write(tmp_path, "run.json", json.dumps({"state": "training", "max_epochs": 10}), age_s=5000)
    write(tmp_path, "metrics.csv", metrics(4, iteration_s), age_s=age_s)
    assert run_state(planned(tmp_path), NOW).state == expected


def test_a_job_that_still_touches_its_record_lives(tmp_path: Path) -> None:
    write(tmp_path, "run.json", json.dumps({"state": "training", "max_epochs": 10}), age_s=5000)
    write(tmp_path, "task.json", json.dumps({"state": "running"}), age_s=20)
    assert run_state(planned(tmp_path), NOW).state == "running"


def test_records_of_jobs_that_failed_or_stopped(tmp_path: Path) -> None:
    write(tmp_path, "run.json", json.dumps({"state": "training", "max_epochs": 10}))
    write(tmp_path, "metrics.csv", metrics(3))
    write(tmp_path, "task.json", json.dumps({"state": "failed", "reason": "exit code 2: no memory"}))
    failed = run_state(planned(tmp_path), NOW)
    assert (failed.state, failed.epochs, failed.reason) == ("failed", 3, "exit code 2: no memory")
    write(tmp_path, "task.json", json.dumps({"state": "stopped", "reason": "the time limit approached"}))
    stopped = run_state(planned(tmp_path), NOW)
    assert (stopped.state, stopped.epochs) == ("pending", 3)
    assert left_to_do([failed, stopped]) == [failed.run, stopped.run]


def test_a_run_that_was_continued_by_hand_is_running(tmp_path: Path) -> None:
    """The record of the job that failed before says nothing of it."""
    write(tmp_path, "task.json", json.dumps({"state": "failed", "reason": "exit code 2: no memory"}), age_s=900)
    write(tmp_path, "run.json", json.dumps({"state": "training", "max_epochs": 10}), age_s=60)
    write(tmp_path, "metrics.csv", metrics(3), age_s=20)
    state = run_state(planned(tmp_path), NOW)
    assert (state.state, state.epochs, state.reason) == ("running", 3, "training")
    write(tmp_path, "metrics.csv", metrics(3), age_s=800)
    write(tmp_path, "run.json", json.dumps({"state": "training", "max_epochs": 10}), age_s=800)
    assert "killed?" in run_state(planned(tmp_path), NOW).reason


def test_a_finished_run_is_done_with_its_score(tmp_path: Path) -> None:
    write(tmp_path, "run.json", json.dumps({"state": "finished", "max_epochs": 10}), age_s=1e6)
    write(tmp_path, "metrics.csv", metrics(10))
    write(tmp_path, "scores.csv", "case,label,dsc,nsd\na,x,0.5,1\na,y,0.7,1\nb,x,0.2,1\nb,y,,\n")
    state = run_state(planned(tmp_path), NOW)
    assert state.state == "done"
    assert state.score == pytest.approx((0.6 + 0.2) / 2)  # a label without a score does not count
    assert left_to_do([state]) == []
    longer = run_state(planned(tmp_path, max_epochs=20), NOW)
    assert (longer.state, longer.reason) == ("pending", "trained for only 10 epochs")


def test_a_folder_with_another_run_is_not_done(tmp_path: Path) -> None:
    run = replace(planned(tmp_path), learnt={"recipe": {"name": "nnunet", "optimizer": {"lr": 0.1}}, "seed": 0})
    for rate, state in ((0.1, "done"), (0.01, "failed")):
        identity = {"recipe": {"optimizer": {"lr": rate}}, "seed": 0}
        write(tmp_path, "run.json", json.dumps({"state": "finished", "max_epochs": 10, "identity": identity}))
        found = run_state(run, NOW)
        assert found.state == state
    assert found.reason == "its folder holds another run: recipe.optimizer.lr: was 0.01, is 0.1"


def test_cells_are_scored_by_f1(tmp_path: Path) -> None:
    write(tmp_path, "scores.csv", "case,label,f1\na,cell,0.5\nb,cell,0.75\n")
    assert main_score(read_scores(tmp_path / "scores.csv")) == pytest.approx(0.625)
    assert math.isnan(main_score(read_scores(tmp_path / "none" / "scores.csv")))


def test_half_written_records_do_not_break_the_table(tmp_path: Path) -> None:
    write(tmp_path, "run.json", '{"state": "trai')
    table = state_table([run_state(planned(tmp_path), NOW)], "study")
    assert table.row_count == 1
    assert table.caption == "0 done, 0 running, 0 pending, 1 failed"


RUN_FILES = ("", "\0\xff\x00binary", "[1]", "null", '{"state": [3]}', '{"max_epochs": "many"}', "[" * 5000)


@pytest.mark.parametrize("content", RUN_FILES)
def test_damaged_records_of_runs_are_told(tmp_path: Path, content: str) -> None:
    write(tmp_path, "run.json", content)
    found = run_state(planned(tmp_path), NOW)
    assert found.state == "failed"
    assert "run.json" in found.reason
    assert "restart=true" in found.reason


def test_damaged_tables_of_runs_do_not_break_the_table(tmp_path: Path) -> None:
    write(tmp_path, "run.json", json.dumps({"state": "finished", "max_epochs": 1000}))
    for scores in ("", "case,label,dsc\na,liver,0.9\na,spl", "case,label,dsc\na,liver,0.9", "what,ever\n1,2\n", "\0"):
        write(tmp_path, "scores.csv", scores)
        found = run_state(planned(tmp_path), NOW)
        assert found.state == "failed"
        assert "scores.csv" in found.reason
    write(tmp_path, "run.json", json.dumps({"state": "training"}))
    for rows, epochs in (
        ("", 0),
        ("epoch,time/iteration_s\n0,1\n1,x\n2,1\n", 2),
        ("epoch,lr\n0,1\n1,0.", 1),
        ("\0\n", 0),
    ):
        write(tmp_path, "metrics.csv", rows)
        assert run_state(planned(tmp_path), NOW).epochs == epochs


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7325, "2 h 2 min"), (90000, "1 d 1 h")]
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
