"""One function over many cases in worker processes, under a progress bar, with memory for a few cases only."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from umamba.datasets.nnunet_raw import RawCase
from umamba.io import UserError

Result = TypeVar("Result")

# Read by the workers' libraries when they are loaded. One process a core is enough: the libraries' own threads would
# only take the cores from each other. Volumes come and go all the time: glibc, left alone, gives each back to the
# system and has every page of the next one cleared again, which costs more than the arithmetic done on it.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLOSC_NTHREADS": "1",
    "NUMEXPR_MAX_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}


def over_cases(
    function: Callable[[RawCase], Result], cases: Sequence[RawCase], workers: int, title: str
) -> list[Result]:
    """Return function(case) for each case, in the order of the cases.

    Args:
        function: picklable; what it returns must be small, for all results are kept.
        cases: the cases.
        workers: processes; 0 or 1 works in this one.
        title: what the progress bar says.

    Raises:
        UserError: a worker process was killed.
    """
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=len(cases))
        if workers <= 1 or len(cases) <= 1:
            results = []
            for case in cases:
                results.append(function(case))
                progress.advance(task)
            return results
        with _pool(min(workers, len(cases)), function) as pool:
            futures = [pool.submit(function, case) for case in cases]
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.advance(task)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [future.result() for future in futures]


@contextmanager
def _pool(workers: int, function: Callable[..., object]) -> Iterator[ProcessPoolExecutor]:
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        with ProcessPoolExecutor(workers, _context(function), initializer=_end_with_parent) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "data.prepare_workers: a worker process was killed, most likely for want of memory. "
            f"Use fewer than {workers} workers."
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _context(function: Callable[..., object]) -> BaseContext:
    """Return how workers are started: from one server process that has imported what they need, where there is one.

    The server is begun by this process's first pool; later ones find it. It has no threads that a fork could lose.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", getattr(function, "func", function).__module__])
    return context


def _end_with_parent() -> None:
    """In a worker: end when the process that started it is gone; a killed one leaves nobody working on its cases."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
