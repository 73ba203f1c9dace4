"""One function over many cases in worker processes, under a progress bar, with memory for a few cases only."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from umamba.datasets.nnunet_raw import RawCase
from umamba.io import UserError

Result = TypeVar("Result")

# One process a core is enough: the libraries' own threads would only take the cores from each other.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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
        with _pool(min(workers, len(cases))) as pool:
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
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # read by the workers when they start
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
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
