"""Levels of depth against slow distances, and cells that come back from them."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from umamba.evaluation.objects import match_objects
from umamba.labels import LabelSet
from umamba.labels.instance_depth import DEPTH_CLASSES, depth_levels, instances_of_depth, level_count
from umamba.labels.instance_maps import grouped_instances, interior_and_boundary, numbered_instances

DEPTH = LabelSet(DEPTH_CLASSES, ((1,), (2,), (3,), (4,)))
BORDER = LabelSet(("interior", "boundary"), ((1,), (2,)))


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    return sum((axis - at) ** 2 for axis, at in zip(np.indices(shape), centre, strict=True)) <= radius**2


def touching(dim: int) -> np.ndarray:
    """Return two balls that touch, a small one, one voxel, and a cell that is cut by the image's edge."""
    shape = (30, 60) if dim == 2 else (9, 30, 60)
    middle = (4,) * (dim - 2)
    cells = np.where(ball(shape, (*middle, 14, 14), 8), 3, 0)
    cells[ball(shape, (*middle, 15, 29), 8) & (cells == 0)] = 4
    cells[ball(shape, (*middle, 14, 46), 3)] = 9
    cells[(*middle, 25, 50)] = 11
    cells[ball(shape, (*middle, 29, 2), 6)] = 12
    return cells


def test_levels_are_the_relative_distance_to_the_outline() -> None:
    cells = touching(2)
    found = depth_levels(cells)
    for number in np.unique(cells[cells > 0]):
        inside, others = np.argwhere(cells == number), np.argwhere(cells != number)
        away = np.sqrt(((inside[:, None] - others[None]) ** 2).sum(-1)).min(1)
        for voxel, distance in zip(inside, away, strict=True):
            share = distance / away.max()
            assert found[tuple(voxel)] == next(level for level in (1, 2, 3, 4) if share <= level / 4 + 1e-9)
        assert found[cells == number].max() == 4
    assert not found[cells == 0].any()


def test_a_cell_that_fills_the_image_is_deep_everywhere() -> None:
    assert (depth_levels(np.ones((4, 5), dtype=int)) == 4).all()


@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
@pytest.mark.parametrize("convert", [depth_levels, interior_and_boundary])
def test_large_numbers_cost_no_memory(convert: Callable[[np.ndarray], np.ndarray], dtype: type) -> None:
    cells = touching(2)
    large: np.ndarray = cells.astype(dtype)
    large[cells == 4] = 50_000_000
    large[cells == 9] = 3_000_000
    expected = convert(cells)
    convert(cells.astype(dtype))  # loads all modules
    tracemalloc.start()
    found = convert(large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(found, expected)
    assert peak < 10_000_000  # an entry for each number would need 50 MB and more
    full = large.copy()
    full[full == 0] = 70_000_000  # without any background
    assert np.array_equal(convert(full), convert(np.where(cells == 0, 2, cells)))


@pytest.mark.parametrize("dim", [2, 3])
def test_cells_come_back(dim: int) -> None:
    cells = touching(dim)
    found = instances_of_depth(depth_levels(cells))
    assert np.array_equal(found > 0, cells > 0)
    assert match_objects(cells, found, 0.9) == (5, 5, 5)


def test_cells_stay_apart_where_the_outline_between_them_is_gone() -> None:
    """Between two cells, all shallow voxels are predicted as the next level; interior and boundary would join them."""
    cells = touching(2)
    gap = np.zeros(cells.shape, dtype=bool)
    gap[10:20, 18:26] = True
    classes = depth_levels(cells)
    classes[gap & (classes == 1)] = 2
    assert match_objects(cells, instances_of_depth(classes), 0.9).hits == 5
    borders = interior_and_boundary(cells)
    borders[gap & (borders == 2)] = 1
    assert match_objects(cells, numbered_instances(borders, "components"), 0.3).hits < 5


def test_a_shallow_speck_is_noise_and_a_cell_without_its_deepest_level_is_not() -> None:
    classes = np.zeros((8, 20), dtype=np.uint8)
    classes[2:4, 2:4] = 2
    classes[2:7, 10:15] = 2
    classes[3:6, 11:14] = 3
    found = instances_of_depth(classes)
    assert found.max() == 1
    assert np.array_equal(found > 0, np.isin(np.arange(20), range(10, 15))[None] & (classes > 0))
    assert not instances_of_depth(np.zeros((3, 4), np.uint8)).any()


def test_the_labels_decide_how_instances_are_grouped() -> None:
    cells = touching(2)
    assert level_count(DEPTH) == 4
    assert not level_count(BORDER)
    assert not level_count(LabelSet(("depth 1", "depth 3"), ((1,), (2,))))
    deep = grouped_instances(depth_levels(cells), DEPTH, "watershed")
    flat = grouped_instances(interior_and_boundary(cells), BORDER, "watershed")
    assert match_objects(deep, flat, 0.9) == (4, 4, 4)  # the cell of one voxel is too small beside the others
