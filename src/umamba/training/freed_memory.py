"""Keep freed memory in the process while a network trains on a CPU, because each step needs the same amount again.

By default, glibc returns large blocks to the system as soon as they are freed. Each step then pays for new pages, which
the system fills with zeros: with feature maps of some MB, a tenth of the step.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of glibc's malloc.h
_LARGE = 2**31 - 1
# What glibc raises the two thresholds to by itself when large blocks are freed; after a call of mallopt it no longer
# does that, so they are set to it.
_RAISED = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}


@contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[None]:
    """Keep freed memory within the block and return it at the end; without glibc, nothing happens.

    Args:
        wanted: False: do nothing.
    """
    glibc = ctypes.CDLL(None) if wanted and sys.platform == "linux" else None
    if glibc is None or not hasattr(glibc, "mallopt") or not hasattr(glibc, "malloc_trim"):
        yield
        return
    for threshold in _RAISED:
        glibc.mallopt(threshold, _LARGE)
    try:
        yield
    finally:
        for threshold, size in _RAISED.items():
            glibc.mallopt(threshold, size)
        glibc.malloc_trim(ctypes.c_size_t(0))
