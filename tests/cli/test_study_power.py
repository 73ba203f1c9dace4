"""`umamba study power`: assumed and measured spreads, numbers of cases, and mistakes."""

import math
from pathlib import Path

import numpy as np
import pandas
import pytest

from umamba.cli import report
from umamba.cli.completion import candidates
from umamba.cli.compose import settings_of
from umamba.cli.planned_runs import planned_runs
from umamba.cli.study import main
from umamba.cli.study_power import cases_of, outlooks
from umamba.evaluation.power import ALPHA, detectable_difference
from umamba.evaluation.spread import Spreads
from umamba.io import UserError
from umamba.io.voice import shown
from umamba.records import RunFolder
from umamba.records.tables import write_scores
from umamba.settings import InvalidSettings, PowerSettings, ReportSettings, TrainSettings
from umamba.sweeps import PlannedRun, read_study

STUDY = """question: Which?
runs:
  - experiment=quickstart architecture=unet name=toy_unet
  - experiment=quickstart name=toy_bot
folds: [0]
seeds: [0, 1, 2]
"""


@pytest.fixture
def study(tmp_path: Path) -> str:
    """Write a study of two methods with three seeds on the phantom, and return its path."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "sweep.yaml").write_text(STUDY)
    return str(tmp_path / "toy")


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the command prints, in one line."""
    with shown():
        main(arguments)
    return " ".join(capsys.readouterr().out.split())


def test_assumed_spreads_before_anything_is_trained(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["power", study, "power.case_sd=0.05", "power.correlation=0.5", "power.difference=0.03"], capsys)
    # The difference of two scores: sqrt(0.05^2 + 0.05^2 - 2 0.05 0.05 0.5) = 0.05. The phantom has eight test cases.
    assert "of the difference of two methods over cases 0.0500, of a method over trainings 0.0050" in text
    assert "Level: 0.05 / 2 comparisons" in text  # one pair, DSC and NSD
    smallest = detectable_difference(Spreads(0.05, 0.005, 0.0), 8, 3, ALPHA / 2)
    assert f"With 8 cases and 3 trainings of each method, differences from {smallest:.4f} on are seen." in text
    assert "A difference of 0.03 needs " in text
    for cases in (4, 8, 16, 32):
        assert f"{cases} cases" in text


def test_one_training_shows_nothing(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["power", study, "power.trainings=1", "power.cases=100"], capsys)
    assert "One training of each method shows nothing of the methods" in text
    assert "No number of cases with 1 training shows " in text


def test_mistakes_are_named(study: str, tmp_path: Path) -> None:
    for arguments, words in (
        (["power"], "give one study"),
        (["power", study, "power.case_sd=x"], r"power\.case_sd=x: must be a number from 0 on"),
        (["power", study, "power.spread=1"], r"power\.spread"),
        (
            ["power", study, f"power.results={study}"],
            "has no two methods with two finished trainings each on quickstart",
        ),
        (["power", study, "dataset=nnunet", f"dataset.root={tmp_path}"], r"Give power\.cases=NUMBER"),
    ):
        with pytest.raises((UserError, InvalidSettings), match=words):
            main([*arguments, *([f"paths.runs={tmp_path / 'runs'}"] if len(arguments) > 1 else [])])


@pytest.fixture
def trained(study: str, tmp_path: Path) -> str:
    """Write the scores of all runs of the study, 40 cases each, and return the override of their folder."""
    override = f"paths.runs={tmp_path / 'runs'}"
    rng = np.random.default_rng(0)
    base = rng.normal(0.8, 0.1, 40)
    for run in planned_runs(read_study(tmp_path, study), (override,)):
        run.folder.path.mkdir(parents=True)
        run.folder.status_file.write_text(f'{{"state": "finished", "max_epochs": {run.max_epochs}}}')
        own = base + (0.03 if run.method.endswith("bot") else 0) + rng.normal(0, 0.02) + rng.normal(0, 0.01, 40)
        rows = [(f"case_{index}", "organ", value) for index, value in enumerate(own)]
        write_scores(run.folder.scores, pandas.DataFrame(rows, columns=["case", "label", "dsc"]))
    return override


def test_measured_spreads_are_those_of_the_runs(study: str, trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["power", study, trained, f"power.results={study}"], capsys)
    assert "Standard deviations, measured in toy" in text
    assert "With 40 cases and 3 trainings" in text
    over_trainings = float(text.split("over trainings ")[1].split(",")[0])
    assert over_trainings == pytest.approx(0.02, rel=0.6)
    assert float(text.split("of the rest ")[1].split(". Level")[0]) == pytest.approx(0.01, rel=0.15)


def test_the_report_of_a_study_uses_the_margin(study: str, trained: str, tmp_path: Path) -> None:
    for margin in (0.001, 0.25):
        output = tmp_path / f"report_{margin}"
        report.main(settings_of(ReportSettings, [f"study={study}", trained, f"output={output}", f"margin={margin}"]))
        claims = pandas.read_csv(output / "claims.csv")
        assert set(claims["margin"]) == {margin}
        assert claims["sentence"].str.contains("within the margin").all() == (margin == 0.25)


def test_only_test_cases_with_a_reference_are_counted(tmp_path: Path) -> None:
    for name in ("imagesTs", "labelsTs"):
        (tmp_path / name).mkdir()
    declared = '{"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1}, "file_ending": ".png"}'
    (tmp_path / "dataset.json").write_text(declared)
    settings = settings_of(TrainSettings, ["dataset=nnunet", f"dataset.root={tmp_path}"])
    assert cases_of(settings) is None
    for case in ("x_1", "x_2", "x_3"):  # with two channels each
        for channel in (0, 1):
            (tmp_path / "imagesTs" / f"{case}_{channel:04d}.png").touch()
    for case in ("x_1", "x_3"):
        (tmp_path / "labelsTs" / f"{case}.png").touch()
    assert cases_of(settings) == 2


def test_the_word_is_completed() -> None:
    assert "power" in candidates(["study", "po"])
    assert candidates(["slurm", "po"]) == []


def test_assumed_numbers_by_hand(tmp_path: Path) -> None:
    runs = [
        PlannedRun(("experiment=quickstart",), RunFolder(tmp_path / f"{m}{s}"), "toy", m, 0, s, 1, 1, "x")
        for m in ("a", "b", "c")
        for s in (0, 1)
    ]
    (outlook,) = outlooks(runs, PowerSettings(case_sd=0.1, correlation=0.92, training_sd=0.01, cases=33), None)
    assert (outlook.cases, outlook.trainings, outlook.comparisons) == (33, 2, 6)
    assert outlook.spreads.difference == pytest.approx(0.1 * math.sqrt(0.16))
    named = [("c", "a"), ("a", "other dataset's")]
    (outlook,) = outlooks(runs, PowerSettings(case_sd=0.1, cases=33), None, named)
    assert outlook.comparisons == 2, "one pair, DSC and NSD"
    assert outlooks(runs, PowerSettings(case_sd=0.1, cases=33), None, named[1:]) == []
