"""Call a function for many cases in worker processes, with only a few cases in memory."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import TypeVar

from umamba.datasets.nnunet_raw import RawCase
from umamba.io import UserError
from umamba.io.errors import lack_of_memory
from umamba.io.voice import tracked

Result = TypeVar("Result")

PREPARE_WORKERS = "data.prepare_workers"

# The workers' libraries read these variables when they are loaded. There is one process per core, so further threads of
# the libraries would only compete for the cores. The workers allocate and free a volume all the time. By default glibc
# returns its memory to the system, which must then clear every page of the next volume, at a higher cost than the
# arithmetic. The MALLOC variables prevent that.
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
    function: Callable[[RawCase], Result],
    cases: Sequence[RawCase],
    workers: int,
    title: str,
    key: str = PREPARE_WORKERS,
) -> list[Result]:
    """Return function(case) for each case, in the order of the cases.

    Args:
        function: must be picklable, and its results small, because all of them are held in memory.
        cases: the cases.
        workers: worker processes; 0 or 1 calls the function in this process.
        title: text of the progress bar, which appears if messages are shown.
        key: the key of `workers`, for the message.

    Raises:
        UserError: a worker process was killed, or the memory did not suffice for a case.
    """
    workers = min(workers, len(cases))
    if workers <= 1:
        return [
            _naming_memory(partial(function, case), case, workers, key) for case in tracked(cases, title, len(cases))
        ]
    with _pool(workers, function, key) as pool:
        futures = {pool.submit(function, case): case for case in cases}
        try:
            for future in tracked(as_completed(futures), title, len(futures)):
                _naming_memory(future.result, futures[future], workers, key)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def memory_problem(case: RawCase, error: Exception, workers: int, key: str = PREPARE_WORKERS) -> str | None:
    """Return the message for a case for which the memory did not suffice; None if the error has another cause.

    Args:
        case: the case.
        error: what ended its processing.
        workers: processes that each hold a case.
        key: the key of `workers`.
    """
    lack = lack_of_memory(error)
    if lack is None:
        return None
    fewer = f"Set {key} below {workers}, because each worker holds a case, or give" if workers > 1 else "Give"
    return f"{case.case_id}: the memory does not suffice ({lack}). {fewer} the program more memory."


def _naming_memory(result: Callable[[], Result], case: RawCase, workers: int, key: str) -> Result:
    """Return the result of a case; raise UserError with its name if the memory does not suffice."""
    try:
        return result()
    except Exception as error:
        problem = memory_problem(case, error, workers, key)
        if problem is None:
            raise
        raise UserError(problem) from error


@contextmanager
def _pool(workers: int, function: Callable[..., object], key: str) -> Iterator[ProcessPoolExecutor]:
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        with ProcessPoolExecutor(workers, _context(function), initializer=_end_with_parent) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise UserError(
            f"{key}: a worker process was killed, most likely because the memory was full. "
            f"Use fewer than {workers} workers."
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _context(function: Callable[..., object]) -> BaseContext:
    """Return the start method of the workers: forks of a server process that has imported the function's module.

    The first pool starts the server and later pools use it again. It runs no threads, so forking it is safe. Systems
    without a fork server start each worker afresh.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", getattr(function, "func", function).__module__])
    return context


def _end_with_parent() -> None:
    """End this worker when its parent has ended, because a killed parent cannot end its workers itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
