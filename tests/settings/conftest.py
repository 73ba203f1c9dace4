"""What the tests of the defaults share."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from umamba.cli.compose import settings_of
from umamba.settings import plain


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function from a record and overrides to the plain values that they compose to, which fit into JSON."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):  # the defaults of the paths
        monkeypatch.delenv(name, raising=False)

    def values_of(record: Any, *overrides: str) -> dict[str, Any]:
        values: dict[str, Any] = plain(settings_of(record, overrides))
        assert json.loads(json.dumps(values)) == values
        return values

    return values_of
