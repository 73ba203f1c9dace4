"""Tasks of compiled code in threads: each is computed once, and what one raises is raised."""

import threading

import pytest

from umamba.networks.threads import in_threads


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
