"""What a study can see: against statsmodels, by hand, and needed numbers that are the smallest ones."""

import math

import pytest
from scipy import stats

from umamba.evaluation.power import (
    cases_needed,
    detectable,
    detectable_difference,
    expected_error,
    power_of,
    trainings_needed,
)
from umamba.evaluation.spread import Spreads

SPREADS = Spreads(0.02, 0.005, 0.02)


def test_the_power_of_a_paired_test_is_that_of_statsmodels() -> None:
    power = pytest.importorskip("statsmodels.stats.power").TTestPower()
    for cases, effect, alpha in ((10, 0.9, 0.05), (25, 0.5, 0.05), (50, 0.5, 0.01)):
        error = 1 / math.sqrt(cases)
        expected = power.power(effect, cases, alpha, alternative="two-sided")
        assert power_of(effect, error, cases - 1, alpha) == pytest.approx(expected, abs=1e-3)  # one tail of it
        solved = power.solve_power(nobs=cases, alpha=alpha, power=0.8)
        assert detectable(error, cases - 1, alpha) == pytest.approx(solved, rel=1e-3)


def test_the_power_is_the_tail_of_a_noncentral_t() -> None:
    for freedom in (3.2, 19.0, 400.0):
        limit = stats.t.ppf(0.975, freedom)
        assert power_of(0.02, 0.01, freedom) == pytest.approx(stats.nct.sf(limit, freedom, 2.0))
        assert power_of(detectable(0.01, freedom), 0.01, freedom) == pytest.approx(0.8, abs=1e-5)
    assert power_of(-0.02, 0.01, 19) == power_of(0.02, 0.01, 19)
    assert (power_of(0.1, 0, 5), power_of(0, 0, 5), detectable(0, 5)) == (1, 0, 0)


def test_the_expected_error_by_hand() -> None:
    # Over cases (0.02^2 + 2 0.02^2 / 3) / 20, over trainings 2 / 3 (0.005^2 + 0.02^2 / 20), less 2 / 3 0.02^2 / 20.
    cases, trainings, rest = (0.0004 + 0.0008 / 3) / 20, (2 / 3) * (0.000025 + 0.00002), (2 / 3) * 0.00002
    error, freedom = expected_error(SPREADS, 20, 3)
    assert error**2 == pytest.approx(cases + trainings - rest)
    assert freedom == pytest.approx((cases + trainings - rest) ** 2 / (cases**2 / 19 + trainings**2 / 4 + rest**2 / 76))
    assert expected_error(Spreads(0.02, math.nan, math.nan), 20, 2) == pytest.approx((0.02 / math.sqrt(20), 19))


def test_more_cases_and_trainings_see_less() -> None:
    by_cases = [detectable_difference(SPREADS, cases, 3) for cases in (5, 10, 20, 50, 100)]
    by_trainings = [detectable_difference(SPREADS, 20, trainings) for trainings in (2, 3, 5, 10, 100)]
    assert by_cases == sorted(by_cases, reverse=True)
    assert by_trainings == sorted(by_trainings, reverse=True)
    assert detectable_difference(SPREADS, 20, 3, alpha=0.01) > detectable_difference(SPREADS, 20, 3)
    assert detectable_difference(SPREADS, 20, 1) == detectable_difference(SPREADS, 1, 3) == math.inf


@pytest.mark.parametrize("difference", [0.012, 0.02, 0.05])
def test_the_needed_numbers_are_the_smallest(difference: float) -> None:
    cases = cases_needed(SPREADS, 5, difference)
    trainings = trainings_needed(SPREADS, 60, difference)
    assert cases is not None
    assert trainings is not None
    assert detectable_difference(SPREADS, cases, 5) <= difference
    assert detectable_difference(SPREADS, cases - 1, 5) > difference
    assert detectable_difference(SPREADS, 60, trainings) <= difference
    assert detectable_difference(SPREADS, 60, trainings - 1) > difference


def test_more_cases_may_see_less_and_the_smallest_number_is_found_all_the_same() -> None:
    spreads, alpha = Spreads(0.05, 0.005, 0.0), 0.05 / 30
    few, many = (detectable_difference(spreads, cases, 2, alpha) for cases in (100, 200))
    assert few < many, "two trainings have two degrees of freedom, and they decide where there are many cases"
    needed = cases_needed(spreads, 2, 0.042, alpha)
    assert needed == next(n for n in range(2, 200) if detectable_difference(spreads, n, 2, alpha) <= 0.042)


def test_no_number_may_be_enough() -> None:
    assert cases_needed(Spreads(0.0, 0.02, 0.0), 3, 0.01) is None, "trainings spread too much"
    assert trainings_needed(Spreads(0.1, 0.0, 0.0), 10, 0.01) is None, "cases differ too much"
