"""Threads for compiled code, which lets other threads of Python run beside it.

On Linux these are the threads of PyTorch's own OpenMP runtime. Between two operators they keep a core busy for a while,
waiting for more work, so that other threads would have to share that core with them.
"""

import ctypes
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # what each thread of a parallel region calls


def in_threads(work: Callable[[Any], None], tasks: Sequence[Any], threads: int) -> None:
    """Call `work` with each task, in the calling thread and in others beside it.

    Args:
        work: computes a task; what it raises is raised here.
        tasks: in the order in which they are begun.
        threads: number of threads, the calling one included.
    """
    waiting = deque(tasks)
    errors: list[BaseException] = []

    def drain(_: object = None) -> None:
        while True:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            try:
                work(task)
            except BaseException as error:
                errors.append(error)
                waiting.clear()

    number = min(threads, len(tasks))
    openmp = _openmp(os.getpid()) if number > 1 else None
    if openmp is not None:
        openmp(_Region(drain), None, number, 0)
    elif number > 1:
        running = [_pool(number - 1, os.getpid()).submit(drain) for _ in range(number - 1)]
        drain()
        for each in running:
            if not each.cancel():  # what has not begun has nothing left to do
                each.result()
    else:
        drain()
    if errors:
        raise errors[0]


@cache
def _openmp(process: int) -> Callable[..., None] | None:
    """Return GOMP_parallel of the OpenMP runtime that PyTorch has loaded; None where there is none.

    It calls a function in as many threads as it is asked for, the calling one included, or in fewer.

    Args:
        process: the calling one. A process that was forked from one with such threads would wait for them forever.
    """
    if _openmp.cache_info().currsize:
        return None
    bundled = sorted(map(str, Path(torch.__file__).parent.glob("lib/libgomp*.so*")))
    for name in (*bundled, "libgomp.so.1", "libiomp5.so", "libomp.so"):
        try:
            parallel = ctypes.CDLL(name, os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except (AttributeError, OSError):  # not loaded, or another runtime
            continue
        parallel.argtypes = (_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        parallel.restype = None
        found: Callable[..., None] = parallel
        return found
    return None


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return threads that wait for work, because starting them takes as long as a small layer.

    Args:
        threads: their number.
        process: that starts them; a forked process has none of its parent's threads.
    """
    return ThreadPoolExecutor(threads, "umamba")
