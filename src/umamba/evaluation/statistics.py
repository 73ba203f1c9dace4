"""Statistics of scores: summaries of one method, intervals of means, and the correction for several tests.

Means and standard deviations are taken over cases, as in the paper's tables. Confidence intervals are bootstrapped.
Several tests at once are corrected by Holm's method. Methods are compared in `claims`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pandas
from scipy.stats import bootstrap

Key = TypeVar("Key")

MEAN = "mean"  # stands in the column "label" of the mean over the labels of each case; see `mean_label`
_RESAMPLES = 2000
_SEED = 0
_CONFIDENCE = 0.95
_BATCH = 4_000_000  # values that are resampled at a time
_ROUNDING = 1e-12


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


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of values (n,), corrected for bias and skewness (BCa).

    It is for differences, whose few large values make the percentile method too narrow. If all values are equal, both
    ends are that value; with fewer than two values they are NaN.

    Args:
        values: one value for each case.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) < _ROUNDING:
        return float(values.mean()), float(values.mean())
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH // len(values)),
        confidence_level=_CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


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
