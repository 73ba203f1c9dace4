"""The tables of a run: every name of a label or case comes back, and numbers are numbers."""

import math
from pathlib import Path

import pandas
import pytest

from umamba.io import UserError
from umamba.records.tables import main_score, read_curves, read_scores, write_scores

LABELS = ("NA", "nan", "", "None", "1e3", "a, b", 'the "left" one', "=1+1", "caf\u00e9", "cafe\u0301")


def test_names_survive_and_join(tmp_path: Path) -> None:
    rows = [(case, label, 0.5) for case in ("001", "1", "1e3") for label in LABELS]
    table = pandas.DataFrame(rows, columns=["case", "label", "dsc"])
    write_scores(tmp_path / "scores.csv", table)
    read = read_scores(tmp_path / "scores.csv")
    pandas.testing.assert_frame_equal(read, table)
    joined = table.merge(read, on=["case", "label"], validate="one_to_one")
    assert len(joined) == len(rows)
    assert read.groupby(["case", "label"]).size().tolist() == [1] * len(rows)


def test_the_score_of_a_label_named_nan_counts(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("case,label,dsc\n001,nan,0.5\n002,nan,1.0\n")
    assert main_score(read_scores(tmp_path / "scores.csv")) == 0.75


def test_folds_stay_text(tmp_path: Path) -> None:
    write_scores(tmp_path / "t.csv", pandas.DataFrame({"case": ["1"], "label": ["a"], "dsc": [1.0], "fold": ["0"]}))
    assert read_scores(tmp_path / "t.csv")["fold"].tolist() == ["0"]


def test_curves_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text('epoch,val/loss,"val/patch_dice/a, b"\n0,1,nan\n1,,0.25\n')
    read = read_curves(tmp_path / "metrics.csv")
    assert read["epoch"].tolist() == [0, 1]
    assert math.isnan(read["val/loss"][1])
    assert read["val/patch_dice/a, b"][1] == 0.25
    (tmp_path / "metrics.csv").write_text("epoch,val/loss\n0,1\n1,")
    assert math.isnan(read_curves(tmp_path / "metrics.csv")["val/loss"][1])
    (tmp_path / "metrics.csv").write_text("epoch,val/loss\n0,1\n1")
    with pytest.raises(UserError, match=r"metrics\.csv: row 2"):
        read_curves(tmp_path / "metrics.csv")
