"""Keeping the largest component of hand-made label maps, and the file of the steps."""

import json
from pathlib import Path

import numpy as np
import pytest

from umamba.inference import PostProcessing
from umamba.inference.postprocessing import keep_largest
from umamba.io import UserError


def segmentation() -> np.ndarray:
    """Return label 1 in parts of 4 and 2 voxels, and label 2 in parts of 3 and 1; the single voxel touches the 4."""
    array = np.zeros((1, 5, 12), dtype=np.uint8)
    array[0, 0, :4] = 1
    array[0, 1, 4] = 2  # touches by a corner
    array[0, 4, :2] = 1
    array[0, 3, 8:11] = 2
    return array


def test_of_one_label() -> None:
    expected = segmentation()
    expected[0, 4, :2] = 0
    np.testing.assert_array_equal(keep_largest(segmentation(), [1]), expected)


def test_of_labels_together() -> None:
    expected = segmentation()
    expected[0, 3:] = 0
    np.testing.assert_array_equal(keep_largest(segmentation(), [1, 2]), expected)


def test_equal_components_stay() -> None:
    array = segmentation()
    array[0, 0, 0] = array[0, 0, 1] = 0
    np.testing.assert_array_equal(keep_largest(array, [1]), array)


def test_an_absent_label_and_a_single_component() -> None:
    array = segmentation()
    np.testing.assert_array_equal(keep_largest(array, [3]), array)
    np.testing.assert_array_equal(keep_largest(np.ones_like(array), [1]), np.ones_like(array))


def test_steps_are_stored_and_applied_in_order(tmp_path: Path) -> None:
    steps = PostProcessing(((1, 2), (2,)))
    steps.write(tmp_path / "a.json", {"dice": 0.5})
    assert PostProcessing.read(tmp_path / "a.json") == steps
    result = steps.apply(segmentation())
    np.testing.assert_array_equal(result, keep_largest(keep_largest(segmentation(), [1, 2]), [2]))
    np.testing.assert_array_equal(PostProcessing().apply(segmentation()), segmentation())


@pytest.mark.parametrize("content", [[], {}, {"keep_largest_component": [1]}, {"keep_largest_component": [[0]]}])
def test_other_files_are_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no post-processing"):
        PostProcessing.read(tmp_path / "a.json")
