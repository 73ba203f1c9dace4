"""metrics.csv holds the peak memory of the process."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from umamba.records import RunFolder


def test_peak_memory_is_that_of_the_process(small_fit: Callable[..., RunFolder]) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux's /proc")
    logged = pandas.read_csv(small_fit().metrics)["memory/peak_gb"]
    highest = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e9  # type: ignore[index]
    assert len(logged) >= 1
    assert logged.is_monotonic_increasing
    assert logged.iloc[0] > 0.1
    assert logged.iloc[-1] == pytest.approx(highest, rel=0.05)
