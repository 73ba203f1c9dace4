"""Read and write CSV tables of names and numbers, so that every name comes back as it was.

pandas guesses the type of a column: it takes a label NA for a missing value, the case 001 for 1 and 1e3 for 1000. Here
the caller says which columns are names. A name that a spreadsheet would run as a formula is stored with a quote before
it (`escape.to_cell`), which reading removes.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas

from umamba.io.errors import UserError
from umamba.io.escape import from_cell, to_cell
from umamba.io.files import atomic_path

_MOST_BYTES = 1 << 30
_MISSING = ("", "nan", "NaN")


def read_table(path: Path, names: Iterable[str] = (), remedy: str = "Make it again.") -> pandas.DataFrame:
    """Read a CSV table with a header.

    Args:
        path: the file.
        names: columns of names, which are text; those that the file does not have are left out. All other columns are
            numbers: integers if every cell is one, otherwise float64, NaN where the cell is empty.
        remedy: sentence at the end of the error message.

    Raises:
        UserError: the file cannot be read as a table, or a cell outside the columns of names is not a number.
    """
    try:
        text = _whole_text(path)
        head, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (csv.Error, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be read as a table ({reason}). {remedy}") from error
    short = next((number for number, row in enumerate(rows, start=1) if len(row) != len(head)), None)
    if short is not None:
        raise UserError(f"{path}: row {short} has {len(rows[short - 1])} cells, the header {len(head)}. {remedy}")
    texts, made = set(names), {}
    for column, cells in zip(map(from_cell, head), zip(*rows, strict=True) if rows else ((),) * len(head), strict=True):
        try:
            made[column] = _names(cells) if column in texts else _numbers(cells)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{path}, column {column}: {error}. {remedy}") from error
    return pandas.DataFrame(made)


def _whole_text(path: Path) -> str:
    """Return the text of a table, which ends with a line break unless it was cut."""
    with path.open("rb") as stream:
        content = stream.read(_MOST_BYTES + 1)
    if not content.strip():
        raise ValueError("it is empty")
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
    if not content.endswith(b"\n"):
        raise ValueError("its last row is cut")
    return content.decode("utf-8")


def _names(cells: Sequence[str]) -> pandas.Series:
    return pandas.Series([from_cell(cell) for cell in cells], dtype=str)


def _numbers(cells: Sequence[str]) -> pandas.Series:
    if cells and all(cell.lstrip("-").isdecimal() for cell in cells):
        return pandas.Series([int(cell) for cell in cells], dtype="int64" if cells else None)
    return pandas.Series([math.nan if cell in _MISSING else float(cell) for cell in cells], dtype=float)


def write_table(path: Path, table: pandas.DataFrame) -> None:
    """Write a table as CSV, atomically; empty cells stand for NaN.

    Args:
        path: the file; its folder is made if it does not exist.
        table: columns of numbers and of text.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        file.write(table_text(table))


def table_text(table: pandas.DataFrame) -> str:
    """Return a table as CSV, as `write_table` writes it.

    Args:
        table: columns of numbers and of text.
    """
    rows = zip(*(_cells(table[column]) for column in table.columns), strict=True)
    return "".join(map(_line, [[to_cell(str(column)) for column in table.columns], *rows]))


def _line(cells: Iterable[object]) -> str:
    r"""Return a row as text; csv puts cells with any line break into quotes only if \r\n ends its rows."""
    stream = io.StringIO(newline="")
    csv.writer(stream).writerow(cells)
    return stream.getvalue().removesuffix("\r\n") + "\n"


def _cells(column: pandas.Series) -> list[object]:
    return [
        to_cell(value) if isinstance(value, str) else "" if pandas.isna(value) else value for value in column.tolist()
    ]
