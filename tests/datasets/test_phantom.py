"""The phantom is valid, deterministic, varied, and has the intensities of a CT."""

from pathlib import Path

import numpy as np
import pytest

from umamba.datasets import inspect_case, list_findings, read_dataset, write_phantom
from umamba.datasets.anatomy import PHANTOM_ORGANS
from umamba.datasets.phantom import phantom_case
from umamba.datasets.shapes import TALL, Ellipsoid, Grid
from umamba.io import UserError


def test_written_data_set_is_sound(tmp_path: Path) -> None:
    root = write_phantom(tmp_path / "Dataset900_Phantom", num_training=3, num_test=1, seed=0, voxel_mm=8)
    dataset, findings = list_findings(root)
    assert findings == []
    assert dataset is not None
    assert dataset.labels.names == PHANTOM_ORGANS
    assert (len(dataset.training), len(dataset.test)) == (3, 1)
    for case in (*dataset.training, *dataset.test):
        inspection = inspect_case(dataset, case)
        assert inspection.findings == ()
        assert inspection.label is not None
        assert set(np.unique(inspection.label.array)) == set(range(6))


def test_second_call_keeps_it_and_other_arguments_are_refused(tmp_path: Path) -> None:
    settings = {"num_training": 1, "num_test": 1, "seed": 0, "voxel_mm": 16}
    root = write_phantom(tmp_path / "phantom", **settings)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_phantom(root, **settings)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(UserError, match="other settings"):
        write_phantom(root, **settings | {"seed": 1})
    with pytest.raises(UserError, match="num_training"):
        write_phantom(tmp_path / "none", **settings | {"num_training": 0})
    other = write_phantom(tmp_path / "other", **settings | {"num_test": 0})
    assert len(read_dataset(other).training) == 1


def test_deterministic_and_varied() -> None:
    first, again, second = (phantom_case(0, index, 10) for index in (0, 0, 1))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.spacing_xyz == again.spacing_xyz != second.spacing_xyz
    assert first.direction_xyz != second.direction_xyz
    assert phantom_case(1, 0, 10).spacing_xyz != first.spacing_xyz
    tilted = np.reshape(phantom_case(0, 2, 10).direction_xyz, (3, 3))
    np.testing.assert_allclose(tilted @ tilted.T, np.eye(3), atol=1e-12)
    assert not np.isin(tilted, (-1, 0, 1)).all()


def test_intensities_and_sides() -> None:
    case = phantom_case(0, 0)
    assert case.image.dtype == np.int16
    expected = {
        "liver": (85, 130),
        "right kidney": (120, 200),
        "spleen": (90, 150),
        "left kidney": (120, 200),
        "aorta": (130, 230),
    }
    centre = {}
    for value, organ in enumerate(PHANTOM_ORGANS, start=1):
        where = case.label == value
        low, high = expected[organ]
        assert low < case.image[where].mean() < high, organ
        centre[organ] = np.argwhere(where).mean(axis=0)
    assert 1000e3 < (case.label == 1).sum() * np.prod(case.spacing_xyz) < 2200e3  # a liver has 1 to 2.2 litres
    assert case.image[:, 0, 0].mean() == pytest.approx(-1000, abs=15)
    # Case 0 has the identity direction: x points to the patient's left, z to the head.
    assert centre["liver"][2] < centre["aorta"][2] < centre["spleen"][2]
    assert centre["right kidney"][2] < centre["aorta"][2] < centre["left kidney"][2]
    assert centre["right kidney"][0] < centre["liver"][0]


def test_label_is_the_majority_of_a_finer_sampling() -> None:
    """Doubling the number of sub-slices changes only voxels at boundaries."""
    label = phantom_case(0, 4).label
    counts = np.bincount(label.ravel(), minlength=6)
    assert (counts[1:] > 300).all()


@pytest.mark.parametrize("tilt", [0.0, 0.35])
def test_no_point_outside_a_window_is_near_its_shape(tilt: float) -> None:
    """Distances over the whole image, shape by shape: what lies outside the window is farther than half an edge."""
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1.0]])
    grid = Grid(turn * (3.5, -3.1, 5.5), np.array([-40.0, 45, -38]), (25, 28, 14), 3, 12.0)
    generator = np.random.default_rng(0)
    outside = 0
    for radii in [(20, 9, 30), (4, 25, 4.5), (8, 8, TALL), (30, 4, TALL)] * 8:
        centre, sway = generator.uniform(-30, 30, 3), generator.uniform(0, 9)
        wave = [axis + np.float32(sway) * np.sin(axis / 5) for axis in grid.points]
        shape = Ellipsoid(tuple(centre), radii, (wave[0], wave[1], wave[2]), sway)
        far = np.ones(grid.shape, dtype=bool)
        far[shape.window(grid)] = False
        outside += far.sum()
        assert shape.on(grid.everything)[far].min(initial=np.inf) > grid.edge_mm / 2
    assert outside > 4 * far.size, "the windows are most of the image"
