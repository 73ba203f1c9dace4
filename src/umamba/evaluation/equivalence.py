"""Equivalence of two methods: two one-sided t tests (Schuirmann, 1987), which can show that a difference is small."""

from scipy.special import stdtrit

from umamba.settings.commands import MARGIN

__all__ = ["LEVEL", "MARGIN", "equivalent_within"]
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
