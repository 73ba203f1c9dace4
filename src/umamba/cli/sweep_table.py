"""The outcomes of a sweep's runs, and the table that ends it.

Each run writes its outcome into a file, because a launcher such as submitit runs it in another process or on another
machine.
"""

import csv
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from umamba.io import UserError, atomic_path, read_json, write_json
from umamba.settings.validate import read_record

_COLUMNS = ("run", "state", "score", "folder", "reason")


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep ended.

    Attributes:
        number: its position in the sweep, from 0 on.
        run: the overrides that the sweep varies.
        state: finished, refused (a mistake in its settings or data) or failed.
        score: mean score of the validation cases; NaN: none.
        folder: its run folder; empty if there is none.
        reason: why it did not finish.
    """

    number: int
    run: str
    state: str
    score: float = math.nan
    folder: str = ""
    reason: str = ""


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write the outcome of a run.

    Args:
        folder: folder of the sweep's outcomes.
        outcome: the outcome.
    """
    content = {**asdict(outcome), "score": None if math.isnan(outcome.score) else outcome.score}
    write_json(folder / f"{outcome.number:06d}.json", content)


def collect_outcomes(folder: Path) -> list[Outcome]:
    """Read the outcomes of a sweep in the order of its runs, and delete their folder.

    Args:
        folder: folder of the sweep's outcomes.
    """
    if not folder.exists():
        return []
    outcomes = [_outcome(path) for path in sorted(folder.glob("[0-9]*.json"))]
    shutil.rmtree(folder)
    return outcomes


@dataclass(frozen=True)
class _Written:
    """An outcome as its file holds it."""

    number: int
    run: str
    state: Literal["finished", "refused", "failed"]
    score: float | None
    folder: str
    reason: str


def _outcome(path: Path) -> Outcome:
    try:
        found = read_record(_Written, read_json(path))
        return Outcome(**{**asdict(found), "score": math.nan if found.score is None else found.score})
    except UserError as error:
        digits = re.match(r"\d{1,9}", path.name)
        return Outcome(int(digits.group()) if digits else 0, "", "failed", reason=f"its outcome is damaged: {error}")


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the table that ends a sweep: a row for each run, with the number of runs in each state as its caption.

    Args:
        outcomes: the outcomes, one row each.
    """
    counts = {state: sum(each.state == state for each in outcomes) for state in ("finished", "failed", "refused")}
    caption = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "finished")
    table = Table(title="Sweep", caption=caption)
    for column in ("run", "state", "score", "folder, or reason"):
        table.add_column(column, overflow="fold", justify="right" if column == "score" else "left")
    for each in outcomes:
        score = "" if math.isnan(each.score) else f"{each.score:.4f}"
        last = each.folder if each.state == "finished" else each.reason
        table.add_row(*(Text(text) for text in (each.run or "(all alike)", each.state, score, last)))
    return table


def write_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the table as CSV.

    Args:
        path: the file.
        outcomes: the outcomes, one row each.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for each in outcomes:
            writer.writerow({**asdict(each), "score": "" if math.isnan(each.score) else f"{each.score:.6g}"})
