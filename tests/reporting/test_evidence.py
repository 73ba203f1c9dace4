"""What a report keeps so that its numbers can be checked later: held-out cases, wins and oracle, curves, records."""

import json
import math
import statistics
from itertools import combinations, product
from pathlib import Path

import pandas
import pytest

from umamba.io.tabular import read_table
from umamba.records import RunFolder
from umamba.records.tables import write_scores
from umamba.reporting import Results, gather, numbers, write_report
from umamba.reporting.compare import Claim, claims_of
from umamba.reporting.complement import complement
from umamba.sweeps import PlannedRun, RunState

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
    tables = (tmp_path / "report" / "tables.md").read_text()
    assert "held-out images: averages" in tables
    assert "|  | DSC |\n" in tables, "nothing was published of this dataset"
    names = ("dataset", "method", "label", "metric", "split", "rules")
    assert set(read_table(tmp_path / "report" / "numbers.csv", names)["split"]) == {"held-out"}


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


def test_only_the_pairs_that_a_study_names_are_compared_and_corrected_for(tmp_path: Path) -> None:
    """Four methods, of which the first is far better than the others; the study asks about one pair."""
    runs = []
    for quality, method in zip((0.9, 0.5, 0.4, 0.3), ("a", "b", "c", "d"), strict=True):
        for seed in (0, 1, 2):
            run = PlannedRun((), RunFolder(tmp_path / f"{method}{seed}"), "toy", method, 0, seed, 1, 1, "x")
            run.folder.path.mkdir()
            run.folder.status_file.write_text('{"state": "finished", "max_epochs": 1}')
            values = [(f"{case:02}", "front", quality + 0.002 * case + 0.001 * seed) for case in range(8)]
            write_scores(run.folder.scores, pandas.DataFrame(values, columns=["case", "label", "dsc"]))
            runs.append(run)
    all_pairs = gather("toy", "Which?", runs, None)
    one_pair = gather("toy", "Which?", runs, None, comparisons=[("b", "a")])
    everything, (claim,) = averages(all_pairs), averages(one_pair)
    assert len(everything) == 6
    assert {claim.a, claim.b} == {"a", "b"}
    assert claim.p_holm == pytest.approx(2 * claim.p_false), "one comparison: nothing is corrected"
    assert [n.method for n in numbers(all_pairs) if n.best and n.label == "average"] == ["a"]
    assert not any(n.best for n in numbers(one_pair)), "a was not compared with every other method"
    write_report(one_pair, tmp_path / "report", pictures_mb=0)
    said = "the study names 1 of the 6 pairs of methods; only these are compared."
    assert said in (tmp_path / "report" / "index.html").read_text()
    assert said in (tmp_path / "report" / "tables.md").read_text()
    assert json.loads((tmp_path / "report" / "runs.json").read_text())["comparisons"] == [["b", "a"]]


def averages(results: Results) -> list[Claim]:
    """Return the claims on the averages."""
    return [claim for claim in claims_of(results) if claim.label == "average"]


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


COMMITTED = sorted((Path(__file__).parents[2] / "experiments").glob("*/results"))


@pytest.fixture(params=["made here", *(path.parent.name for path in COMMITTED)])
def evidence(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder of a report: one that is made here, and each one that a study has committed."""
    if request.param == "made here":
        write_report(gathered(request.getfixturevalue("runs")), tmp_path / "report", pictures_mb=0)
        return tmp_path / "report"
    return next(path for path in COMMITTED if path.parent.name == request.param)


def means_of_cases(scores: pandas.DataFrame, row: dict[str, object]) -> dict[tuple[int, str, str], float]:
    """Return the scores of a number by training and case; those of the average are means over labels."""
    own = scores[(scores["method"] == row["method"]) & (scores["dataset"] == row["dataset"])]
    own = own[own["metric"] == row["metric"]]
    if row["label"] != "average":
        own = own[own["label"] == row["label"]]
    found: dict[tuple[int, str, str], list[float]] = {}
    for entry in own.to_dict("records"):
        found.setdefault((entry["seed"], str(entry["fold"]), entry["case"]), []).append(entry["value"])
    return {key: statistics.fmean(values) for key, values in found.items()}


def test_the_tables_follow_from_the_scores_of_the_cases(evidence: Path) -> None:
    """The numbers and differences by plain arithmetic, and the comparisons once more from the scores alone."""
    names = ("dataset", "method", "fold", "case", "label", "metric")
    scores = read_table(evidence / "scores.csv", names)
    rows = read_table(evidence / "numbers.csv", ("dataset", "method", "label", "metric", "split", "rules"))
    assert len(rows)
    for row in rows.to_dict("records"):
        cases = list(means_of_cases(scores, row).values())
        if not cases:
            assert math.isnan(row["mean"])
            continue
        assert row["mean"] == pytest.approx(statistics.fmean(cases), rel=1e-9)
        assert row["sd"] == pytest.approx(statistics.stdev(cases), rel=1e-6)
    claims = read_table(evidence / "claims.csv", ("dataset", "label", "metric", "first", "second", "shown", "sentence"))
    results = from_files(evidence, scores)
    again = {(c.dataset, c.label, c.metric, c.a, c.b): c for c in claims_of(results)}
    assert len(again) == len(claims)
    for row in claims.to_dict("records"):
        claim = again[row["dataset"], row["label"], row["metric"], row["first"], row["second"]]
        assert claim.p_holm == pytest.approx(row["p_holm"], rel=1e-9, nan_ok=True)
        assert claim.sentence == row["sentence"]
        if row["cases_left_out"] == 0:
            first, second = (
                by_case(means_of_cases(scores, {**row, "method": row[one]})) for one in ("first", "second")
            )
            differences = [first[case] - second[case] for case in first]
            assert row["difference"] == pytest.approx(statistics.fmean(differences), abs=1e-12)
    pandas.testing.assert_frame_equal(
        complement(results),
        read_table(evidence / "complement.csv", ("dataset", "metric", "first", "second")),
        check_dtype=False,
    )


def by_case(values: dict[tuple[int, str, str], float]) -> dict[str, float]:
    """Return the mean over trainings of each case."""
    found: dict[str, list[float]] = {}
    for (_, _, case), value in values.items():
        found.setdefault(case, []).append(value)
    return {case: statistics.fmean(each) for case, each in found.items()}


def from_files(evidence: Path, scores: pandas.DataFrame) -> Results:
    """Return the results that the files of a report hold, without any run folder."""
    records = json.loads((evidence / "runs.json").read_text())
    states = tuple(
        RunState(
            PlannedRun(
                overrides=tuple(entry["overrides"]),
                folder=RunFolder(evidence / "absent"),
                dataset=entry["dataset"],
                method=entry["method"],
                fold=entry["fold"],
                seed=entry["seed"],
                max_epochs=1,
                batches=1,
                preparation="",
            ),
            "done",
        )
        for entry in records["runs"]
    )
    named = tuple((first, second) for first, second in records.get("comparisons", []))
    return Results(records["study"], records["question"], states, scores, {}, {}, comparisons=named)


def test_a_report_names_no_path_of_the_machine(runs: list[PlannedRun], tmp_path: Path) -> None:
    folder = runs[0].folder
    folder.status_file.write_text('{"state": ')
    write_report(gathered(runs), tmp_path / "report", pictures_mb=0)
    written = {path.name: path.read_text() for path in (tmp_path / "report").iterdir()}
    assert f">{folder.status_file.name}: " in written["index.html"], "the damaged file is named"
    assert not [name for name, text in written.items() if str(tmp_path) in text]
