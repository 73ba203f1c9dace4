"""What scores of cases say about a method, and about the difference between methods.

Means and standard deviations over cases as in the paper's tables, bootstrap confidence intervals, and Wilcoxon's
signed-rank test of paired cases with Holm's correction.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np
import pandas
from scipy.stats import wilcoxon

Key = TypeVar("Key")

MEAN = "mean"  # stands for the label where the mean over the labels of each case is meant
_RESAMPLES = 2000
_SEED = 0
_CONFIDENCE = 0.95
_FEWEST_PAIRS = 6  # with fewer, no signed-rank test can fall below 0.05


def with_case_means(scores: pandas.DataFrame, metrics: Sequence[str]) -> pandas.DataFrame:
    """Return scores (columns case, label and metrics) and, if there are several labels, each case's mean over them."""
    kept = scores[["case", "label", *metrics]]
    if scores["label"].nunique() < 2:
        return kept
    means = scores.groupby("case", sort=False)[list(metrics)].mean().reset_index().assign(label=MEAN)
    return pandas.concat([kept, means], ignore_index=True)[["case", "label", *metrics]]


def summarize(scores: pandas.DataFrame, metrics: Sequence[str]) -> pandas.DataFrame:
    """Return rows label, metric, cases, mean, sd, ci_low, ci_high.

    The deviation is the sample's; the interval holds the mean of 95 % of 2000 bootstrap samples of cases (percentile
    method, seed 0). Cases without a score are left out; a single case has neither.
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
    """Return the 95 % confidence interval of the mean of values (n,) by the percentile bootstrap; NaN below two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(_SEED).integers(0, len(values), (_RESAMPLES, len(values)))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(values[chosen].mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)


def compare_methods(scores: Mapping[str, pandas.DataFrame], metrics: Sequence[str]) -> pandas.DataFrame:
    """Return every pair of methods for each label and metric.

    Columns label, metric, first, second, cases (that both have a score of), difference (mean of first - second),
    p_value and p_holm, which is corrected for the number of pairs of methods. None is made with fewer than six.
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
    """Return the p value of Wilcoxon's signed-rank test; None with fewer than six pairs, 1 if none differs."""
    if len(differences) < _FEWEST_PAIRS:
        return None
    return float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return p values corrected after Holm: the smallest times their number, the next times one less, never falling."""
    corrected: dict[Key, float] = {}
    largest = 0.0
    for rank, (key, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_value))
        corrected[key] = largest
    return corrected
