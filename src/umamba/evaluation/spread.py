"""Spread of scores over cases and over trainings, and the standard error of a difference between two methods.

The model of a score is: method + case + case by method + training (nested in its method) + rest. Cases and trainings
are random, because a claim about methods is about other cases and other trainings, too. With as many cases for every
training the variance components follow from mean squares (analysis of variance). The standard error and its degrees of
freedom are those of the quasi-F ratio of this design (Clark, 1973, Journal of Verbal Learning and Verbal Behavior 12)
with Satterthwaite's approximation.
"""

import math
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-12  # scores are at most 1 in size or a few hundred mm; a smaller spread is rounding


@dataclass(frozen=True)
class Spreads:
    """Standard deviations that make up the noise of a difference between two methods.

    Attributes:
        difference: of the true difference between the methods over cases.
        training: of a method's mean over trainings, apart from cases; NaN if each method has one training.
        residual: of what is neither of the case nor of the training; NaN if each method has one training, because
            `difference` then contains it.
    """

    difference: float
    training: float = math.nan
    residual: float = math.nan


@dataclass(frozen=True)
class Uncertainty:
    """How well the difference between two methods is known.

    Attributes:
        error: standard error of the difference.
        freedom: its degrees of freedom.
        spreads: the standard deviations behind it.
    """

    error: float
    freedom: float
    spreads: Spreads


def uncertainty(a: np.ndarray, b: np.ndarray) -> Uncertainty:
    """Return the standard error of mean(a) - mean(b) over cases and trainings.

    With one training of each method it is the error of the paired t test, standard deviation of the differences /
    sqrt(cases), which does not include the spread over trainings. If one method has several trainings, the other is
    taken to spread as much.

    Args:
        a: scores (trainings, cases) without NaN, at least two cases.
        b: scores (trainings, cases) of the same cases.
    """
    cases = a.shape[1]
    both = a.shape[0] + b.shape[0] - 2
    share = 1 / a.shape[0] + 1 / b.shape[0]
    over_cases = _not_rounding(np.var(a.mean(axis=0) - b.mean(axis=0), ddof=1))
    if both == 0:
        return Uncertainty(math.sqrt(over_cases / cases), cases - 1, Spreads(math.sqrt(over_cases)))
    over_trainings = _not_rounding(sum(_squares(part.mean(axis=1)) for part in (a, b)) / both)
    rest = _not_rounding(sum(_squares(_interaction(part)) for part in (a, b)) / (both * (cases - 1)))
    spreads = Spreads(
        math.sqrt(max(0.0, over_cases - share * rest)),
        math.sqrt(max(0.0, over_trainings - rest / cases)),
        math.sqrt(rest),
    )
    return Uncertainty(*error_of(over_cases, over_trainings, rest, cases, a.shape[0], b.shape[0]), spreads)


def error_of(
    over_cases: float, over_trainings: float, rest: float, cases: int, trainings_a: int, trainings_b: int
) -> tuple[float, float]:
    """Return the standard error of a difference and its degrees of freedom from mean squares.

    The rest is part of both other mean squares and is subtracted once; the error is never below that of either alone.

    Args:
        over_cases: variance over cases of the difference between the methods' means over trainings.
        over_trainings: variance over trainings of the means over cases, pooled over the methods.
        rest: mean square of the interaction of trainings and cases.
        cases: number of cases.
        trainings_a: number of trainings of one method.
        trainings_b: number of trainings of the other; together at least three.
    """
    both = trainings_a + trainings_b - 2
    share = 1 / trainings_a + 1 / trainings_b
    parts = (over_cases / cases, share * over_trainings, share * rest / cases)
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    if variance == 0:
        return 0.0, float(both)
    freedom = variance**2 / (parts[0] ** 2 / (cases - 1) + parts[1] ** 2 / both + parts[2] ** 2 / (both * (cases - 1)))
    return math.sqrt(variance), min(freedom, float(cases - 1 + both))


def suitability(means: list[list[float]]) -> float:
    """Return how well a dataset separates methods: spread between methods over spread within a method.

    It is the standard deviation of the methods' means over the pooled standard deviation of the means of a method's
    trainings. Near 1 or below, the order of methods is mostly the luck of a training. NaN with fewer than two methods
    or no method with two trainings; infinite if trainings do not differ.

    Args:
        means: for each method the mean score of each training.

    >>> round(suitability([[0.80, 0.82], [0.84, 0.86]]), 3)
    2.0
    """
    kept = [np.asarray(entry, dtype=np.float64) for entry in means if len(entry)]
    repeats = sum(len(entry) - 1 for entry in kept)
    if len(kept) < 2 or repeats == 0:
        return math.nan
    within = math.sqrt(_not_rounding(sum(_squares(entry) for entry in kept) / repeats))
    between = float(np.std([entry.mean() for entry in kept], ddof=1))
    return between / within if within > 0 else math.inf


def _interaction(part: np.ndarray) -> np.ndarray:
    """Return what is left of scores (trainings, cases) without the means of trainings and of cases."""
    return part - part.mean(axis=0, keepdims=True) - part.mean(axis=1, keepdims=True) + part.mean()


def _squares(values: np.ndarray) -> float:
    return float(np.sum((values - values.mean()) ** 2))


def _not_rounding(variance: float) -> float:
    return float(variance) if variance > _ROUNDING**2 else 0.0
