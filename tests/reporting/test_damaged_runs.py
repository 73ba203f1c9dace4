"""A report of runs whose files were cut or edited: the other runs are in it, and a sentence names the file."""

import json
from pathlib import Path

import pytest

from umamba.records import RunFolder
from umamba.reporting.cost import costs
from umamba.reporting.gallery import raw_dataset
from umamba.reporting.results import gather
from umamba.sweeps import PlannedRun

METRICS = "epoch,train/loss,time/iteration_s\n0,1.0,2.0\n"
SCORES = "case,label,dsc\na,liver,0.5\n"


def finished(path: Path, fold: int) -> PlannedRun:
    """Write a finished run."""
    folder = RunFolder(path / f"fold_{fold}" / "seed_0")
    folder.path.mkdir(parents=True)
    scoring = {"protocol": "generic", "tolerance_mm": 1.0}
    folder.status_file.write_text(json.dumps({"state": "finished", "max_epochs": 1, "scoring": scoring}))
    folder.metrics.write_text(METRICS)
    folder.scores.write_text(SCORES)
    folder.config.write_text("dataset:\n  root: /none\n")
    return PlannedRun(("a=b",), folder, "a", "b", fold, 0, 1, 10, "x")


@pytest.mark.parametrize("name", ["run.json", "metrics.csv", "scores.csv", "config.yaml"])
def test_other_runs_are_reported(tmp_path: Path, name: str, messages: pytest.LogCaptureFixture) -> None:
    runs = [finished(tmp_path, 0), finished(tmp_path, 1)]
    for damage in ("", "[3]", "\0\xff", "epoch,train/loss\n0,what\n", '{"state": "fin', "a: [1"):
        (runs[1].folder.path / name).write_text(damage, encoding="latin-1")
        results = gather("mine", "Which?", runs, None)
        assert results.states[0].state == "done"
        failed = name in ("run.json", "scores.csv")
        assert set(results.scores["fold"]) == ({"0"} if failed else {"0", "1"})
        assert results.rules("a")
        assert {cost.fold for cost in costs(results)} == ({0} if name == "metrics.csv" else {0, 1})
        assert raw_dataset(runs[1].folder) is None
        assert results.states[1].state == ("failed" if failed else "done")
        assert not failed or name in results.states[1].reason
    assert name != "metrics.csv" or "metrics.csv" in messages.text
