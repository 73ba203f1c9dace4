"""Freed memory stays in the process within the block."""

import subprocess
import sys

import pytest

# In a process of its own: a heap with holes of other tests takes and keeps such an array, whatever the thresholds are,
# and once malloc has failed, glibc serves a thread from another arena, which keeps nothing.
_CHECK = """
import numpy as np
from umamba.io.resources import resident_bytes
from umamba.training.freed_memory import freed_memory_kept
size, wanted = 400 * 2**20, {wanted}
with freed_memory_kept(wanted):
    filled = np.ones(size, np.uint8)
    with_array = resident_bytes()
    del filled
    assert (resident_bytes() > with_array - size // 4) == wanted
assert resident_bytes() < with_array - size // 2
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize("wanted", [True, False])
def test_freed_memory_is_kept_within_the_block_only_where_it_is_wanted(wanted: bool) -> None:
    subprocess.run([sys.executable, "-c", _CHECK.format(wanted=wanted)], check=True, timeout=60)
