"""Equivalence of two methods: two one-sided t tests (Schuirmann, 1987), which can show that a difference is small."""

import math

from scipy.special import stdtr, stdtrit

from umamba.settings.commands import MARGIN

__all__ = ["LEVEL", "MARGIN", "equivalence_p_value", "equivalent_within"]
LEVEL = 0.05


def equivalent_within(difference: float, error: float, freedom: float) -> float:
    """Return the smallest margin within which the methods are shown to be equivalent at the level of 5 %.

    It is the end of the 90 % interval of the difference that is farther from 0: two one-sided tests at 5 % reject
    exactly for larger margins.

    Args:
        difference: mean difference.
        error: its standard error.
        freedom: degrees of freedom of the error.
    """
    return abs(difference) + (float(stdtrit(freedom, 1 - LEVEL)) * error if error > 0 else 0.0)


def equivalence_p_value(difference: float, error: float, freedom: float, margin: float) -> float:
    """Return the p value of two one-sided tests: the probability of such scores if the difference were the margin.

    Args:
        difference: mean difference.
        error: its standard error.
        freedom: degrees of freedom of the error.
        margin: the largest difference that does not matter; above 0.
    """
    inside = margin - abs(difference)
    if error == 0:
        return 0.0 if inside > 0 else 1.0
    return float(stdtr(freedom, -inside / error)) if not math.isnan(error) else math.nan
