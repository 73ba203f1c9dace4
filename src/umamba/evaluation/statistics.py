"""Statistics of scores: summaries of one method, and paired tests between methods.

Means and standard deviations are taken over cases, as in the paper's tables. Confidence intervals are bootstrapped.
Methods are compared by Wilcoxon's signed-rank test of paired cases with Holm's correction.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np
import pandas
from scipy.stats import wilcoxon

Key = TypeVar("Key")

MEAN = "mean"  # stands in the column "label" of the mean over the labels of each case; see `mean_label`
_RESAMPLES = 2000
_SEED = 0
_CONFIDENCE = 0.95
_FEWEST_PAIRS = 6  # with fewer pairs the p value of a signed-rank test cannot fall below 0.05


def mean_label(labels: Iterable[str]) -> str:
    """Return the name of the row of means over labels: "mean", or a longer one if a label has that name.

    Args:
        labels: names of the labels in the table.

    >>> mean_label(["liver"]), mean_label(["mean"])
    ('mean', 'mean of labels')
    """
    taken, name = set(labels), MEAN
    while name in taken:
        name += " of labels"
    return name


def with_case_means(scores: pandas.DataFrame, metrics: Sequence[str]) -> pandas.DataFrame:
    """Return the scores, extended by each case's mean over its labels if there are several labels.

    Args:
        scores: columns case, label and metrics.
        metrics: the metrics to keep.
    """
    kept = scores[["case", "label", *metrics]]
    if scores["label"].nunique() < 2:
        return kept
    means = (
        scores.groupby("case", sort=False)[list(metrics)].mean().reset_index().assign(label=mean_label(scores["label"]))
    )
    return pandas.concat([kept, means], ignore_index=True)[["case", "label", *metrics]]


def summarize(scores: pandas.DataFrame, metrics: Sequence[str]) -> pandas.DataFrame:
    """Return a table with one row for each label and metric: label, metric, cases, mean, sd, ci_low, ci_high.

    The standard deviation is that of a sample (n - 1). The 95 % confidence interval comes from 2000 bootstrap samples
    of cases (percentile method, seed 0). Cases without a score are left out. A single case has neither of the two.

    Args:
        scores: columns case, label and metrics.
        metrics: the metrics to summarise.
    """
    rows = []
    for label, group in with_case_means(scores, metrics).groupby("label", sort=False):
        for metric in metrics:
            values = group[metric].dropna().to_numpy(dtype=np.float64)
            low, high = bootstrap_interval(values)
            rows.append(
                {
                    "label": label,
                    "metric": metric,
                    "cases": len(values),
                    "mean": values.mean() if len(values) else np.nan,
                    "sd": values.std(ddof=1) if len(values) > 1 else np.nan,
                    "ci_low": low,
                    "ci_high": high,
                }
            )
    return pandas.DataFrame(rows)


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of values (n,); NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(_SEED).integers(0, len(values), (_RESAMPLES, len(values)))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(values[chosen].mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)


def compare_methods(scores: Mapping[str, pandas.DataFrame], metrics: Sequence[str]) -> pandas.DataFrame:
    """Compare every pair of methods for each label and metric.

    Args:
        scores: method -> table with the columns case, label and metrics.
        metrics: the metrics to compare.

    Returns:
        Columns label, metric, first, second, cases (number of cases that both methods have a score for), difference
        (mean of first - second), p_value and p_holm, which is corrected for the number of pairs of methods. With fewer
        than six cases there are no p values.
    """
    complete = {method: with_case_means(table, metrics) for method, table in scores.items()}
    labels = list(dict.fromkeys(label for table in complete.values() for label in table["label"]))
    rows = []
    for label in labels:
        for metric in metrics:
            values = {
                method: table[table["label"] == label].set_index("case")[metric].dropna()
                for method, table in complete.items()
            }
            found = {}
            for first, second in combinations(values, 2):
                paired = pandas.concat([values[first], values[second]], axis=1, join="inner")
                found[first, second] = (paired.iloc[:, 0] - paired.iloc[:, 1]).to_numpy()
            p_values = {pair: paired_p_value(differences) for pair, differences in found.items()}
            corrected = holm({pair: p for pair, p in p_values.items() if p is not None})
            rows += [
                {
                    "label": label,
                    "metric": metric,
                    "first": pair[0],
                    "second": pair[1],
                    "cases": len(differences),
                    "difference": differences.mean() if len(differences) else np.nan,
                    "p_value": p_values[pair],
                    "p_holm": corrected.get(pair),
                }
                for pair, differences in found.items()
            ]
    return pandas.DataFrame(rows)


def paired_p_value(differences: np.ndarray) -> float | None:
    """Return the p value of Wilcoxon's signed-rank test; None with fewer than six pairs, 1 if no pair differs."""
    if len(differences) < _FEWEST_PAIRS:
        return None
    return float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return p values corrected by Holm's method.

    The smallest of n values is multiplied by n, the next by n - 1, and so on. No corrected value is smaller than the
    one before it.

    >>> holm({"a": 0.01, "b": 0.04})
    {'a': 0.02, 'b': 0.04}
    """
    corrected: dict[Key, float] = {}
    largest = 0.0
    for rank, (key, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_value))
        corrected[key] = largest
    return corrected
