"""Scores of the classes of whole cases: AUC, accuracy, Brier score and calibration, each with an interval.

AUC is the probability that a case of a class gets a higher probability of it than a case of another class, ties
counted half (Mann-Whitney); with more than two classes, each against the rest, and their mean. The Brier score is the
mean over cases of the summed squared differences between probabilities and the truth: 0 is perfect, 2 the worst. The
calibration error (ECE) is the mean distance between the probability of the most probable class and the share of cases
in which it is right, over ten bins of equal width weighted by their cases (Guo et al., 2017).

The intervals hold 95 %, from 2000 bootstrap samples of cases (percentile method, seed 0); for AUC the cases of a class
and those of the rest are drawn separately, so that no sample lacks one of them. If no sample differs, as with an AUC of
1, the interval has no width: it then says nothing about other cases.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
from rich.table import Table
from scipy.stats import rankdata

from umamba.evaluation.statistics import bootstrap_interval, mean_label
from umamba.io import UserError, atomic_path
from umamba.io.escape import mathtext
from umamba.io.tabular import read_table, write_table
from umamba.labels import colours
from umamba.labels.case_classes import CASE, UNKNOWN, CaseTask, read_case_table
from umamba.labels.painting import new_figure

log = logging.getLogger(__name__)
TITLES = {"auc": "AUC", "accuracy": "accuracy", "brier": "Brier score", "ece": "calibration error"}
BINS = 10
_RESAMPLES, _SEED, _BATCH = 2000, 0, 2_000_000
_TAILS = (0.025, 0.975)


def auc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve, along the last axis.

    Args:
        positive: scores of the cases of a class (..., P).
        negative: scores of the other cases (..., N).

    Returns:
        (...); NaN where there are no cases of one kind.

    >>> float(auc(np.array([0.9, 0.4]), np.array([0.1, 0.4])))
    0.875
    """
    count, others = positive.shape[-1], negative.shape[-1]
    if not count or not others:
        return np.full(positive.shape[:-1], np.nan)
    ranks = rankdata(np.concatenate([positive, negative], axis=-1), axis=-1)[..., :count]
    return np.asarray((ranks.sum(axis=-1) - count * (count + 1) / 2) / (count * others))


def auc_interval(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the AUC; NaN with fewer than two cases of one kind.

    Args:
        positive: scores of the cases of a class (P,).
        negative: scores of the other cases (N,).
    """
    return _mean_auc_interval([(positive, negative)])


def _mean_auc_interval(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    if any(min(len(positive), len(negative)) < 2 for positive, negative in pairs):
        return math.nan, math.nan
    generator = np.random.default_rng(_SEED)
    total = np.zeros(_RESAMPLES)
    for positive, negative in pairs:
        step = max(1, _BATCH // (len(positive) + len(negative)))
        for first in range(0, _RESAMPLES, step):
            rows = min(step, _RESAMPLES - first)
            drawn = [part[generator.integers(0, len(part), (rows, len(part)))] for part in (positive, negative)]
            total[first : first + rows] += auc(*drawn)
    low, high = np.quantile(total / len(pairs), _TAILS)
    return float(low), float(high)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the expected calibration error, along the last axis.

    Args:
        confidence: probability of the most probable class (..., cases).
        right: whether that class is the true one (..., cases).

    >>> round(float(calibration_error(np.array([0.95, 0.95, 0.65]), np.array([True, False, True]))), 4)
    0.4167
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = [np.abs(np.where(bins == number, right - confidence, 0.0).sum(axis=-1)) for number in range(BINS)]
    return np.asarray(np.sum(gaps, axis=0) / confidence.shape[-1])


def score_task(task: CaseTask, truth: np.ndarray, probabilities: np.ndarray) -> pandas.DataFrame:
    """Return the scores of a task.

    Args:
        task: its name and classes.
        truth: number of the true class of each case (n,).
        probabilities: of each class (n, classes).

    Returns:
        Columns task, class (empty where a row concerns all classes), metric, value, ci_low, ci_high, cases. With two
        classes there is one AUC, that of the second class.
    """
    rows: list[tuple[str, str, float, tuple[float, float]]] = []
    pairs = {
        name: (probabilities[truth == number, number], probabilities[truth != number, number])
        for number, name in enumerate(task.classes)
    }
    if len(pairs) == 2:
        pairs = {task.classes[1]: pairs[task.classes[1]]}
    for name, pair in pairs.items():
        rows.append((name, "auc", float(auc(*pair)), auc_interval(*pair)))
    known = [pair for pair in pairs.values() if min(map(len, pair))]
    if len(pairs) > 1 and known:
        value = float(np.mean([auc(*pair) for pair in known]))
        rows.append((mean_label(task.classes), "auc", value, _mean_auc_interval(known)))
    right = probabilities.argmax(axis=1) == truth
    squared = ((probabilities - np.eye(len(task.classes))[truth]) ** 2).sum(axis=1)
    for metric, values in (("accuracy", right.astype(float)), ("brier", squared)):
        rows.append(("", metric, float(values.mean()), bootstrap_interval(values)))
    confidence = probabilities.max(axis=1)
    rows.append(("", "ece", float(calibration_error(confidence, right)), _ece_interval(confidence, right)))
    return pandas.DataFrame(
        [
            {"task": task.name, "class": name, "metric": metric, "value": value, "ci_low": low, "ci_high": high}
            for name, metric, value, (low, high) in rows
        ]
    ).assign(cases=len(truth))


def _ece_interval(confidence: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    count = len(right)
    if count < 2:
        return math.nan, math.nan
    generator, found = np.random.default_rng(_SEED), []
    step = max(1, _BATCH // (count * BINS))
    for first in range(0, _RESAMPLES, step):
        chosen = generator.integers(0, count, (min(step, _RESAMPLES - first), count))
        found.append(calibration_error(confidence[chosen], right[chosen]))
    low, high = np.quantile(np.concatenate(found), _TAILS)
    return float(low), float(high)


def read_predicted(path: Path) -> tuple[tuple[CaseTask, ...], pandas.DataFrame]:
    """Read a classes.csv that a prediction wrote.

    Args:
        path: the table.

    Returns:
        The tasks, and the table: column case, and a column TASK=CLASS for each probability.

    Raises:
        UserError: the file is missing or no such table.
    """
    remedy = "Predict again with a network that has a classification head (heads.case)."
    if not path.is_file():
        raise UserError(f"{path}: there is no such file. {remedy}")
    names = read_case_table(path, predicted=True).columns_with_classes()
    table = read_table(path, (CASE, *names), remedy)
    tasks = tuple(CaseTask(name, classes) for name, classes in names.items())
    if not tasks or any(len(task.classes) < 2 for task in tasks):
        raise UserError(f"{path}: has no probabilities of classes. {remedy}")
    return tasks, table


def score_classes(
    predicted: Sequence[Path], truth: Path
) -> tuple[pandas.DataFrame, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Score the classes that a prediction wrote, or several folds together, over the cases with a true class.

    A true class that the network was not trained for is left out, with a warning.

    Args:
        predicted: the classes.csv of each prediction; a case counts in the first table that has it.
        truth: table with the columns case and those of the tasks.

    Returns:
        The scores of all tasks (see `score_task`), and for each task the true classes (n,) and the probabilities
        (n, classes) that they were made of.

    Raises:
        UserError: a table cannot be read, the tables have different classes, or no case has a class and a prediction.
    """
    tasks, table = _joined(predicted)
    given = read_case_table(truth)
    targets = given.targets(tasks)
    kept = table[[case in targets for case in table[CASE]]]
    scores, used = [], {}
    for index, task in enumerate(tasks):
        numbers = np.array([targets[case][index] for case in kept[CASE]], dtype=int)
        known = numbers != UNKNOWN
        cells = [given.rows[case][given.columns.index(task.name)] for case in kept[CASE][~known]]
        if any(cells):
            log.warning("%s: %s is no class of the network; such cases are left out.", task.name, max(cells))
        if not known.any():
            continue
        probabilities = kept[[f"{task.name}={name}" for name in task.classes]].to_numpy(dtype=float)[known]
        used[task.name] = (numbers[known], probabilities)
        scores.append(score_task(task, *used[task.name]))
    if not scores:
        raise UserError(f"{predicted[0]}: no case has a class in {truth}. Check the names of the cases.")
    return pandas.concat(scores, ignore_index=True), used


def _joined(predicted: Sequence[Path]) -> tuple[tuple[CaseTask, ...], pandas.DataFrame]:
    """Return the tasks of several tables, and their rows in one table, each case once."""
    read = [read_predicted(path) for path in predicted]
    for path, (tasks, _) in zip(predicted, read, strict=True):
        if tasks != read[0][0]:
            raise UserError(f"{path}: has other classes than {predicted[0]}. Score them apart.")
    return read[0][0], pandas.concat([table for _, table in read], ignore_index=True).drop_duplicates(CASE)


def write_class_scores(predicted: Sequence[Path], truth: Path, output: Path) -> pandas.DataFrame:
    """Score classes, write the table, and draw the reliability of the probabilities beside it (the same name, .png).

    Args:
        predicted: see `score_classes`.
        truth: table of the true classes.
        output: the CSV file to write.

    Returns:
        The scores.

    Raises:
        UserError: as `score_classes`.
    """
    scores, used = score_classes(predicted, truth)
    write_table(output, scores)
    names = {task.name: task.classes for task in read_predicted(predicted[0])[0]}
    draw_reliability({task: (names[task], *values) for task, values in used.items()}, output.with_suffix(".png"))
    return scores


def class_table(scores: pandas.DataFrame, title: str) -> Table:
    """Return the scores as a table for a terminal.

    Args:
        scores: see `score_task`.
        title: above it.
    """
    table = Table(title=title, caption="95 % bootstrap intervals over cases", title_justify="left")
    for column in ("task", "class", "metric", "value", "95 % interval", "cases"):
        table.add_column(column, justify="left" if column in ("task", "class", "metric") else "right")
    for row in scores.to_dict("records"):
        low, high = row["ci_low"], row["ci_high"]
        interval = "-" if low != low else f"{low:.3f} to {high:.3f}"
        value = "-" if row["value"] != row["value"] else f"{row['value']:.3f}"
        table.add_row(row["task"], row["class"], TITLES[row["metric"]], value, interval, str(row["cases"]))
    return table


def draw_reliability(tasks: Mapping[str, tuple[Sequence[str], np.ndarray, np.ndarray]], path: Path) -> None:
    """Draw how often a class is the true one over its probability, in ten bins, into a PNG; a panel for each task.

    Args:
        tasks: task -> its classes, the true classes (n,) and the probabilities (n, classes). With two classes the
            second one is drawn.
        path: the file to write, atomically.
    """
    figure = new_figure(4.0 * len(tasks), 4.2)
    for axes, (task, (names, truth, probabilities)) in zip(
        figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True
    ):
        axes.plot([0, 1], [0, 1], ":", color="tab:gray", linewidth=1)
        numbers = [1] if len(names) == 2 else range(len(names))
        for number, colour in zip(numbers, colours(len(numbers)) / 255, strict=True):
            x, y, size = reliability(probabilities[:, number], truth == number)
            axes.plot(x, y, "-", color=tuple(colour), label=mathtext(names[number]))
            axes.scatter(x, y, s=10 + 100 * size / size.sum(), color=tuple(colour))
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="probability", ylabel="share of cases of the class")
        axes.set_title(mathtext(task), fontsize=9)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle("dot: a bin of probabilities, larger with more cases\ndotted: perfect calibration", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def reliability(probability: np.ndarray, occurred: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean probability, share of occurrences and number of cases of each bin that has cases.

    Args:
        probability: of a class (n,).
        occurred: whether it is the true class (n,).

    >>> [part.tolist() for part in reliability(np.array([0.05, 0.95, 0.95]), np.array([False, True, False]))]
    [[0.05, 0.95], [0.0, 0.5], [1, 2]]
    """
    bins = np.clip(np.ceil(probability * BINS).astype(int) - 1, 0, BINS - 1)
    present = np.unique(bins)
    counts = np.array([(bins == number).sum() for number in present])
    means = [
        np.array([values[bins == number].mean() for number in present])
        for values in (probability, occurred.astype(float))
    ]
    return means[0], means[1], counts
