"""What a report keeps so that its numbers can be checked later: held-out cases, wins and oracle, curves, records."""

import json
import statistics
from itertools import combinations, product
from pathlib import Path

import pandas
import pytest

from umamba.io.tabular import read_table
from umamba.records import RunFolder
from umamba.records.tables import write_scores
from umamba.reporting import Results, gather, numbers, write_report
from umamba.reporting.complement import complement
from umamba.sweeps import PlannedRun

TEST, VALIDATION = ("a", "b", "c"), ("c", "d")  # both have a case c
LABELS = ("front", "back")


def score(method: str, seed: int, place: str, case: str, label: str) -> float:
    """Return a score that differs between all of these."""
    number = sum(map(ord, f"{method}{seed}{place}{case}{label}")) * 7919 % 1000
    return round(0.5 + number / 2500, 4)


def table(method: str, seed: int, place: str, cases: tuple[str, ...]) -> pandas.DataFrame:
    """Return the scores of a run as its files hold them."""
    rows = [(case, label, score(method, seed, place, case, label)) for case in cases for label in LABELS]
    return pandas.DataFrame(rows, columns=["case", "label", "dsc"])


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    """Two methods with three trainings each, with scores of test and validation cases."""
    made = []
    for method, seed in product(("unet", "umamba_bot"), (0, 1, 2)):
        folder = RunFolder(tmp_path / "runs" / method / f"seed_{seed}")
        overrides = (f"name={method}", f"paths.raw={tmp_path}", f"seed={seed}")
        made.append(PlannedRun(overrides, folder, "toy", method, 0, seed, 2, 10, "x"))
        folder.path.mkdir(parents=True)
        provenance = {"umamba": "1.0", "git": {"revision": "abc"}}
        status = {"state": "finished", "max_epochs": 2, "parameters": 9, "provenance": provenance}
        folder.status_file.write_text(json.dumps(status))
        folder.metrics.write_text(f"epoch,train/loss\n0,{seed}.5\n1,{seed}.25\n")
        write_scores(folder.scores, table(method, seed, "test", TEST))
        write_scores(folder.validation_scores, table(method, seed, "validation", VALIDATION))
    return made


def gathered(runs: list[PlannedRun], images: str = "held-out") -> Results:
    """Return the results of the study."""
    return gather("toy", "Which?", runs, None, images=images)


def case_mean(method: str, seed: int, place: str, case: str) -> float:
    """Return the mean over labels."""
    return statistics.mean(score(method, seed, place, case, label) for label in LABELS)


def test_validation_cases_count_where_they_are_asked_for(runs: list[PlannedRun], tmp_path: Path) -> None:
    places = [*(("test", case) for case in TEST), *(("validation", case) for case in VALIDATION)]
    for images, counted in (("test", places[:3]), ("held-out", places)):
        (number,) = (n for n in numbers(gathered(runs, images)) if (n.method, n.label) == ("unet", "average"))
        assert number.cases == len(counted)
        assert number.mean == pytest.approx(
            statistics.mean(case_mean("unet", seed, *one) for seed in (0, 1, 2) for one in counted)
        )
    page = write_report(gathered(runs), tmp_path / "report", pictures_mb=0).read_text()
    assert "validation cases, which no training of the fold saw" in page
    assert "held-out images: averages" in (tmp_path / "report" / "tables.md").read_text()
    assert set(read_table(tmp_path / "report" / "numbers.csv", ("split",))["split"]) == {"held-out"}


def test_wins_and_oracle_are_those_of_all_pairs_of_trainings(runs: list[PlannedRun]) -> None:
    found = {(row["first"], row["second"]): row for row in complement(gathered(runs, "test")).to_dict("records")}
    expected = {
        ("unet", "unet"): combinations(range(3), 2),
        ("umamba_bot", "umamba_bot"): combinations(range(3), 2),
        ("unet", "umamba_bot"): product(range(3), repeat=2),
    }
    assert set(found) == set(expected)
    for (first, second), pairs in expected.items():
        wins, oracles, gains = [], [], []
        for i, j in pairs:
            a, b = ([case_mean(m, s, "test", case) for case in TEST] for m, s in ((first, i), (second, j)))
            wins.append(sum(x > y for x, y in zip(a, b, strict=True)))
            oracles.append(statistics.mean(map(max, a, b)))
            gains.append(oracles[-1] - max(statistics.mean(a), statistics.mean(b)))
        row = found[first, second]
        assert (row["pairs"], row["cases"]) == (len(wins), 3)
        assert row["wins_first"] == pytest.approx(statistics.mean(wins))
        assert row["wins_first"] + row["wins_second"] + row["ties"] == pytest.approx(3)
        assert row["oracle"] == pytest.approx(statistics.mean(oracles))
        assert row["gain"] == pytest.approx(statistics.mean(gains))


def test_curves_and_records_of_all_runs_are_kept_without_places(runs: list[PlannedRun], tmp_path: Path) -> None:
    write_report(gathered(runs), tmp_path / "report", pictures_mb=0)
    curves = read_table(tmp_path / "report" / "curves.csv", ("dataset", "method", "fold"))
    assert len(curves) == 2 * len(runs)
    own = curves[(curves["method"] == "umamba_bot") & (curves["seed"] == 2)]
    assert list(own["train/loss"]) == [2.5, 2.25]
    records = json.loads((tmp_path / "report" / "runs.json").read_text())
    assert [(entry["method"], entry["seed"]) for entry in records["runs"]] == [(run.method, run.seed) for run in runs]
    assert records["runs"][0]["overrides"] == ["name=unet", "seed=0"]
    assert records["runs"][0]["provenance"]["git"]["revision"] == "abc"
    assert str(tmp_path) not in (tmp_path / "report" / "runs.json").read_text()
