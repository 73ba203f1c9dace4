"""A score from signs of trouble, with an interval of known coverage: isotonic regression, split-conformal intervals.

The signs are weighed so that they explain the missing score (non-negative least squares); their sum is the index. The
expected score falls with the index, and the typical error rises with it (isotonic regression, by pool adjacent
violators). Both are fitted on one half of the cases. On the other half the errors are counted in typical errors, and
their quantile makes the interval (Lei et al., JASA 2018, with local widths). If a new case is exchangeable with those
of the second half, its score is in the interval with a probability of at least the coverage and, without ties, at most
1 / (n + 1) above it, for n cases in that half and whatever was fitted.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from umamba.settings.fields import key

# The smallest typical error of a score from 0 to 1. Below it, the reference itself is not that exact.
_LEAST_ERROR = 0.01


@dataclass(frozen=True)
class Curve:
    """A monotone line through points, level before the first and after the last.

    Attributes:
        x: ascending.
        y: its values.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def at(self, x: np.ndarray) -> np.ndarray:
        """Return the values at some places.

        Args:
            x: any shape.
        """
        return np.asarray(np.interp(x, self.x, self.y))

    def is_whole(self) -> bool:
        """Return whether there are as many values as places, and the places ascend."""
        return 0 < len(self.x) == len(self.y) and all(a < b for a, b in zip(self.x, self.x[1:], strict=False))


def isotonic_curve(x: np.ndarray, y: np.ndarray, increasing: bool) -> Curve:
    """Return the monotone line that is nearest to points, through the middle of each level stretch.

    Args:
        x: (n,) places; values at one place count as their mean.
        y: (n,) values.
        increasing: whether the values rise with the places, or fall.
    """
    from scipy.optimize import isotonic_regression

    places, group = np.unique(x, return_inverse=True)
    counts = np.bincount(group)
    fitted = isotonic_regression(np.bincount(group, weights=y) / counts, weights=counts, increasing=increasing)
    starts = fitted.blocks[:-1]
    weight = np.add.reduceat(counts, starts)
    middle = np.add.reduceat(places * counts, starts) / weight
    return Curve(tuple(map(float, middle)), tuple(map(float, fitted.x[starts])))


def conformal_quantile(errors: np.ndarray, coverage: float) -> float | None:
    """Return the error that a new one exceeds with a probability of at most 1 - coverage.

    Args:
        errors: (n,) errors of cases that were not fitted.
        coverage: above 0 and below 1.

    Returns:
        The ceil((n + 1) coverage)-th smallest; None: there are too few for this coverage.

    >>> conformal_quantile(np.arange(1.0, 20.0), 0.9), conformal_quantile(np.arange(8.0), 0.9)
    (18.0, None)
    """
    rank = math.ceil((len(errors) + 1) * coverage - 1e-9)
    return float(np.sort(errors)[rank - 1]) if 0 < rank <= len(errors) else None


def fewest_errors(coverage: float) -> int:
    """Return how many errors `conformal_quantile` needs for a coverage.

    Args:
        coverage: above 0 and below 1.

    >>> fewest_errors(0.9), fewest_errors(0.95)
    (9, 19)
    """
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def halves(groups: Sequence[str], seed: int = 0) -> np.ndarray:
    """Return which cases are fitted; the others make the interval. A group is in one half.

    Args:
        groups: of each case.
        seed: of the order of the groups.

    Returns:
        (n,) booleans, about half of them true.
    """
    sizes = Counter(groups)
    names = sorted(sizes)
    chosen: set[str] = set()
    taken = 0
    for number in np.random.default_rng(seed).permutation(len(names)):
        size = sizes[names[number]]
        if taken + size / 2 <= len(groups) / 2:
            chosen.add(names[number])
            taken += size
    return np.array([group in chosen for group in groups], dtype=bool)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a score follows from signs.

    Attributes:
        metric: name of the score, dsc or nsd.
        weights: score that is lost for one unit of each sign.
        expected: index -> score.
        error: index -> typical error of the score.
        quantile: half the width of the interval, in typical errors.
        largest: largest index of all cases that were seen; beyond it nothing is known.
        fitted: number of cases of the first half.
        held_out: number of cases of the second half.
    """

    metric: str
    weights: tuple[float, ...] = key(low=0)
    expected: Curve
    error: Curve
    quantile: float = key(low=0)
    largest: float
    fitted: int = key(low=1)
    held_out: int = key(low=1)

    def index(self, signs: np.ndarray) -> np.ndarray:
        """Return the index of cases.

        Args:
            signs: (n, number of signs).
        """
        return np.asarray(signs @ np.array(self.weights))

    def interval(self, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the expected score and the ends of its interval.

        Args:
            signs: (n, number of signs).

        Returns:
            Three arrays (n,), from 0 to 1.
        """
        index = self.index(signs)
        expected = self.expected.at(index)
        half = self.quantile * self.error.at(index)
        return expected, np.clip(expected - half, 0, 1), np.clip(expected + half, 0, 1)

    def beyond(self, signs: np.ndarray) -> np.ndarray:
        """Return which cases have more trouble than any that was seen.

        Args:
            signs: (n, number of signs).
        """
        return self.index(signs) > self.largest + 1e-9 * max(1.0, abs(self.largest))


def fit_scores(
    metric: str, signs: np.ndarray, scores: np.ndarray, groups: Sequence[str], coverage: float, seed: int = 0
) -> Fit | None:
    """Fit how a score follows from signs.

    Args:
        metric: name of the score.
        signs: (n, number of signs), each larger where a segmentation is worse; finite.
        scores: (n,) from 0 to 1.
        groups: group of each case, such as its patient or the case itself; a group is never in both halves.
        coverage: of the interval.
        seed: of the halves.

    Returns:
        The fit; None: there are too few cases for this coverage.
    """
    first = halves(groups, seed)
    if first.sum() < 2:
        return None
    weights = _weights(signs[first], scores[first])
    index = signs @ weights
    expected = isotonic_curve(index[first], scores[first], increasing=False)
    errors = np.abs(scores - expected.at(index))
    rising = isotonic_curve(index[first], errors[first], increasing=True)
    least = max(_LEAST_ERROR, float(errors[first].mean()) / 2)
    error = Curve(rising.x, tuple(max(value, least) for value in rising.y))
    quantile = conformal_quantile(errors[~first] / error.at(index[~first]), coverage)
    if quantile is None:
        return None
    return Fit(
        metric=metric,
        weights=tuple(map(float, weights)),
        expected=expected,
        error=error,
        quantile=quantile,
        largest=float(index.max()),
        fitted=int(first.sum()),
        held_out=int((~first).sum()),
    )


def _weights(signs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the weights, none below 0, by which the signs explain 1 - score best; the first sign if none does."""
    from scipy.optimize import nnls

    weights, _ = nnls(signs - signs.mean(axis=0), scores.mean() - scores)
    if weights.any():
        return np.asarray(weights)
    return np.eye(signs.shape[1])[0]
