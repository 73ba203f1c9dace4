"""Compare measured with published numbers and methods with each other: means, deviations, and which claims survive.

The mean and standard deviation of a label are over all cases and trainings together. Those of the average are over
each case's mean over labels, as in the paper. The cases of all seeds and folds count. The means of single seeds show
how much trainings differ.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas

from umamba.evaluation.claims import Claim, compare, judged
from umamba.evaluation.equivalence import MARGIN
from umamba.evaluation.spread import Spreads, suitability
from umamba.reporting.names import dataset_name, metric_name
from umamba.reporting.results import AVERAGE, METRICS, TEST, Published, Results

__all__ = [
    "REFERENCE",
    "Claim",
    "Number",
    "claims_of",
    "measured_spreads",
    "numbers",
    "remarks_on_claims",
    "suitability_of",
]
REFERENCE = "unet"  # a star marks methods that differ from this one


@dataclass(frozen=True)
class Number:
    """One cell of a table.

    Attributes:
        dataset: the benchmark.
        method: the network.
        label: name of the label, or "average".
        metric: name of the score.
        mean: our mean over cases and trainings; NaN if nothing is measured.
        sd: our standard deviation over cases and trainings; NaN if there are fewer than two.
        cases: number of cases.
        seed_means: mean of each seed, in the order of the seeds.
        published: the paper's number; None if it has none.
        p_value: corrected p value of the paired test against the reference; NaN if there was no test.
        significant: whether the difference from the reference is shown.
        best: whether the method is shown to be better than every other one.
        scored: whether any case of the method has a score of this metric.
        done: number of finished runs.
        planned: number of all runs.
        rules: sentence on the rules of the scores; empty if they are not recorded.
        images: which images were scored.
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
    images: str = TEST
    significant: bool = False
    best: bool = False

    @property
    def difference(self) -> float:
        """Our mean minus the published one; NaN if one of them is missing."""
        return self.mean - self.published.mean if self.published is not None else math.nan


def numbers(results: Results, claims: Sequence[Claim] | None = None) -> list[Number]:
    """Return every number of a study's tables, measured or missing, in the order dataset, metric, label, method.

    Args:
        results: the results of the study.
        claims: the comparisons of its methods; None: those of `claims_of`.
    """
    known = claims_of(results) if claims is None else claims
    return [number for dataset in results.datasets for number in _of_dataset(results, dataset, known)]


def claims_of(results: Results, margin: float = MARGIN) -> list[Claim]:
    """Compare the measured methods of a study in pairs, all or those it names, for each dataset, label and metric.

    A family of Holm's correction is what one table of the report compares: the averages of a dataset by all metrics, or
    all labels of a dataset by one metric. A training is a seed of a fold.

    Args:
        results: the results of the study.
        margin: the largest difference that does not matter.

    Returns:
        The claims in the order dataset, averages before labels, metric, label, pair.
    """
    found: list[Claim] = []
    for dataset in results.datasets:
        own = results.scores[results.scores["dataset"] == dataset]
        metrics = [name for name in METRICS if name in set(own["metric"])]
        labels = list(dict.fromkeys(own["label"]))
        methods = results.methods(dataset)
        families = [[(AVERAGE, metric) for metric in metrics], *([(la, metric) for la in labels] for metric in metrics)]
        for family in families:
            compared = []
            for label, metric in family:
                scores = by_method(own, methods, label, metric)
                compared += compare(scores, metric, margin, dataset, label, results.comparisons)
            found += judged(compared)
    return found


def suitability_of(results: Results, dataset: str, metric: str) -> float:
    """Return how well a dataset separates the methods, see `umamba.evaluation.spread.suitability`.

    Args:
        results: the results of the study.
        dataset: the benchmark.
        metric: name of the score.
    """
    own = results.scores[results.scores["dataset"] == dataset]
    samples = [_sample(own, method, AVERAGE, metric) for method in results.methods(dataset)]
    return suitability([list(sample.groupby(level=["seed", "fold"]).mean()) for sample in samples])


def remarks_on_claims(results: Results, dataset: str) -> list[str]:
    """Return which pairs are compared, unless all are; and, where seeds show it, how well a dataset separates methods.

    Args:
        results: the results of the study.
        dataset: the benchmark.
    """
    methods = results.methods(dataset)
    named = sum(set(pair) <= set(methods) for pair in results.comparisons)
    chosen = (
        f"{dataset_name(dataset)}: the study names {named} of the {len(methods) * (len(methods) - 1) // 2} pairs of "
        "methods; only these are compared."
    )
    ratios = {metric: suitability_of(results, dataset, metric) for metric in METRICS}
    return [chosen] * bool(results.comparisons) + [
        f"{dataset_name(dataset)}, {metric_name(metric)}: the methods' means spread {ratio:.1f} times as much as the "
        "trainings of a method (standard deviations). Near 1 the order of the methods is chance."
        for metric, ratio in ratios.items()
        if math.isfinite(ratio)
    ]


def measured_spreads(results: Results, dataset: str) -> dict[str, tuple[Spreads, int]]:
    """Return for each metric the spreads of a dataset's averages, and the number of cases they were measured in.

    Variances are averaged over the pairs of methods that have two trainings each at least.

    Args:
        results: the results of a study.
        dataset: the benchmark.

    Returns:
        Metric -> spreads and cases; empty if no pair shows them.
    """
    own = results.scores[results.scores["dataset"] == dataset]
    found = {}
    for metric in METRICS:
        compared = compare(by_method(own, results.methods(dataset), AVERAGE, metric), metric, math.nan)
        pairs = [claim for claim in compared if min(claim.seeds) > 1 and claim.n_cases > 1]
        if pairs:
            mean = [
                math.sqrt(sum(value**2 for value in column) / len(pairs))
                for column in zip(*(dataclasses.astuple(claim.spreads) for claim in pairs), strict=True)
            ]
            found[metric] = (Spreads(*mean), min(claim.n_cases for claim in pairs))
    return found


def _of_dataset(results: Results, dataset: str, claims: Sequence[Claim]) -> list[Number]:
    own = results.scores[results.scores["dataset"] == dataset]
    printed = [key for key in results.published if key[0] == dataset]
    metrics = [name for name in METRICS if name in set(own["metric"]) | {key[3] for key in printed}]
    labels = list(dict.fromkeys([*own["label"], *(key[2] for key in printed if key[2] != AVERAGE)]))
    found, rules, absent = [], results.rules(dataset), results.absent(dataset)
    for metric in metrics:
        for label in (*labels, AVERAGE):
            samples = {method: _sample(own, method, label, metric) for method in results.methods(dataset)}
            if label != AVERAGE and not any(
                len(samples[method]) or (dataset, method, label, metric) in results.published for method in samples
            ):
                continue
            row = [claim for claim in claims if (claim.dataset, claim.label, claim.metric) == (dataset, label, metric)]
            measured = {method for method, sample in samples.items() if len(sample)}
            for method, sample in samples.items():
                runs = results.runs(dataset, method)
                against = next((claim for claim in row if {claim.a, claim.b} == {method, REFERENCE}), None)
                found.append(
                    Number(
                        *(dataset, method, label, metric),
                        mean=float(sample.mean()) if len(sample) else math.nan,
                        sd=float(sample.std()) if len(sample) > 1 else math.nan,
                        cases=sample.index.get_level_values("case").nunique(),
                        seed_means=tuple(sample.groupby(level="seed").mean()),
                        published=results.published.get((dataset, method, label, metric)),
                        p_value=against.p_holm if against else math.nan,
                        scored=bool(((own["method"] == method) & (own["metric"] == metric)).any()),
                        done=sum(state.state == "done" for state in runs),
                        planned=len(runs),
                        rules=rules,
                        images=results.images,
                        significant=against is not None and against.survives and label not in absent,
                        best=_is_best(method, row, measured - {method}) and label not in absent,
                    )
                )
    return found


def _is_best(method: str, row: Sequence[Claim], others: set[str]) -> bool:
    """Return whether a method was compared with every other one of a row, and is shown to be better."""
    beaten = {claim.a if claim.b == method else claim.b for claim in row if claim.survives and claim.better == method}
    return bool(others) and beaten == others


def by_method(own: pandas.DataFrame, methods: Sequence[str], label: str, metric: str) -> dict[str, pandas.DataFrame]:
    """Return the scores of each method that has any.

    Args:
        own: the scores of a dataset, as in `Results.scores`.
        methods: the methods.
        label: name of the label, or "average".
        metric: name of the score.

    Returns:
        Method -> table with a row for each training and a column for each case.
    """
    samples = {method: _sample(own, method, label, metric) for method in methods}
    return {method: sample.unstack("case") for method, sample in samples.items() if len(sample)}


def _sample(own: pandas.DataFrame, method: str, label: str, metric: str) -> pandas.Series:
    """Return the scores of one cell by (seed, fold, case); for the average, the mean over labels of each case."""
    rows = own[(own["method"] == method) & (own["metric"] == metric)]
    if label != AVERAGE:
        rows = rows[rows["label"] == label]
    return rows.groupby(["seed", "fold", "case"], sort=True)["value"].mean()
