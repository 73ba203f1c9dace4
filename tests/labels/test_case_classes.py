"""The table of classes of whole cases: what it may look like, and what it is refused for."""

from pathlib import Path

import pytest

from umamba.io import UserError
from umamba.labels.case_classes import CaseHeads, CaseTask, read_case_table


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "classes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_tasks_and_empty_cells_are_unknown(tmp_path: Path) -> None:
    text = "\ufeffcase,grade,side\na,10,left\nb,2,\nc,,right\nd,2,left"  # a byte order mark, and no last line break
    found = read_case_table(table(tmp_path, text))
    tasks = found.tasks(["a", "b", "c", "x"])
    assert tasks == (CaseTask("grade", ("2", "10")), CaseTask("side", ("left", "right")))
    assert found.targets(tasks) == {"a": (1, 0), "b": (0, -1), "c": (-1, 1), "d": (0, 0)}
    assert CaseHeads.from_json(CaseHeads(tasks, alone=True).to_json()) == CaseHeads(tasks, alone=True)


def test_semicolons_of_a_spreadsheet_are_read(tmp_path: Path) -> None:
    found = read_case_table(table(tmp_path, "grade;case\nhigh;a\nlow;b\n"))
    assert found.rows == {"a": ("high",), "b": ("low",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line must name the column case"),
        ("name,grade\na,1\n", "its first line must name the column case"),
        ("case\na\n", "its first line must name the column case"),
        ("case,grade\na,1\na,2\n", "the case a has two rows"),
        ("case,grade\na,1,2\n", "line 2 has 3 cells"),
        ("case,grade\nb,1\n\n\n,1\n", "line 5 has no case"),
        ("case,a=b\nx,1\n", "without dot and equals sign"),
        ("case,a,a\nx,1,2\n", "two are equal"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_case_table(table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,grade\nz,1\n", "names none of the training cases, such as a"),
        ("case,grade\na,1\nb,1\nz,2\n", r"have 1 class\(es\) in the column grade"),
    ],
)
def test_tables_without_classes_to_learn_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_case_table(table(tmp_path, text)).tasks(["a", "b"])


@pytest.mark.parametrize(
    "content",
    [
        {"case": [{"name": "grade", "classes": ["a"]}]},
        {"case": [{"name": "grade", "classes": ["a", "a"]}]},
        {"case": [{"name": "", "classes": ["a", "b"]}]},
        {"case": [{"classes": ["a", "b"]}]},
        {"case": 3},
        [],
    ],
)
def test_damaged_records_are_refused(content: object) -> None:
    with pytest.raises(UserError):
        CaseHeads.from_json(content)
