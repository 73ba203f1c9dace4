"""The 2D phantoms: equal for equal seeds, readable as datasets, with correct labels."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from skimage.measure import label as connected_components

from umamba.datasets import read_dataset, write_phantom_2d
from umamba.datasets.phantom_2d import INSTRUMENTS, cell_instances, endoscopy_frame
from umamba.io import UserError, read_image, read_label
from umamba.labels.instance_maps import interior_and_boundary

SIZE = (96, 128)


@pytest.mark.parametrize("scene", ["endoscopy", "cells"])
def test_a_phantom_reads_as_a_data_set(tmp_path: Path, scene: str) -> None:
    root = write_phantom_2d(tmp_path / "Dataset991_Phantom", scene=scene, num_training=3, num_test=1, seed=5)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    assert write_phantom_2d(root, scene=scene, num_training=3, num_test=1, seed=5) == root
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    dataset = read_dataset(root)
    assert (len(dataset.training), len(dataset.test)) == (3, 1)
    for case in (*dataset.training, *dataset.test):
        assert case.label is not None
        image, label = read_image(case.images), read_label(case.label)
        assert image.array.shape == (3, 1, *SIZE)
        assert image.array.dtype == label.array.dtype == np.uint8
        assert set(np.unique(label.array)) <= set(dataset.labels.all_values)
        assert label.array.any()


def test_another_phantom_in_the_same_place_is_refused(tmp_path: Path) -> None:
    root = write_phantom_2d(tmp_path / "Dataset991_Phantom", scene="cells", num_training=1, num_test=0, seed=5)
    with pytest.raises(UserError, match="other settings"):
        write_phantom_2d(root, scene="cells", num_training=2, num_test=0, seed=5)
    with pytest.raises(UserError, match=r"scene=bones.*endoscopy"):
        write_phantom_2d(tmp_path / "other", scene="bones", num_training=1, num_test=0, seed=5)


def test_all_instruments_occur_and_differ_from_tissue() -> None:
    frames = [endoscopy_frame(np.random.default_rng([0, index]), SIZE) for index in range(30)]
    assert {int(value) for _, label in frames for value in np.unique(label)} == set(range(len(INSTRUMENTS) + 1))
    image, label = frames[0]
    redness = image[..., 0].astype(float) - image[..., 2]
    assert redness[label == 0].mean() > 60


def test_interiors_are_the_eroded_cells_and_can_be_counted_again() -> None:
    _, instances = cell_instances(np.random.default_rng(3), SIZE)
    classes = interior_and_boundary(instances)
    expected = np.zeros_like(classes)
    for cell in range(1, instances.max() + 1):
        mask = instances == cell
        padded = np.pad(mask, 1, mode="edge")  # the edge of the image is not a boundary
        inside = binary_erosion(padded, structure=[[0, 1, 0], [1, 1, 1], [0, 1, 0]])[1:-1, 1:-1]
        expected[mask] = 2
        expected[inside if inside.any() else mask] = 1
    assert np.array_equal(classes, expected)
    assert connected_components(classes == 1, connectivity=2).max() == len(np.unique(instances)) - 1


def test_an_instance_of_one_pixel_stays() -> None:
    instances = np.zeros((5, 5), dtype=np.uint16)
    instances[2, 2] = 9
    assert interior_and_boundary(instances)[2, 2] == 1
    assert not interior_and_boundary(np.zeros((5, 5), dtype=np.uint16)).any()
