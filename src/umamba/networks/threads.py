"""Threads for compiled code, which lets other threads of Python run beside it."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def in_threads(work: Callable[[Any], None], tasks: Sequence[Any], threads: int) -> None:
    """Call `work` with each task, in the calling thread and in others beside it.

    Args:
        work: computes a task; what it raises is raised here.
        tasks: in the order in which they are begun.
        threads: number of threads, the calling one included.
    """
    waiting = deque(tasks)

    def drain() -> None:
        while True:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            work(task)

    others = min(threads, len(tasks)) - 1
    if others < 1:
        drain()
        return
    with ThreadPoolExecutor(others) as pool:
        running = [pool.submit(drain) for _ in range(others)]
        drain()
        for each in running:
            each.result()
