"""Schedules and optimisers against values computed by hand."""

import pytest
import torch

from umamba.io import UserError
from umamba.training.schedules import build_optimizer, learning_rate_factor


def test_poly_is_nnunets() -> None:
    factor = learning_rate_factor({"name": "poly", "exponent": 0.9}, 1000)
    assert factor(0) == 1
    assert 0.01 * factor(500) == pytest.approx(0.01 * 0.5**0.9)
    assert factor(1000) == 0


def test_cosine_ends_at_its_minimum() -> None:
    factor = learning_rate_factor({"name": "cosine", "minimum": 1e-6 / 8e-4}, 1000)
    assert factor(0) == pytest.approx(1)
    assert factor(500) == pytest.approx((1 + 1e-6 / 8e-4) / 2)
    assert 8e-4 * factor(1000) == pytest.approx(1e-6)


def test_unknown_names_are_refused_with_the_choice() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(UserError, match=r"adamm.*sgd, adam, adamw"):
        build_optimizer(parameters, {"name": "adamm", "lr": 1})
    with pytest.raises(UserError, match="momentum"):
        build_optimizer(parameters, {"name": "adam", "lr": 1, "momentum": 0.9})
    with pytest.raises(UserError, match=r"polly.*poly, cosine"):
        learning_rate_factor({"name": "polly"}, 10)
