"""Stored probabilities: read one class at a time, and refused where they are something else."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from umamba.inference.probabilities import ProbabilitiesFile, read_probabilities
from umamba.io import UserError

SHAPE = (3, 2, 4, 5)


def probabilities() -> np.ndarray:
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    normalised: np.ndarray = values / values.sum(axis=0)
    return normalised


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = ProbabilitiesFile(tmp_path / "a.npz", SHAPE)
    file.array[:] = probabilities()
    file.save()
    file.discard()
    np.testing.assert_array_equal(np.stack(list(read_probabilities(tmp_path / "a.npz", SHAPE))), probabilities())


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_files_of_numpy_and_nnunet_are_read(tmp_path: Path, dtype: type) -> None:
    np.savez_compressed(tmp_path / "a.npz", probabilities=probabilities().astype(dtype))
    found = np.stack(list(read_probabilities(tmp_path / "a.npz", SHAPE)))
    np.testing.assert_array_equal(found, probabilities().astype(dtype))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    wrong = {
        "another shape": {"probabilities": probabilities()[:2]},
        "integers": {"probabilities": np.zeros(SHAPE, np.int32)},
        "objects": {"probabilities": np.array([None, {}], dtype=object)},
        "logits": {"probabilities": probabilities() * 9},
        "missing numbers": {"probabilities": np.full(SHAPE, np.nan, np.float32)},
        "another name": {"softmax": probabilities()},
        "by columns": {"probabilities": np.asfortranarray(probabilities())},
    }
    for content in wrong.values():
        np.savez(path, allow_pickle=True, **content)
        with pytest.raises(UserError, match=r"a\.npz: cannot be read as probabilities"):
            list(read_probabilities(path, SHAPE))
    stream = io.BytesIO()
    np.save(stream, probabilities())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("probabilities.npy", stream.getvalue()[:-10])
    with pytest.raises(UserError, match="its end is missing"):
        list(read_probabilities(path, SHAPE))
    path.write_bytes(b"PK no archive")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_probabilities(path, SHAPE))
