"""Freed memory stays in the process within the block."""

import subprocess
import sys

import numpy as np
import pytest

from umamba.io.resources import resident_bytes
from umamba.training.freed_memory import freed_memory_kept

# In a process of its own: once malloc has failed, glibc serves a thread from another arena, which keeps nothing.
_KEPT = """
import numpy as np
from umamba.io.resources import resident_bytes
from umamba.training.freed_memory import freed_memory_kept
size = 400 * 2**20
with freed_memory_kept():
    filled = np.ones(size, np.uint8)
    with_array = resident_bytes()
    del filled
    assert resident_bytes() > with_array - size // 4
assert resident_bytes() < with_array - size // 2
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_within_the_block_and_returned_after_it() -> None:
    subprocess.run([sys.executable, "-c", _KEPT], check=True, timeout=60)


def test_nothing_changes_where_it_is_not_wanted() -> None:
    before = resident_bytes()
    with freed_memory_kept(False):
        filled = np.ones(200 * 2**20, np.uint8)
        del filled
        assert resident_bytes() < before + 100 * 2**20
