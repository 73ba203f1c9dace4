"""What a study's runs have left in their folders: scores of each case, learning curves, cost. Files only."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from umamba.io import UserError
from umamba.records import RunFolder
from umamba.records.tables import read_scores
from umamba.sweeps import PlannedRun, RunState, run_state

METRICS = ("dsc", "nsd", "f1")
AVERAGE = "average"
SCORE_COLUMNS = ("dataset", "method", "fold", "seed", "case", "label", "metric", "value")
# Names under which datasets know the organs of Tables 5 to 7.
_ALIASES = {
    "rk": "right kidney",
    "lk": "left kidney",
    "ivc": "IVC",
    "inferior vena cava": "IVC",
    "postcava": "IVC",
    "rag": "RAG",
    "right adrenal gland": "RAG",
    "lag": "LAG",
    "left adrenal gland": "LAG",
    "gall bladder": "gallbladder",
    "oesophagus": "esophagus",
}


@dataclass(frozen=True)
class Published:
    """A number of the paper: mean, and standard deviation where it prints one."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Results:
    """All that is known of a study.

    Attributes:
        name, question: of the study.
        states: how far each run is.
        scores: of finished runs, a row for each case, label and metric (SCORE_COLUMNS); no row without a score.
        curves: metrics.csv of each run that has one, by run folder.
        published: (dataset, method, label, metric) -> the paper's number.
        overrides: of every run, beside those of the study.
    """

    name: str
    question: str
    states: tuple[RunState, ...]
    scores: pandas.DataFrame
    curves: Mapping[RunFolder, pandas.DataFrame]
    published: Mapping[tuple[str, str, str, str], Published]
    overrides: tuple[str, ...] = ()

    @property
    def datasets(self) -> list[str]:
        """Datasets in the order of the study."""
        return list(dict.fromkeys(state.run.dataset for state in self.states))

    @property
    def remark(self) -> str:
        """What a reader must know of the runs, empty if they are the study's own."""
        if not self.overrides:
            return ""
        small = any(text.lstrip("+") == "smoke=true" for text in self.overrides)
        return f"Made with {' '.join(self.overrides)}: " + (
            "small runs on phantoms, which show that the path works; beside the paper's numbers they mean nothing."
            if small
            else "not the runs of the study as it stands."
        )

    def methods(self, dataset: str) -> list[str]:
        """Methods of a dataset in the order of the study."""
        return list(dict.fromkeys(state.run.method for state in self.states if state.run.dataset == dataset))

    def runs(self, dataset: str, method: str) -> list[RunState]:
        """States of the runs of a method on a dataset."""
        return [state for state in self.states if (state.run.dataset, state.run.method) == (dataset, method)]


def gather(
    name: str, question: str, runs: Sequence[PlannedRun], published: Path | None, overrides: Sequence[str] = ()
) -> Results:
    """Read what the runs of a study have left.

    Args:
        name: the study's name.
        question: what the study asks.
        runs: its runs.
        published: its published.csv, None without one.
        overrides: of every run, beside those of the study.

    Raises:
        UserError: published.csv or a run's scores have an unexpected form.
    """
    states = tuple(run_state(run) for run in runs)
    rows: list[tuple[Any, ...]] = []
    for state in states:
        if state.state == "done":
            rows += run_scores(state.run)
    files = {state.run.folder: state.run.folder.metrics for state in states}
    curves = {folder: pandas.read_csv(path) for folder, path in files.items() if path.exists()}
    return Results(
        name=name,
        question=question,
        states=states,
        scores=pandas.DataFrame(rows, columns=list(SCORE_COLUMNS)),
        curves={folder: curve for folder, curve in curves.items() if len(curve)},
        published=read_published(published) if published is not None else {},
        overrides=tuple(overrides),
    )


def run_scores(run: PlannedRun) -> list[tuple[Any, ...]]:
    """Return the rows (SCORE_COLUMNS) of a run's scores.csv, none if its test images have no labels."""
    table = read_scores(run.folder.scores)
    rows: list[tuple[Any, ...]] = []
    for values in table.to_dict("records"):
        for metric in METRICS:
            value = float(values.get(metric, math.nan))
            if not math.isnan(value):
                label = label_name(values["label"])
                rows.append((run.dataset, run.method, str(run.fold), run.seed, values["case"], label, metric, value))
    return rows


def label_name(name: str) -> str:
    """Return a label's name as the paper's tables have it, its own in small letters if they have it not."""
    plain = name.replace("_", " ").strip().lower()
    return _ALIASES.get(plain, plain)


def read_published(path: Path) -> dict[tuple[str, str, str, str], Published]:
    """Read a study's published.csv.

    Raises:
        UserError: a column is missing or a value is no number.
    """
    found = {}
    with path.open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                key = (row["dataset"], row["method"], row["label"], row["metric"])
                found[key] = Published(float(row["mean"]), float(row["sd"]) if row["sd"] else None)
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"{path}, line {line}: {error}. Columns: dataset,method,label,metric,mean,sd."
                ) from error
    return found
