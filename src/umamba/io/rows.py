"""Read the small tables that people write or that lie in an archive: named columns of text, with the line of each row.

Tables that this project writes are read by `tabular`.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from umamba.io.documents import MOST_BYTES, bounded_text
from umamba.io.errors import UserError

Rows = list[tuple[int, tuple[str, ...]]]  # the line in the file, and the cells
_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


def read_columns(path: Path, columns: Sequence[str], delimiters: str = ",", remedy: str = "") -> Rows:
    """Return the rows of a table whose first line names some columns; see `find_columns`.

    Args:
        path: the file.
        columns: the columns that are read.
        delimiters: characters that may stand between the cells.
        remedy: sentence at the end of the message.

    Raises:
        UserError: the file cannot be read as a table, or its first line does not name each of the columns once.
    """
    rows = find_columns(path, columns, delimiters)
    if rows is None:
        named = " or ".join(_NAMES[delimiter] for delimiter in delimiters)
        message = f"its first line must name the columns: {','.join(columns)} (separated by {named})."
        raise UserError(f"{path}: {message} {remedy}".rstrip())
    return rows


def find_columns(path: Path, columns: Sequence[str], delimiters: str = ",") -> Rows | None:
    """Return the rows of a table, or None if its first line does not name each of the columns once.

    Args:
        path: the file, UTF-8 with or without byte order mark.
        columns: the columns that are read.
        delimiters: characters that may stand between the cells; the one that separates the names of the columns does.

    Returns:
        The line of each row and its cells in the order of `columns`, without space around them. A cell that a row does
        not have is empty; blank lines are no rows.

    Raises:
        UserError: the file is missing, too large, no UTF-8, or no table.
    """
    text = bounded_text(path, MOST_BYTES)
    if "\0" in text:
        raise UserError(f"{path}: cannot be read as text (it holds zero bytes). Save it as UTF-8, or put back a copy.")
    try:
        for delimiter in delimiters:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
            head = rows[0][1] if rows else []
            if all(head.count(column) == 1 for column in columns):
                places = [head.index(column) for column in columns]
                return [
                    (line, tuple(row[place] if place < len(row) else "" for place in places)) for line, row in rows[1:]
                ]
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as a table ({error}). Correct it, or put back a copy.") from None
    return None
