"""Small plan configurations for the tests of the networks."""

from collections.abc import Callable
from typing import Any

import numpy as np
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


@pytest.fixture
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare Triton's interpreter work: patching its language at each call, and scanning element by element."""
    if torch.cuda.is_available():
        return
    from triton.runtime import interpreter

    plain = interpreter.InterpretedFunction.__call__

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        own = self.fn.__module__.startswith("umamba.")  # the launch has patched what these see, tl
        return self.rewrite()(*arguments, **named) if own else plain(self, *arguments, **named)

    def scan_by_doubling(self: Any, inputs: Any) -> list[Any]:
        found = [np.moveaxis(tensor.handle.data, self.axis, 0) for tensor in inputs]

        def wrapped(arrays: list[np.ndarray]) -> list[Any]:
            return [self.to_tensor(array, tensor.dtype) for array, tensor in zip(arrays, inputs, strict=True)]

        step = 1
        while step < len(found[0]):
            joined = self.combine_fn.fn(*wrapped([np.roll(array, step, 0) for array in found]), *wrapped(found))
            found = [
                np.concatenate([old[:step], new.handle.data[step:]]) for old, new in zip(found, joined, strict=True)
            ]
            step *= 2
        return wrapped([np.ascontiguousarray(np.moveaxis(array, 0, self.axis)) for array in found])

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    monkeypatch.setattr(interpreter.ScanOps, "generic_scan", scan_by_doubling)
