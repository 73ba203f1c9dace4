"""Small plan configurations for the tests of the networks."""

from collections.abc import Callable

import pytest
import torch

from umamba.networks.conformance import small_configuration
from umamba.planning import Configuration


@pytest.fixture
def make_configuration() -> Callable[..., Configuration]:
    """Return a function that makes a small configuration for 2 or 3 axes; keyword arguments replace its fields."""

    return small_configuration


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)
