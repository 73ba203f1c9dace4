"""Ours beside the published numbers: means, deviations, differences, spread over seeds, and significance.

The mean and standard deviation of a label go over cases; those of the average go over the means of the cases, as in the
paper. With several seeds or folds, all their cases count, and the means of single seeds show how far trainings differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas
from scipy.stats import wilcoxon

from umamba.reporting.results import AVERAGE, METRICS, Published, Results

REFERENCE = "unet"  # each method is tested against it
ALPHA = 0.05
_FEWEST_PAIRS = 6  # with fewer, no signed-rank test can fall below 0.05


@dataclass(frozen=True)
class Number:
    """One cell of a table.

    Attributes:
        dataset, method, label, metric: what is measured; the label is a name or "average".
        mean, sd: ours over cases, NaN where nothing is measured; the deviation is NaN for a single case.
        cases: how many cases.
        seed_means: mean of each seed, in the order of the seeds.
        published: the paper's number.
        p_value: of the paired test against the reference, corrected; NaN where it was not made.
        scored: whether the method's cases have scores of this metric at all.
        done, planned: runs that are finished, and all of them.
    """

    dataset: str
    method: str
    label: str
    metric: str
    mean: float
    sd: float
    cases: int
    seed_means: tuple[float, ...]
    published: Published | None
    p_value: float
    scored: bool
    done: int
    planned: int

    @property
    def difference(self) -> float:
        """Ours minus published, NaN without one of them."""
        return self.mean - self.published.mean if self.published is not None else math.nan

    @property
    def significant(self) -> bool:
        """Whether the test against the reference was passed."""
        return self.p_value < ALPHA


def numbers(results: Results) -> list[Number]:
    """Return every number of a study's tables, measured or missing, in the order dataset, metric, label, method."""
    return [number for dataset in results.datasets for number in _of_dataset(results, dataset)]


def _of_dataset(results: Results, dataset: str) -> list[Number]:
    own = results.scores[results.scores["dataset"] == dataset]
    printed = [key for key in results.published if key[0] == dataset]
    metrics = [name for name in METRICS if name in set(own["metric"]) | {key[3] for key in printed}]
    labels = list(dict.fromkeys([*own["label"], *(key[2] for key in printed if key[2] != AVERAGE)]))
    found = []
    for metric in metrics:
        for label in (*labels, AVERAGE):
            samples = {method: _sample(own, method, label, metric) for method in results.methods(dataset)}
            if label != AVERAGE and not any(
                len(samples[method]) or (dataset, method, label, metric) in results.published for method in samples
            ):
                continue
            p_values = against_reference(samples)
            for method, sample in samples.items():
                runs = results.runs(dataset, method)
                found.append(
                    Number(
                        *(dataset, method, label, metric),
                        mean=float(sample.mean()) if len(sample) else math.nan,
                        sd=float(sample.std()) if len(sample) > 1 else math.nan,
                        cases=sample.index.get_level_values("case").nunique(),
                        seed_means=tuple(sample.groupby(level="seed").mean()),
                        published=results.published.get((dataset, method, label, metric)),
                        p_value=p_values.get(method, math.nan),
                        scored=bool(((own["method"] == method) & (own["metric"] == metric)).any()),
                        done=sum(state.state == "done" for state in runs),
                        planned=len(runs),
                    )
                )
    return found


def _sample(own: pandas.DataFrame, method: str, label: str, metric: str) -> pandas.Series:
    """Return the values of a cell by (seed, fold, case); for the average, the mean over labels of each case."""
    rows = own[(own["method"] == method) & (own["metric"] == metric)]
    if label != AVERAGE:
        rows = rows[rows["label"] == label]
    return rows.groupby(["seed", "fold", "case"], sort=True)["value"].mean()


def against_reference(samples: dict[str, pandas.Series]) -> dict[str, float]:
    """Return the p value of each method against the reference, corrected for their number after Holm.

    The test is Wilcoxon's signed-rank test of the cases that both have scores of, means over seeds. None is made with
    fewer than six cases, where it could not be significant.
    """
    if REFERENCE not in samples or not len(samples[REFERENCE]):
        return {}
    reference = samples[REFERENCE].groupby(level="case").mean()
    raw = {}
    for method, sample in samples.items():
        if method == REFERENCE or not len(sample):
            continue
        paired = pandas.concat([sample.groupby(level="case").mean(), reference], axis=1, join="inner")
        differences = (paired.iloc[:, 0] - paired.iloc[:, 1]).to_numpy()
        if len(differences) >= _FEWEST_PAIRS:
            raw[method] = float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0
    return holm(raw)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Return p values corrected after Holm: the smallest times their number, the next times one less, never falling."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, (method, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_value))
        corrected[method] = largest
    return corrected


def best_two(row: Sequence[Number]) -> tuple[str | None, str | None]:
    """Return the methods with the best and second-best mean of a row; None where it is alone, or not above the next."""
    ranked = sorted((number for number in row if not math.isnan(number.mean)), key=lambda number: -number.mean)
    means = [*(number.mean for number in ranked), *(-math.inf,) * 2]
    if len(ranked) < 2 or means[0] == means[1]:
        return None, None
    return ranked[0].method, ranked[1].method if means[1] > means[2] else None


def spread_sentences(found: Sequence[Number]) -> list[str]:
    """Return for each average how far it is below the best method's, and whether that is within the spread over seeds.

    The spread of a method is the distance of its seeds' largest mean from the smallest. Methods trained with one seed,
    whose spread is not known, share a sentence.
    """
    sentences = []
    rows: dict[tuple[str, str], list[Number]] = {}
    for number in found:
        if number.label == AVERAGE and not math.isnan(number.mean):
            rows.setdefault((number.dataset, number.metric), []).append(number)
    for (dataset, metric), row in rows.items():
        if len(row) < 2:
            continue
        best = max(row, key=lambda number: number.mean)
        where = f"{dataset}, {metric.upper()}: {best.method} is"
        unknown = []
        for number in row:
            if number is best:
                continue
            above = f"{best.mean - number.mean:.4f} above {number.method}"
            if len(best.seed_means) < 2 or len(number.seed_means) < 2:
                unknown.append(above)
                continue
            spread = max(max(entry.seed_means) - min(entry.seed_means) for entry in (best, number))
            within = "within" if best.mean - number.mean <= spread else "beyond"
            sentences.append(f"{where} {above}, which is {within} the spread over seeds ({spread:.4f}).")
        if unknown:
            sentences.append(
                f"{where} {', '.join(unknown)}; with one seed, how far trainings of one method differ is not known."
            )
    return sentences
