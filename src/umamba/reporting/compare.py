"""Compare measured with published numbers: means, standard deviations, differences, spread over seeds, significance.

The mean and standard deviation of a label are over cases. Those of the average are over each case's mean over labels,
as in the paper. The cases of all seeds and folds count. The means of single seeds show how much trainings differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas

from umamba.evaluation.statistics import holm, paired_p_value
from umamba.reporting.results import AVERAGE, METRICS, Published, Results

REFERENCE = "unet"  # the method that all others are tested against
ALPHA = 0.05


@dataclass(frozen=True)
class Number:
    """One cell of a table.

    Attributes:
        dataset: the benchmark.
        method: the network.
        label: name of the label, or "average".
        metric: name of the score.
        mean: our mean over cases; NaN if nothing is measured.
        sd: our standard deviation over cases; NaN if there are fewer than two.
        cases: number of cases.
        seed_means: mean of each seed, in the order of the seeds.
        published: the paper's number; None if it has none.
        p_value: corrected p value of the paired test against the reference; NaN if there was no test.
        scored: whether any case of the method has a score of this metric.
        done: number of finished runs.
        planned: number of all runs.
        rules: sentence on the rules of the scores; empty if they are not recorded.
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
    rules: str = ""

    @property
    def difference(self) -> float:
        """Our mean minus the published one; NaN if one of them is missing."""
        return self.mean - self.published.mean if self.published is not None else math.nan

    @property
    def significant(self) -> bool:
        """Whether the method differs significantly from the reference."""
        return self.p_value < ALPHA


def numbers(results: Results) -> list[Number]:
    """Return every number of a study's tables, measured or missing, in the order dataset, metric, label, method.

    Args:
        results: the results of the study.
    """
    return [number for dataset in results.datasets for number in _of_dataset(results, dataset)]


def _of_dataset(results: Results, dataset: str) -> list[Number]:
    own = results.scores[results.scores["dataset"] == dataset]
    printed = [key for key in results.published if key[0] == dataset]
    metrics = [name for name in METRICS if name in set(own["metric"]) | {key[3] for key in printed}]
    labels = list(dict.fromkeys([*own["label"], *(key[2] for key in printed if key[2] != AVERAGE)]))
    found, rules = [], results.rules(dataset)
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
                        rules=rules,
                    )
                )
    return found


def _sample(own: pandas.DataFrame, method: str, label: str, metric: str) -> pandas.Series:
    """Return the scores of one cell by (seed, fold, case); for the average, the mean over labels of each case."""
    rows = own[(own["method"] == method) & (own["metric"] == metric)]
    if label != AVERAGE:
        rows = rows[rows["label"] == label]
    return rows.groupby(["seed", "fold", "case"], sort=True)["value"].mean()


def against_reference(samples: dict[str, pandas.Series]) -> dict[str, float]:
    """Test each method against the reference, with Holm's correction for the number of methods.

    The test is Wilcoxon's signed-rank test over the cases that both methods have scores of; the scores are means over
    seeds. Fewer than six cases are not tested because they cannot be significant.

    Args:
        samples: method -> scores by (seed, fold, case).

    Returns:
        Method -> corrected p value.
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
        p_value = paired_p_value(differences)
        if p_value is not None:
            raw[method] = p_value
    return holm(raw)


def best_two(row: Sequence[Number]) -> tuple[str | None, str | None]:
    """Return the methods with the best and second-best mean of a row.

    Args:
        row: the numbers of one label and metric.

    Returns:
        Two methods; None for a place that no method has alone, or if fewer than two methods are measured.
    """
    ranked = sorted((number for number in row if not math.isnan(number.mean)), key=lambda number: -number.mean)
    means = [*(number.mean for number in ranked), *(-math.inf,) * 2]
    if len(ranked) < 2 or means[0] == means[1]:
        return None, None
    return ranked[0].method, ranked[1].method if means[1] > means[2] else None


def spread_sentences(found: Sequence[Number]) -> list[str]:
    """Say how far the average of each method is below the best one, and whether the spread over seeds explains it.

    The spread of a method is the largest mean of its seeds minus the smallest. It is unknown for methods with one seed;
    these share a sentence.

    Args:
        found: the numbers of all tables.

    Returns:
        A sentence for each comparison.
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
            sentences.append(f"{where} {', '.join(unknown)}; with one seed, the spread over trainings is not known.")
    return sentences
