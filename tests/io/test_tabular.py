"""Tables of names and numbers: what is written is what is read, whatever the names are."""

import csv
import math
from pathlib import Path

import pandas
import pytest

from umamba.io import UserError
from umamba.io.tabular import read_table, write_table

NAMES = (
    *("NA", "nan", "NaN", "null", "None", "", "001", "1e3", "1", "True", "inf", "a,b", 'say "a"', "two\nlines", "x\ry"),
    *("=1+1", "+x", "-x", "@x", "'=1+1", "'", "'x", " x ", "caf\u00e9", "cafe\u0301", "\u809d\u810f", "#x"),
)


def test_names_and_numbers_come_back(tmp_path: Path) -> None:
    values = [0.1 + 0.2, -math.pi, 1e-300, math.nan] * 7
    table = pandas.DataFrame({"label": NAMES, "dsc": values[: len(NAMES)], "parts": range(len(NAMES))})
    write_table(tmp_path / "t.csv", table)
    read = read_table(tmp_path / "t.csv", ["label", "case"])
    assert read["label"].tolist() == list(NAMES)
    pandas.testing.assert_frame_equal(read[["dsc", "parts"]], table[["dsc", "parts"]], check_exact=True)


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", pandas.DataFrame({"=label": NAMES, "dsc": [-0.5] * len(NAMES)}))
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert not [row for row in rows if row[0][:1] in tuple("=+-@\t\r\n")]
    assert rows[0] == ["'=label", "dsc"]
    assert {row[1] for row in rows[1:]} == {"-0.5"}
    assert list(read_table(tmp_path / "t.csv", ["=label"]).columns) == ["=label", "dsc"]


def test_tables_of_earlier_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("case,label,dsc\n001,=x,0.5\n1e3,NA,\n")
    read = read_table(tmp_path / "t.csv", ["case", "label"])
    assert read["case"].tolist() == ["001", "1e3"]
    assert read["label"].tolist() == ["=x", "NA"]
    assert read["dsc"][0] == 0.5
    assert math.isnan(read["dsc"][1])


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2,3\n4\n\xff", b"case,dsc\nx,good\n"])
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.csv.*Make it again"):
        read_table(tmp_path / "t.csv", ["case"])
