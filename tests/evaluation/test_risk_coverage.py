"""The risk-coverage curve and the area under it, against the slow obvious way: every order of equal confidences."""

from itertools import pairwise, permutations

import numpy as np
import pytest

from umamba.evaluation.risk_coverage import area, risk_coverage


def slowly(confidence: list[float], risk: list[float]) -> list[float]:
    """Return the mean over all orders that do not contradict the confidences."""
    curves = []
    for order in permutations(range(len(risk))):
        if all(confidence[a] >= confidence[b] for a, b in pairwise(order)):
            curves.append([np.mean([risk[i] for i in order[: kept + 1]]) for kept in range(len(order))])
    return [float(value) for value in np.mean(curves, axis=0)]


@pytest.mark.parametrize("seed", range(4))
def test_the_curve_is_the_mean_over_all_orders(seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidence, risk = generator.integers(0, 4, 7) / 3, generator.uniform(0, 1, 7)
    coverage, found = risk_coverage(confidence, risk)
    expected = slowly(list(confidence), list(risk))
    assert found == pytest.approx(expected)
    assert coverage == pytest.approx(np.arange(1, 8) / 7)
    assert area(confidence, risk) == pytest.approx(np.mean(expected))


def test_a_random_order_has_the_mean_risk_and_none_is_better_than_the_risk_itself() -> None:
    risk = np.random.default_rng(0).uniform(0, 1, 50)
    assert area(np.zeros(50), risk) == pytest.approx(risk.mean())
    random = [area(np.random.default_rng(seed).uniform(size=50), risk) for seed in range(400)]
    assert np.mean(random) == pytest.approx(risk.mean(), abs=0.02)
    assert area(-risk, risk) < min(random)


def test_by_hand() -> None:
    coverage, risk = risk_coverage(np.array([-np.inf, 0.9, 0.9]), np.array([1.0, 0.0, 0.2]))
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk.tolist() == pytest.approx([0.1, 0.1, 0.4])
    with pytest.raises(ValueError, match="NaN"):
        area(np.array([np.nan]), np.array([0.1]))
    with pytest.raises(ValueError, match="not empty"):
        area(np.array([]), np.array([]))
