"""The stored labels of a cascade's first stage: made once, kept after an interruption, mended after damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umamba.io import Geometry, UserError
from umamba.preprocessing import CaseProperties
from umamba.preprocessing.previous import with_previous
from umamba.preprocessing.store import CaseStore, case_file, write_array

SHAPE = (5, 6, 7)


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    """Return two stored cases."""
    cases = CaseStore(tmp_path / "3d_fullres_12345678", ("a", "b"))
    cases.path.mkdir()
    meta: dict[str, Any] = {"foreground": {}, "properties": _properties()}
    for case_id in cases.case_ids:
        write_array(case_file(cases.path, case_id, "label"), np.zeros((1, *SHAPE), np.int16), flat=False)
        write_array(case_file(cases.path, case_id, "image"), np.ones((1, *SHAPE), np.float32), False, meta)
    return cases


def _properties() -> str:
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    geometry = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction, SHAPE, False)
    return json.dumps(CaseProperties("a", geometry, SHAPE, ((0, 5), (0, 6), (0, 7)), SHAPE).to_json())


def finder(made: list[str], fail: str = "") -> Callable[[str], np.ndarray]:
    """Return a first stage that finds 2 in case b and 1 elsewhere, and notes which cases it segments."""

    def find(case_id: str) -> np.ndarray:
        if case_id == fail:
            raise UserError("stopped")
        made.append(case_id)
        return np.full(SHAPE, 2 if case_id == "b" else 1, np.uint8)

    return find


def test_labels_are_made_once(store: CaseStore) -> None:
    made: list[str] = []
    first = with_previous(store, {"checkpoint": "x"}, finder(made))
    again = with_previous(store, {"checkpoint": "x"}, finder(made))
    assert made == ["a", "b"]
    assert first == again != store
    found: Any = again.load("b").previous
    assert found[:].shape == (1, *SHAPE)
    assert found[:].dtype == np.int16
    assert (found[:] == 2).all()
    assert store.load("b").previous is None
    other = with_previous(store, {"checkpoint": "y"}, finder(made))
    assert other.previous != first.previous
    assert made == ["a", "b", "a", "b"]


def test_an_interrupted_one_continues(store: CaseStore) -> None:
    made: list[str] = []
    with pytest.raises(UserError, match="stopped"):
        with_previous(store, "x", finder(made, fail="b"))
    with_previous(store, "x", finder(made))
    assert made == ["a", "b"]


def test_damage_is_mended(store: CaseStore) -> None:
    made: list[str] = []
    found = with_previous(store, "x", finder(made))
    assert found.previous is not None
    file = case_file(found.previous, "a", "previous")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    assert with_previous(store, "x", finder(made), check=False) == found
    assert made == ["a", "b"]
    mended: Any = with_previous(store, "x", finder(made)).load("a").previous
    assert (mended[:] == 1).all()
    assert made == ["a", "b", "a"]


def test_another_grid_is_refused(store: CaseStore) -> None:
    with pytest.raises(UserError, match=r"a: the labels of the previous stage have \(2, 2, 2\) voxels"):
        with_previous(store, "x", lambda case_id: np.zeros((2, 2, 2), np.uint8))
