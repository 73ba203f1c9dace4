"""Read the run folders of a study: states, scores of each case and learning curves."""

import csv
import io
import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas

from umamba.evaluation import rules_sentence
from umamba.evaluation.protocols import ABDOMEN_ORGANS, ENDOSCOPY_TOLERANCE_PX
from umamba.io import UserError
from umamba.io.documents import MOST_BYTES, bounded_text
from umamba.records import RunFolder
from umamba.records.tables import read_curves, read_scores
from umamba.sweeps import PlannedRun, RunState, run_state

log = logging.getLogger(__name__)

_COLUMNS = "Columns: dataset,method,label,metric,mean,sd."
METRICS = ("dsc", "nsd", "f1")
AVERAGE = "average"
SCORE_COLUMNS = ("dataset", "method", "fold", "seed", "case", "label", "metric", "value")
# Which images a report is of: the test images, or these and the validation cases of the fold.
TEST = "test"
HELD_OUT = "held-out"
VALIDATION = " (validation)"  # ends the name of a validation case
# Names of the organs in Tables 5 to 7, and other names that datasets use.
_ORGANS = (
    *("liver", "right kidney", "spleen", "pancreas", "aorta", "IVC", "RAG", "LAG", "gallbladder", "esophagus"),
    *("stomach", "duodenum", "left kidney"),
)
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
    """A number of the paper.

    Attributes:
        mean: the mean.
        sd: the standard deviation; None if the paper gives none.
    """

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Results:
    """The results of a study.

    Attributes:
        name: name of the study.
        question: the question that it answers.
        states: state of each run.
        scores: scores of the finished runs, a row for each case, label and metric (SCORE_COLUMNS).
        curves: run folder -> metrics.csv, for runs that have one.
        published: (dataset, method, label, metric) -> the paper's number.
        overrides: overrides of every run in addition to those of the study.
        images: which images were scored: test or held-out.
        comparisons: pairs of methods that are compared; none: all pairs are.
    """

    name: str
    question: str
    states: tuple[RunState, ...]
    scores: pandas.DataFrame
    curves: Mapping[RunFolder, pandas.DataFrame]
    published: Mapping[tuple[str, str, str, str], Published]
    overrides: tuple[str, ...] = ()
    images: str = TEST
    comparisons: tuple[tuple[str, str], ...] = ()

    @property
    def datasets(self) -> list[str]:
        """Datasets in the order of the study."""
        return list(dict.fromkeys(state.run.dataset for state in self.states))

    @property
    def remark(self) -> str:
        """A warning that the runs had other settings than the study; empty if they had not."""
        if not self.overrides:
            return ""
        small = any(text.lstrip("+") == "smoke=true" for text in self.overrides)
        return f"Made with {' '.join(self.overrides)}: " + (
            "small runs on phantoms, which test the program; their scores cannot be compared with the paper's."
            if small
            else "these are not the runs of the study itself."
        )

    def rules(self, dataset: str) -> str:
        """Return a sentence on the rules of a dataset's scores; empty for runs of versions that did not record them.

        Args:
            dataset: the benchmark.
        """
        sentences = [rules_sentence(protocol, tolerance_mm) for protocol, tolerance_mm in self._scorings(dataset)]
        return " ".join(["These runs were scored by different rules:", *sentences] if len(sentences) > 1 else sentences)

    def tolerances(self, dataset: str) -> dict[str, str]:
        """Return the tolerance of each label's NSD as text; empty if it was not recorded or differs between runs.

        Args:
            dataset: the benchmark.

        Returns:
            Label, as the tables name it -> tolerance with its unit.
        """
        scorings = self._scorings(dataset)
        if len(scorings) != 1:
            return {}
        protocol, tolerance_mm = scorings[0]
        rows = self.scores[(self.scores["dataset"] == dataset) & (self.scores["metric"] == "nsd")]
        labels = [str(label) for label in rows["label"].unique()]
        if protocol == "abdomen":
            by_name = {label_name(name): value for name, value in ABDOMEN_ORGANS}
        elif protocol == "endoscopy":
            by_name = dict.fromkeys(labels, ENDOSCOPY_TOLERANCE_PX)
        else:
            by_name = dict.fromkeys(labels, tolerance_mm)
        unit = "pixels" if protocol == "endoscopy" else "mm"
        return {label: f"{by_name[label]:g} {unit}" for label in labels if label in by_name}

    def absent(self, dataset: str) -> set[str]:
        """Return the labels that no reference has, as far as the scores show it: nothing can be best at these.

        The protocol abdomen gives a label in neither map 1 and a label in only the prediction 0. A label that every
        method scores 0 or 1 in every case, and at least once 1, is therefore in no reference. Other protocols give
        such a label no score or 0, so that no method has more than 0.

        Args:
            dataset: the benchmark.
        """
        if {protocol for protocol, _ in self._scorings(dataset)} != {"abdomen"}:
            return set()
        rows = self.scores[(self.scores["dataset"] == dataset) & (self.scores["metric"] == "dsc")]
        return {
            str(label)
            for label, values in rows.groupby("label")["value"]
            if values.isin((0.0, 1.0)).all() and (values == 1.0).any()
        }

    def _scorings(self, dataset: str) -> list[tuple[str, float]]:
        """Return the protocols and tolerances by which the runs of a dataset were scored."""
        found = (
            state.run.folder.readable_status().get("scoring") for state in self.states if state.run.dataset == dataset
        )
        return list(
            dict.fromkeys(
                (str(record["protocol"]), record["tolerance_mm"])
                for record in found
                if isinstance(record, dict)
                and "protocol" in record
                and isinstance(record.get("tolerance_mm"), int | float)
            )
        )

    def methods(self, dataset: str) -> list[str]:
        """Return the methods of a dataset in the order of the study.

        Args:
            dataset: the benchmark.
        """
        return list(dict.fromkeys(state.run.method for state in self.states if state.run.dataset == dataset))

    def runs(self, dataset: str, method: str) -> list[RunState]:
        """Return the states of the runs of a method on a dataset.

        Args:
            dataset: the benchmark.
            method: the network.
        """
        return [state for state in self.states if (state.run.dataset, state.run.method) == (dataset, method)]


def gather(
    name: str,
    question: str,
    runs: Sequence[PlannedRun],
    published: Path | None,
    overrides: Sequence[str] = (),
    images: str = TEST,
    comparisons: Sequence[tuple[str, str]] = (),
) -> Results:
    """Read the results of a study from its run folders.

    Args:
        name: name of the study.
        question: the question that it answers.
        runs: its runs.
        published: its published.csv; None if it has none.
        overrides: overrides of every run in addition to those of the study.
        images: test, or held-out: also the validation cases of each run's fold.
        comparisons: pairs of methods that are compared; none: all pairs are.

    Raises:
        UserError: published.csv or a run's scores have an unexpected form.
    """
    states = tuple(run_state(run) for run in runs)
    printed = read_published(published) if published is not None else {}
    rows: list[tuple[Any, ...]] = []
    for state in states:
        if state.state == "done":
            rows += run_scores(state.run, {key[2] for key in printed}, images)
    files = {state.run.folder: state.run.folder.metrics for state in states}
    curves = {folder: curve for folder, path in files.items() if (curve := _curve(path)) is not None}
    return Results(
        name=name,
        question=question,
        states=states,
        scores=_spelled_alike(pandas.DataFrame(rows, columns=list(SCORE_COLUMNS))),
        curves={folder: curve for folder, curve in curves.items() if len(curve)},
        published=printed,
        overrides=tuple(overrides),
        images=images,
        comparisons=tuple(comparisons),
    )


def run_scores(run: PlannedRun, printed: Collection[str] = (), images: str = TEST) -> list[tuple[Any, ...]]:
    """Read the scores of a run.

    Args:
        run: the run.
        printed: labels of published numbers.
        images: test, or held-out: also the validation cases of the fold, whose names then end with (validation).

    Returns:
        Rows (SCORE_COLUMNS); none if the run has no scores.csv, for example because its test images have no labels.
    """
    table = read_scores(run.folder.scores)
    if images == HELD_OUT:
        validation = read_scores(run.folder.validation_scores)
        validation["case"] = validation["case"].astype(str) + VALIDATION
        table = pandas.concat([part for part in (table, validation) if len(part)] or [table], ignore_index=True)
    labels = label_names(table["label"].unique(), printed)
    rows: list[tuple[Any, ...]] = []
    for values in table.to_dict("records"):
        for metric in METRICS:
            value = float(values.get(metric, math.nan))
            if not math.isnan(value):
                label = labels[values["label"]]
                rows.append((run.dataset, run.method, str(run.fold), run.seed, values["case"], label, metric, value))
    return rows


def _spelled_alike(scores: pandas.DataFrame) -> pandas.DataFrame:
    """Give a case one spelling in all runs of a dataset, where they differ by the Unicode form (NFC, NFD) of its name.

    Runs on macOS and Linux may differ so. If one run has two cases of one form, all names stay as they are.
    """
    if scores.empty:
        return scores
    forms = scores["case"].map(partial(unicodedata.normalize, "NFC"))
    each = scores.assign(form=forms).groupby(["dataset", "method", "fold", "seed"])[["case", "form"]].nunique()
    if (each["case"] != each["form"]).any():
        return scores
    return scores.assign(case=scores.groupby([scores["dataset"], forms])["case"].transform("first"))


def label_names(labels: Iterable[str], printed: Collection[str] = ()) -> dict[str, str]:
    """Return the names of a run's labels in the tables; labels that differ have different names.

    Args:
        labels: names of the labels in the dataset.
        printed: labels of published numbers, which are used like those of the paper.

    >>> label_names(["RK", "right_kidney", "liver", "average"])
    {'RK': 'RK', 'right_kidney': 'right_kidney', 'liver': 'liver', 'average': 'average (label)'}
    """
    own = list(labels)
    named = {name: label_name(name, printed) for name in own}
    counts = Counter(named.values())
    taken = {AVERAGE}
    for name in own:
        chosen = named[name] if counts[named[name]] == 1 else name
        while chosen in taken:
            chosen += " (label)"
        named[name] = chosen
        taken.add(chosen)
    return named


def label_name(name: str, printed: Collection[str] = ()) -> str:
    """Return the name that the paper's tables give a label, or its own if the tables do not have it.

    Args:
        name: name of the label in the dataset.
        printed: labels of published numbers, which are used like those of the paper.

    >>> label_name("Postcava"), label_name("left_kidney"), label_name("NA")
    ('IVC', 'left kidney', 'NA')
    """
    composed = unicodedata.normalize("NFC", name)
    plain = composed.replace("_", " ").strip().lower()
    organ = _ALIASES.get(plain, plain)
    if organ in _ORGANS or organ in printed:
        return organ
    return plain if plain in printed else composed


def _curve(path: Path) -> pandas.DataFrame | None:
    """Return the curves of a run; None, with a warning, if its metrics.csv is damaged."""
    try:
        return read_curves(path) if path.exists() else None
    except UserError as error:
        log.warning("%s The report has no curve of this run.", error)
        return None


def read_published(path: Path) -> dict[tuple[str, str, str, str], Published]:
    """Read a study's published.csv.

    Args:
        path: the file.

    Returns:
        (dataset, method, label, metric) -> number.

    Raises:
        UserError: a column is missing, or a value is not a number.
    """
    found = {}
    try:
        rows = list(csv.DictReader(io.StringIO(bounded_text(path, MOST_BYTES), newline="")))
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as a table ({error}). {_COLUMNS}") from error
    for line, row in enumerate(rows, start=2):
        try:
            key = (row["dataset"], row["method"], row["label"], row["metric"])
            found[key] = Published(float(row["mean"]), float(row["sd"]) if row["sd"] else None)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}, line {line}: {error}. {_COLUMNS}") from error
    return found
