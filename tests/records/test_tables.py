"""The tables of a run: every name of a label or case comes back, and numbers are numbers."""

import math
from pathlib import Path

import pandas
import pytest

from umamba.io import UserError
from umamba.records.tables import main_score, metrics_damage, read_curves, read_metrics, read_scores, write_scores

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
    (tmp_path / "metrics.csv").write_text("epoch,val/loss\n0,1\n1,\n")
    assert math.isnan(read_curves(tmp_path / "metrics.csv")["val/loss"][1])
    (tmp_path / "metrics.csv").write_text("epoch,val/loss\n0,1\n1\n")
    with pytest.raises(UserError, match=r"metrics\.csv: row 2"):
        read_curves(tmp_path / "metrics.csv")


@pytest.mark.parametrize(
    ("text", "epochs", "damage"),
    [
        ("epoch,loss\n0,1\n1,nan\n", [0, 1], None),
        ("epoch,loss\n0,1\n1,0.", [0], "is cut in its last row"),
        ("epoch,loss\n0,1\n1", [0], "has 1 row(s) that are cut or hold other values"),
        ("epoch,loss\n0,1\nx,1\n1,2,3\n2,\n3,what\n4,5\n", [0, 2, 4], "has 3 row(s) that are cut or hold other values"),
        ("", [], "is empty"),
        ("\0\xff\n", [], "has no column epoch"),
        ("name,age\na,1\n", [], "has no column epoch"),
    ],
)
def test_whole_rows_of_a_damaged_table_are_read(
    tmp_path: Path, text: str, epochs: list[int], damage: str | None
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode("latin-1"))
    assert [int(row["epoch"]) for row in read_metrics(path)] == epochs
    assert metrics_damage(path) == damage


def test_tables_that_are_cut_are_refused(tmp_path: Path) -> None:
    """A cut in the last number would else change it in silence: 0.987 becomes 0.9."""
    path = tmp_path / "scores.csv"
    write_scores(path, pandas.DataFrame({"case": ["a", "b"], "label": ["x", "x"], "dsc": [0.5, 0.987]}))
    whole = path.read_bytes()
    assert len(read_scores(path)) == 2
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if whole[:length].endswith(b"\n"):
            continue  # a whole table of fewer rows
        with pytest.raises(UserError, match=r"scores\.csv"):
            read_scores(path)
