"""Schedules and optimisers against values computed by hand."""

import pytest
import torch

from umamba.settings import InvalidSettings, OptimizerSettings, ScheduleSettings
from umamba.training.schedules import build_optimizer, learning_rate_factor


def test_poly_is_nnunets() -> None:
    factor = learning_rate_factor(ScheduleSettings(name="poly", exponent=0.9), 1000)
    assert factor(0) == 1
    assert 0.01 * factor(500) == pytest.approx(0.01 * 0.5**0.9)
    assert factor(1000) == 0


def test_cosine_ends_at_its_minimum() -> None:
    factor = learning_rate_factor(ScheduleSettings(name="cosine", minimum=1e-6 / 8e-4), 1000)
    assert factor(0) == pytest.approx(1)
    assert factor(500) == pytest.approx((1 + 1e-6 / 8e-4) / 2)
    assert 8e-4 * factor(1000) == pytest.approx(1e-6)


def test_constant_stays() -> None:
    assert {learning_rate_factor(ScheduleSettings(name="constant"), 10)(epoch) for epoch in range(10)} == {1.0}


def test_optimisers_get_their_own_arguments() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    sgd = build_optimizer(parameters, OptimizerSettings())
    assert isinstance(sgd, torch.optim.SGD)
    assert {name: sgd.defaults[name] for name in ("lr", "weight_decay", "momentum", "nesterov")} == {
        "lr": 0.01,
        "weight_decay": 3e-5,
        "momentum": 0.99,
        "nesterov": True,
    }
    adamw = build_optimizer(parameters, OptimizerSettings(name="adamw", lr=8e-4, weight_decay=0.01, betas=(0.8, 0.9)))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["betas"]) == (8e-4, (0.8, 0.9))


def test_unknown_names_are_refused_with_the_choice() -> None:
    with pytest.raises(InvalidSettings, match=r"adamm.*sgd, adam, adamw"):
        OptimizerSettings(name="adamm")  # type: ignore[arg-type]
    with pytest.raises(InvalidSettings, match=r"recipe\.optimizer\.momentum=0\.9: adam has no momentum"):
        OptimizerSettings(name="adam", momentum=0.9)
    with pytest.raises(InvalidSettings, match=r"polly.*poly, cosine"):
        ScheduleSettings(name="polly")  # type: ignore[arg-type]
