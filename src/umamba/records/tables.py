"""Read and write the tables of a run: metrics.csv (a row an epoch), scores.csv (a row for each case and label)."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from umamba.io import UserError, atomic_path
from umamba.io.tabular import read_table, write_table

MetricsRow = dict[str, str]
_MOST_METRICS = 256 << 20  # bytes
# The metric that represents a run as one number: the first one that the table has.
MAIN_METRICS = ("dsc", "f1")
_KEYS = ("case", "label")
_SCORE_AGAIN = "The same command scores the run again."
FOLD = "fold"  # a further column of the scores of several folds


def read_metrics(path: Path) -> list[MetricsRow]:
    """Return the whole rows of a metrics.csv, one for each completed epoch.

    Args:
        path: the file; if it does not exist, there are no rows. Rows that are cut or hold other values are left out.
    """
    return _metrics(path)[0]


def metrics_damage(path: Path) -> str | None:
    """Return what is wrong with a metrics.csv; None if nothing is, or it does not exist.

    Args:
        path: the file.
    """
    return _metrics(path)[1]


def _metrics(path: Path) -> tuple[list[MetricsRow], str | None]:
    """Return the whole rows, and what is wrong with the file."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_METRICS + 1)
    except FileNotFoundError:
        return [], None
    except OSError as error:
        return [], f"cannot be read ({error.strerror or error})"
    if len(content) > _MOST_METRICS:
        return [], f"has more than {_MOST_METRICS >> 20} MiB"
    rows: list[MetricsRow] = []
    wrong, whole = 0, False
    try:
        reader = csv.DictReader(io.StringIO(content.decode(errors="replace").replace("\0", "\ufffd"), newline=""))
        if "epoch" not in (reader.fieldnames or ()):
            return [], "is empty" if not content.strip() else "has no column epoch"
        for row in reader:
            whole = _is_metrics(row)
            rows += [row] if whole else []
            wrong += not whole
    except csv.Error as error:
        return rows, f"cannot be read as a table ({error})"
    if whole and not content.endswith(b"\n"):
        return rows[:-1], "is cut in its last row"  # whose last number may have lost digits
    return rows, f"has {wrong} row(s) that are cut or hold other values" if wrong else None


def _is_metrics(row: Mapping[Any, Any]) -> bool:
    """Return whether a row has a value for each column, all of them numbers or empty."""
    try:
        whole = None not in row and None not in row.values() and int(row["epoch"]) >= 0
        for value in row.values():
            float(value or 0)
    except (ValueError, TypeError):
        return False
    return whole


def write_metrics(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write a metrics.csv with all columns of all rows, in the order in which they first appear.

    Args:
        path: the file.
        rows: column -> text for each epoch.
    """
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def seconds_per_epoch(rows: Sequence[MetricsRow], batches: int) -> float | None:
    """Return the seconds of an epoch, from the mean time of a batch in the last five epochs.

    Args:
        rows: rows of metrics.csv.
        batches: training and validation batches of an epoch.

    Returns:
        Seconds; None if no epoch is complete.
    """
    recent = [float(row["time/iteration_s"]) for row in rows[-5:] if row.get("time/iteration_s")]
    return sum(recent) / len(recent) * batches if recent else None


def read_scores(path: Path) -> pandas.DataFrame:
    """Read a scores.csv.

    Args:
        path: the file; if it does not exist, the table is empty.

    Returns:
        Columns `case`, `label` and, for several folds, `fold` (text), and a column of numbers for each metric.

    Raises:
        UserError: the file is not such a table.
    """
    if not path.exists():
        return pandas.DataFrame(columns=list(_KEYS))
    table = read_table(path, (*_KEYS, FOLD), _SCORE_AGAIN)
    if any(name not in table for name in _KEYS):
        raise UserError(f"{path}: the columns case and label are missing. {_SCORE_AGAIN}")
    return table


def write_scores(path: Path, table: pandas.DataFrame) -> None:
    """Write a scores.csv.

    Args:
        path: the file.
        table: columns as in `read_scores`.
    """
    write_table(path, table)


def read_curves(path: Path) -> pandas.DataFrame:
    """Read a metrics.csv as numbers, a row for each epoch.

    Args:
        path: the file.

    Raises:
        UserError: the file is not such a table.
    """
    return read_table(path, remedy="Delete it, or continue the run, which keeps its whole rows.")


def main_score(table: pandas.DataFrame) -> float:
    """Return the mean over cases of the mean over labels of the main metric (DSC, or F1 if there is no DSC).

    Args:
        table: columns as in `read_scores`.

    Returns:
        The mean; NaN if the table has neither metric.
    """
    metric = next((name for name in MAIN_METRICS if name in table and table[name].notna().any()), None)
    return math.nan if metric is None else float(table.groupby("case")[metric].mean().mean())
