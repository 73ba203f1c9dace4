"""Cases in worker processes: a case for which the memory does not suffice is named, with what to do."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umamba.datasets import RawCase, over_cases, read_dataset, write_phantom
from umamba.io import UserError
from umamba.planning import compute_fingerprint, fingerprint


def allocate(case: RawCase) -> int:
    """Return the bytes of an array; those of case b are more than a process can address."""
    return int(np.empty(1 << (60 if case.case_id == "b" else 3), np.uint8).nbytes)


@pytest.mark.parametrize(
    ("workers", "remedy"),
    [(1, "Give the program"), (3, "Set workers below 3, because each worker holds a case, or give the program")],
)
def test_the_error_of_a_worker_names_the_case_and_the_key(workers: int, remedy: str) -> None:
    cases = [RawCase(name, (Path(name),), None) for name in "abc"]
    assert over_cases(allocate, cases[::2], workers, "Title") == [8, 8]
    with pytest.raises(UserError) as raised:
        over_cases(allocate, cases, workers, "Title", "workers")
    assert str(raised.value) == (
        "b: the memory does not suffice (Unable to allocate 1.00 EiB for an array with shape (1152921504606846976,) "
        f"and data type uint8). {remedy} more memory."
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_case_without_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    raw = write_phantom(tmp_path / "Dataset900_Phantom", num_training=2, num_test=0, seed=0, voxel_mm=20.0)

    def inspect(dataset: Any, case: Any) -> Any:
        return np.empty(1 << 60, np.uint8)

    monkeypatch.setattr(fingerprint, "inspect_case", inspect)
    monkeypatch.setattr("umamba.datasets.parallel._context", lambda function: multiprocessing.get_context("fork"))
    with pytest.raises(
        UserError, match=r"^phantom_\d+: the memory does not suffice \(Unable to allocate 1\.00 EiB"
    ) as raised:
        compute_fingerprint(read_dataset(raw), workers)
    assert ("Set data.prepare_workers below 2" in str(raised.value)) == (workers == 2)
