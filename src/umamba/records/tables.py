"""The tables of a run: metrics.csv (one row an epoch) and scores.csv (one row a case and label), read in one place."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas

from umamba.io import UserError, atomic_path

MetricsRow = dict[str, str]
# The score that stands for a run where one number is wanted; the first that the table has.
MAIN_METRICS = ("dsc", "f1")
_KEYS = ("case", "label")


def read_metrics(path: Path) -> list[MetricsRow]:
    """Return the rows of a metrics.csv, one for each completed epoch; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_metrics(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows with the union of their columns, in the order in which the columns first appear."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def seconds_per_epoch(rows: Sequence[MetricsRow], batches: int) -> float | None:
    """Return the seconds of an epoch of so many batches, by the mean of the last five epochs; None before the first."""
    recent = [float(row["time/iteration_s"]) for row in rows[-5:] if row.get("time/iteration_s")]
    return sum(recent) / len(recent) * batches if recent else None


def read_scores(path: Path) -> pandas.DataFrame:
    """Return scores.csv: columns `case`, `label` (text) and one column of numbers a metric; empty without a file.

    Raises:
        UserError: the file is no such table.
    """
    if not path.exists():
        return pandas.DataFrame(columns=list(_KEYS))
    try:
        table = pandas.read_csv(
            path, dtype=dict.fromkeys(_KEYS, str), keep_default_na=False, na_values=["", "nan", "NaN"]
        )
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}). Score the run again.") from error
    if any(name not in table for name in _KEYS):
        raise UserError(f"{path}: has no columns case and label. Score the run again.")
    return table


def write_scores(path: Path, table: pandas.DataFrame) -> None:
    """Write a table of scores."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def main_score(table: pandas.DataFrame) -> float:
    """Return the mean over cases of the mean over labels of the main metric (DSC, else F1); NaN without one."""
    metric = next((name for name in MAIN_METRICS if name in table and table[name].notna().any()), None)
    return math.nan if metric is None else float(table.groupby("case")[metric].mean().mean())
