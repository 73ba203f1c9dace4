"""Expected scores and their intervals: isotonic regression by another formula, coverage by simulation and by theory."""

import math

import numpy as np
import pytest
from scipy.stats import beta

from umamba.evaluation.conformal import (
    Curve,
    Fit,
    conformal_quantile,
    fewest_errors,
    fit_scores,
    halves,
    isotonic_curve,
)


def by_minima_and_maxima(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Return the rising isotonic regression at each place by its max-min formula (Barlow et al., 1972)."""
    places = np.unique(x)
    found = []
    for number in range(len(places)):
        found.append(
            max(
                min(
                    float(np.mean(y[(x >= places[first]) & (x <= places[last])])) for last in range(number, len(places))
                )
                for first in range(number + 1)
            )
        )
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_is_the_isotonic_regression(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 9, 25).astype(float)
    y = x + generator.normal(0, 4, 25)
    curve = isotonic_curve(x, y, increasing=True)
    expected = by_minima_and_maxima(x, y)
    assert list(curve.y) == pytest.approx(list(dict.fromkeys(round(value, 9) for value in expected)))
    assert curve.is_whole()
    for level, middle in zip(curve.y, curve.x, strict=True):  # through the middle of each level stretch
        own = [place for place, value in zip(np.unique(x), expected, strict=True) if value == pytest.approx(level)]
        assert middle == pytest.approx(np.mean([each for each in x if each in own]))
    falling = isotonic_curve(-x, y, increasing=False)
    assert falling.y == pytest.approx(curve.y[::-1])


def test_a_curve_is_level_beyond_its_ends() -> None:
    curve = Curve((1.0, 2.0), (0.8, 0.4))
    assert curve.at(np.array([0.0, 1.0, 1.5, 2.0, 9.0])).tolist() == pytest.approx([0.8, 0.8, 0.6, 0.4, 0.4])
    assert not Curve((1.0, 1.0), (0.8, 0.4)).is_whole()
    assert not Curve((1.0,), (0.8, 0.4)).is_whole()
    assert not Curve((), ()).is_whole()


@pytest.mark.parametrize(("count", "coverage", "rank"), [(9, 0.9, 9), (19, 0.9, 18), (99, 0.95, 95), (39, 0.9, 36)])
def test_the_rank_of_the_quantile_by_hand(count: int, coverage: float, rank: int) -> None:
    errors = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert conformal_quantile(errors, coverage) == rank
    assert conformal_quantile(np.arange(8.0), 0.9) is None


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_one_error_less_than_the_fewest_gives_no_quantile(coverage: float) -> None:
    fewest = fewest_errors(coverage)
    assert conformal_quantile(np.arange(float(fewest)), coverage) is not None
    assert conformal_quantile(np.arange(float(fewest - 1)), coverage) is None


def draw(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return signs (n, 2) and scores: worse and more scattered where networks disagree."""
    disagreement = generator.beta(1.2, 8, count)
    entropy = 0.5 * disagreement + generator.uniform(0, 0.1, count)
    scores = np.clip(1 - 1.2 * disagreement + generator.normal(0, 0.02 + 0.2 * disagreement), 0, 1)
    return np.stack([disagreement, entropy], axis=1), scores


def coverages(cases: int, trials: int) -> tuple[np.ndarray, int]:
    """Return the share of new cases in the interval for each calibration, and the cases that made the intervals."""
    generator, found, held_out = np.random.default_rng(0), [], 0
    for _ in range(trials):
        signs, scores = draw(generator, cases)
        fit = fit_scores("dsc", signs, scores, [f"case{number}" for number in range(cases)], 0.9)
        assert fit is not None
        new, truth = draw(generator, 1000)
        _, low, high = fit.interval(new)
        found.append(np.mean((low <= truth) & (truth <= high)))
        held_out = fit.held_out
    return np.array(found), held_out


@pytest.mark.parametrize("cases", [40, 120])
def test_the_coverage_is_that_of_the_theory(cases: int) -> None:
    """Over calibrations, the coverage of split-conformal intervals is Beta(k, n + 1 - k) distributed (Vovk, 2012)."""
    found, held_out = coverages(cases, 200)
    assert held_out == cases // 2
    rank = math.ceil((held_out + 1) * 0.9)
    theory = beta(rank, held_out + 1 - rank)
    error = theory.std() / math.sqrt(len(found))
    assert found.mean() == pytest.approx(theory.mean(), abs=4 * error + 0.003)  # scores that are clipped to 1 are ties
    assert 0.9 - 4 * error <= found.mean() <= 0.9 + 1 / (held_out + 1) + 4 * error + 0.003
    assert found.std() == pytest.approx(theory.std(), rel=0.25)
    assert np.mean(found < theory.ppf(0.1)) == pytest.approx(0.1, abs=0.08)


def test_the_interval_is_wider_where_scores_scatter() -> None:
    signs, scores = draw(np.random.default_rng(1), 400)
    fit = fit_scores("dsc", signs, scores, list(map(str, range(400))), 0.9)
    assert fit is not None
    expected, low, high = fit.interval(np.array([[0.02, 0.05], [0.4, 0.25]]))
    assert expected[0] == pytest.approx(1 - 1.2 * 0.02, abs=0.03)
    assert expected[1] == pytest.approx(1 - 1.2 * 0.4, abs=0.08)
    assert high[1] - low[1] > 3 * (high[0] - low[0])
    assert ((low >= 0) & (high <= 1) & (low <= expected) & (expected <= high)).all()


def test_signs_that_explain_nothing_weigh_nothing() -> None:
    generator = np.random.default_rng(0)
    signs = np.stack([generator.uniform(0, 1, 300), np.zeros(300)], axis=1)
    fit = fit_scores("dsc", signs, 1 - 0.5 * signs[:, 0], list(map(str, range(300))), 0.9)
    assert fit is not None
    assert fit.weights == pytest.approx((0.5, 0.0))
    better = fit_scores("dsc", signs, signs[:, 0], list(map(str, range(300))), 0.9)  # the sign says the opposite
    assert better is not None
    assert better.weights == (1.0, 0.0)
    assert np.ptp(better.expected.y) < 0.02


def test_a_group_is_in_one_half() -> None:
    groups = [f"patient{number // 3}" for number in range(60)]
    first = halves(groups)
    assert first.sum() == 30
    for name in set(groups):
        assert len({bool(one) for one, group in zip(first, groups, strict=True) if group == name}) == 1
    order = np.random.default_rng(3).permutation(60)
    np.testing.assert_array_equal(halves([groups[number] for number in order]), first[order])


def test_too_few_cases_have_no_fit() -> None:
    signs, scores = draw(np.random.default_rng(0), 16)
    assert fit_scores("dsc", signs, scores, list(map(str, range(16))), 0.9) is None
    assert fit_scores("dsc", signs, scores, ["one patient"] * 16, 0.9) is None


def test_more_trouble_than_any_case_is_beyond() -> None:
    fit = Fit(
        metric="dsc",
        weights=(1.0, 0.0),
        expected=Curve((0.0, 1.0), (1.0, 0.0)),
        error=Curve((0.0,), (0.1,)),
        quantile=1.0,
        largest=0.5,
        fitted=10,
        held_out=10,
    )
    assert fit.beyond(np.array([[0.5, 9.0], [0.51, 0.0], [0.0, 0.0]])).tolist() == [False, True, False]
