"""What tests of several readers share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from umamba.io import UserError, read_image


@pytest.fixture
def refusal() -> Callable[[Path], str]:
    """Return a function that reads a file which must be refused, and returns the message: one line that names it."""

    def refused(path: Path) -> str:
        with pytest.raises(UserError) as error:
            read_image([path])
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
        return str(error.value)

    return refused
