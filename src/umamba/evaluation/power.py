"""What a comparison of two methods can show: the smallest detectable difference, and the cases and trainings it needs.

The test is that of `claims` (two-sided t test with the error of `spread`), so that plan and verdict agree.
"""

import math
from collections.abc import Callable

from scipy.special import nctdtr, nctdtrinc, stdtrit

from umamba.evaluation.spread import Spreads, error_of

ALPHA = 0.05
POWER = 0.8
_MOST_CASES = 100_000
_MOST_TRAININGS = 1000


def detectable(error: float, freedom: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the difference that a two-sided t test detects with the wanted probability.

    Args:
        error: standard error of the difference.
        freedom: its degrees of freedom.
        alpha: level of the test.
        power: probability of detecting the difference.
    """
    if error == 0:
        return 0.0
    return float(nctdtrinc(freedom, 1 - power, stdtrit(freedom, 1 - alpha / 2))) * error


def power_of(difference: float, error: float, freedom: float, alpha: float = ALPHA) -> float:
    """Return the probability that a two-sided t test detects a difference, in its right direction.

    Args:
        difference: the true difference.
        error: standard error of the measured one.
        freedom: its degrees of freedom.
        alpha: level of the test.
    """
    if error == 0:
        return 1.0 if difference else 0.0
    return 1 - float(nctdtr(freedom, abs(difference) / error, stdtrit(freedom, 1 - alpha / 2)))


def expected_error(spreads: Spreads, cases: int, trainings: int) -> tuple[float, float]:
    """Return the standard error of a difference that a study will have, and its degrees of freedom.

    Args:
        spreads: standard deviations; a NaN counts as 0.
        cases: number of test cases, at least two.
        trainings: number of trainings of each method, at least two.
    """
    rest = _square(spreads.residual)
    over_cases = _square(spreads.difference) + 2 * rest / trainings
    over_trainings = _square(spreads.training) + rest / cases
    return error_of(over_cases, over_trainings, rest, cases, trainings, trainings)


def detectable_difference(
    spreads: Spreads, cases: int, trainings: int, alpha: float = ALPHA, power: float = POWER
) -> float:
    """Return the difference between two methods that a study detects with the wanted probability.

    It is infinite for one training of each method, because that shows nothing of the methods, or for one case.

    Args:
        spreads: standard deviations.
        cases: number of test cases.
        trainings: number of trainings of each method.
        alpha: level of the test; divide it by the number of comparisons for Holm's first step.
        power: probability of detecting the difference.
    """
    if cases < 2 or trainings < 2:
        return math.inf
    return detectable(*expected_error(spreads, cases, trainings), alpha, power)


def cases_needed(
    spreads: Spreads, trainings: int, difference: float, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Return the smallest number of test cases that shows a difference; None if no number (to 100,000) does.

    Args:
        spreads: standard deviations.
        trainings: number of trainings of each method.
        difference: the difference to be detected.
        alpha: level of the test.
        power: probability of detecting the difference.
    """
    return _first(lambda cases: detectable_difference(spreads, cases, trainings, alpha, power), difference, _MOST_CASES)


def trainings_needed(
    spreads: Spreads, cases: int, difference: float, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Return the smallest number of trainings of each method that shows a difference; None if no number (to 1000) does.

    Args:
        spreads: standard deviations.
        cases: number of test cases.
        difference: the difference to be detected.
        alpha: level of the test.
        power: probability of detecting the difference.
    """
    return _first(
        lambda trainings: detectable_difference(spreads, cases, trainings, alpha, power), difference, _MOST_TRAININGS
    )


def _first(smallest: Callable[[int], float], difference: float, most: int) -> int | None:
    """Return the first number from 2 to most whose smallest detectable difference is not above a difference.

    It is sought in steps of 5 % and then one by one. A larger number need not be enough again, because with few
    trainings more cases can leave fewer degrees of freedom.
    """
    before, number = 1, 2
    while not smallest(number) <= difference:  # NaN is not enough, too
        if number == most:
            return None
        before, number = number, min(most, max(number + 1, number * 21 // 20))
    return next(fewer for fewer in range(before + 1, number + 1) if smallest(fewer) <= difference)


def _square(value: float) -> float:
    return 0.0 if math.isnan(value) else value**2
