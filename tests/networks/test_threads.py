"""Tasks of compiled code in threads: each is computed once, and what one raises is raised."""

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection

import pytest

from umamba.networks import threads as module
from umamba.networks.threads import in_threads


@pytest.fixture(autouse=True, params=["openmp", "pool"])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in the threads of OpenMP, and in those that Python starts where there is no OpenMP."""
    if request.param == "pool":
        monkeypatch.setattr(module, "_openmp", lambda process: None)
    elif module._openmp(os.getpid()) is None:
        pytest.skip("PyTorch has no OpenMP here")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_task_is_computed_once(threads: int) -> None:
    found: list[int] = []
    in_threads(found.append, range(7), threads)
    assert sorted(found) == list(range(7))


def test_an_error_in_another_thread_is_raised_here() -> None:
    here, both = threading.get_ident(), threading.Barrier(2)

    def work(task: int) -> None:
        both.wait(10)  # so that each of the two threads has one of the two tasks
        if threading.get_ident() != here:
            raise ValueError("a block cannot be computed")

    with pytest.raises(ValueError, match="cannot be computed"):
        in_threads(work, range(2), 2)


def test_tasks_of_tasks_do_not_wait_for_each_other() -> None:
    found: list[int] = []
    in_threads(lambda first: in_threads(lambda second: found.append(10 * first + second), range(3), 3), range(3), 3)
    assert sorted(found) == [0, 1, 2, 10, 11, 12, 20, 21, 22]


def test_a_forked_process_computes_too() -> None:
    in_threads(lambda task: None, range(2), 2)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    forked = context.Process(target=_send_squares, args=(sender,))
    forked.start()
    assert receiver.poll(20)
    assert receiver.recv() == [0, 1, 4]
    forked.join()


def _send_squares(sender: Connection) -> None:
    found: list[int] = []
    in_threads(lambda task: found.append(task * task), range(3), 2)
    sender.send(sorted(found))
