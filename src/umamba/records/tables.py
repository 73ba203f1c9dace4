"""Read and write the tables of a run: metrics.csv (a row an epoch), scores.csv (a row for each case and label)."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas

from umamba.io import UserError, atomic_path
from umamba.io.tabular import read_table, write_table

MetricsRow = dict[str, str]
# The metric that represents a run as one number: the first one that the table has.
MAIN_METRICS = ("dsc", "f1")
_KEYS = ("case", "label")
FOLD = "fold"  # a further column of the scores of several folds


def read_metrics(path: Path) -> list[MetricsRow]:
    """Return the rows of a metrics.csv, one for each completed epoch.

    Args:
        path: the file; if it does not exist, there are no rows.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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
    table = read_table(path, (*_KEYS, FOLD), "Score the run again.")
    if any(name not in table for name in _KEYS):
        raise UserError(f"{path}: the columns case and label are missing. Score the run again.")
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
    return read_table(path, remedy="It is written again by the next epoch of the run.")


def main_score(table: pandas.DataFrame) -> float:
    """Return the mean over cases of the mean over labels of the main metric (DSC, or F1 if there is no DSC).

    Args:
        table: columns as in `read_scores`.

    Returns:
        The mean; NaN if the table has neither metric.
    """
    metric = next((name for name in MAIN_METRICS if name in table and table[name].notna().any()), None)
    return math.nan if metric is None else float(table.groupby("case")[metric].mean().mean())
