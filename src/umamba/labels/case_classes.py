"""The classes of whole cases: the table that gives them, and the tasks (questions with their answers) of a head."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba.io import UserError
from umamba.io.escape import from_cell
from umamba.settings.validate import read_record

CASE = "case"
UNKNOWN = -1  # class of a case whose cell is empty
_LISTED = 5
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class CaseTask:
    """A question about a case.

    Attributes:
        name: of the column that answers it.
        classes: the answers, in the order of the head's outputs.
    """

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class CaseHeads:
    """What a network answers about a case.

    Attributes:
        tasks: the questions.
        alone: whether the network was trained for them alone, so that it segments nothing.
    """

    tasks: tuple[CaseTask, ...]
    alone: bool = False

    def __str__(self) -> str:
        """Return the tasks with their classes in words."""
        return "; ".join(f"{task.name} ({', '.join(task.classes)})" for task in self.tasks)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes of each task."""
        return tuple(len(task.classes) for task in self.tasks)

    def to_json(self) -> dict[str, Any]:
        """Return the tasks as plain values."""
        tasks = [{"name": task.name, "classes": list(task.classes)} for task in self.tasks]
        return {"case": tasks, "alone": self.alone}

    @classmethod
    def from_json(cls, content: Any) -> "CaseHeads":
        """Read what `to_json` returned.

        Args:
            content: plain values.

        Raises:
            UserError: a value is not possible.
        """
        found = read_record(_Stored, content, "heads")
        tasks = tuple(read_record(CaseTask, task, f"heads.case[{index}]") for index, task in enumerate(found.case))
        _check_names([task.name for task in tasks], "heads.case")
        for task in tasks:
            if len(set(task.classes)) < len(task.classes) or not 2 <= len(task.classes) <= _MOST_CLASSES:
                raise UserError(f"heads.case: {task.name} must have 2 to {_MOST_CLASSES} different classes.")
        return cls(tasks, found.alone)


@dataclass(frozen=True)
class _Stored:
    case: tuple[Any, ...]
    alone: bool = False


@dataclass(frozen=True)
class CaseTable:
    """A table of classes.

    Attributes:
        path: the file.
        columns: its columns beside `case`.
        rows: case -> its cell in each column; empty where the class is not known.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]

    def tasks(self, cases: Collection[str]) -> tuple[CaseTask, ...]:
        """Return a task for each column; its classes are those of the cases, in alphabetical or numerical order.

        Args:
            cases: the cases that are trained on.

        Raises:
            UserError: none of the cases is in the table, or a column has fewer than two classes in these cases.
        """
        if not set(cases) & set(self.rows):
            raise UserError(
                f"heads.case={self.path}: names none of the training cases, such as {min(cases, default='')}. Write "
                "the names as in imagesTr, without channel and ending."
            )
        tasks = []
        for index, column in enumerate(self.columns):
            found = {self.rows[case][index] for case in cases if case in self.rows} - {""}
            if len(found) < 2:
                raise UserError(
                    f"heads.case={self.path}: the training cases have {len(found)} class(es) in the column {column}, "
                    "and at least two are needed. Leave the column out, or add cases."
                )
            if len(found) > _MOST_CLASSES:
                raise UserError(
                    f"heads.case={self.path}: the column {column} has {len(found)} different values. It must hold "
                    "classes, not measurements or names."
                )
            tasks.append(CaseTask(column, tuple(_ordered(found))))
        return tuple(tasks)

    def columns_with_classes(self) -> dict[str, tuple[str, ...]]:
        """Return task -> classes of a table that a prediction wrote, whose columns are TASK, TASK=CLASS, ..."""
        found: dict[str, list[str]] = {}
        for column in self.columns:
            task, equals, name = column.partition("=")
            found.setdefault(task, []).extend([name] if equals else [])
        return {task: tuple(classes) for task, classes in found.items()}

    def targets(self, tasks: Sequence[CaseTask]) -> dict[str, tuple[int, ...]]:
        """Return case -> number of its class in each task; `UNKNOWN` where it has none of the task's classes.

        Args:
            tasks: the tasks; the table may have further columns.

        Raises:
            UserError: the table lacks the column of a task.
        """
        missing = [task.name for task in tasks if task.name not in self.columns]
        if missing:
            raise UserError(
                f"{self.path}: has no column {', '.join(missing)}. Its columns are {', '.join(self.columns)}."
            )
        places = [self.columns.index(task.name) for task in tasks]
        numbers = [{name: number for number, name in enumerate(task.classes)} for task in tasks]
        return {
            case: tuple(known.get(cells[place], UNKNOWN) for place, known in zip(places, numbers, strict=True))
            for case, cells in self.rows.items()
        }


def read_case_table(path: Path, *, predicted: bool = False) -> CaseTable:
    """Read a CSV file with the column `case` and one or several columns of classes.

    Args:
        path: the file, with commas (or, if the first line has none, semicolons) between the cells.
        predicted: a prediction wrote it, so that it has a column TASK=CLASS for each class.

    Raises:
        UserError: it cannot be read, lacks a column, or names a case twice.
    """
    remedy = "Write a table such as: case,grade and below it a line for each case."
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = ";" if ";" in first and "," not in first else ","
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader if any(row)]
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be read as a table ({reason}). {remedy}") from None
    head = [from_cell(cell.strip()) for cell in rows[0][1]] if rows else []
    if head.count(CASE) != 1 or len(head) < 2:
        raise UserError(f"{path}: its first line must name the column case and a column of classes. {remedy}")
    place = head.index(CASE)
    columns = tuple(name for name in head if name != CASE)
    if not predicted:
        _check_names(columns, str(path))
    table: dict[str, tuple[str, ...]] = {}
    for line, row in rows[1:]:
        if len(row) != len(head):
            raise UserError(f"{path}: line {line} has {len(row)} cells, the first one {len(head)}. {remedy}")
        cells = [from_cell(cell.strip()) for cell in row]
        case = cells.pop(place)
        if not case:
            raise UserError(f"{path}: line {line} has no case. {remedy}")
        if case in table:
            raise UserError(f"{path}: the case {case} has two rows. Keep one of them.")
        table[case] = tuple(cells)
    return CaseTable(Path(path), columns, table)


def _check_names(names: Sequence[str], where: str) -> None:
    """Refuse names of tasks that are empty, taken twice, or hold what separates task and class in tables."""
    wrong = [name for name in names if not name or "=" in name or "." in name or len(name) > 100]
    if wrong or len(set(names)) < len(names):
        named = f"{wrong[0]!r} is none" if wrong else "two are equal"
        raise UserError(f"{where}: columns need different names without dot and equals sign; {named}. Rename them.")


def _ordered(values: Iterable[str]) -> list[str]:
    """Return values in numerical order if all are numbers, else in alphabetical order."""
    try:
        return sorted(values, key=lambda value: (float(value), value))
    except ValueError:
        return sorted(values)
