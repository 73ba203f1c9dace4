"""The peak memory of a process does not include that of its parent."""

import subprocess
import sys

import numpy as np
import pytest

from umamba.io.resources import peak_resident_bytes

BYTES = 600_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems a process inherits the peak of its parent")
def test_peak_is_not_inherited() -> None:
    held = np.ones(BYTES // 8)
    assert peak_resident_bytes() > held.nbytes
    code = "from umamba.io.resources import peak_resident_bytes; print(peak_resident_bytes())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(result.stdout) < BYTES
