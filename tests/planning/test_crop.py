"""The nonzero mask and its box against scipy's binary_fill_holes."""

import numpy as np
import pytest
from scipy import ndimage

from umamba.planning import nonzero_box, nonzero_extent


@pytest.mark.parametrize("share", [0.0, 0.005, 0.015, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(9, 20, 31), (1, 40, 30)])
def test_the_mask_is_the_nonzero_voxels_with_holes_filled(shape: tuple[int, ...], share: float) -> None:
    array = (np.random.default_rng(int(100 * share)).random((2, *shape)) >= share**0.5).astype(np.float32)
    mask, box = nonzero_box(array)
    assert np.array_equal(mask, ndimage.binary_fill_holes(array.any(axis=0)))
    assert nonzero_extent(array) == box
    occupied = np.argwhere(array.any(axis=0))
    if len(occupied):
        assert [(extent.start, extent.stop) for extent in box] == [
            (low, high + 1) for low, high in zip(occupied.min(axis=0), occupied.max(axis=0), strict=True)
        ]


@pytest.mark.parametrize("places", [[(0, 3, 4, 5)], [(0, 1, 2, 3), (1, 6, 2, 0)], [], [(1, 8, 19, 30)]])
def test_the_extent_of_few_voxels(places: list[tuple[int, ...]]) -> None:
    array = np.zeros((2, 9, 20, 31), np.int16)
    for place in places:
        array[place] = 1
    occupied = np.argwhere(array.any(axis=0)) if places else np.array([(0, 0, 0), (8, 19, 30)])
    expected = [(low, high + 1) for low, high in zip(occupied.min(axis=0), occupied.max(axis=0), strict=True)]
    for axes in ((0, 1, 2, 3), (0, 3, 1, 2)):  # also of a view whose rows are not contiguous
        found = nonzero_extent(array.transpose(axes))
        assert [(extent.start, extent.stop) for extent in found] == [expected[axis - 1] for axis in axes[1:]]


def test_a_thin_tunnel_from_the_border_is_no_hole() -> None:
    array = np.ones((1, 30, 30, 30), np.float32)
    array[0, 5, 5, :20] = 0  # a tunnel that begins at the face x = 0
    array[0, 5, 5:12, 19] = 0  # and turns a corner
    array[0, 20, 20, 20] = 0  # a hole
    mask, box = nonzero_box(array)
    assert box == (slice(0, 30),) * 3
    assert not mask[5, 5, :20].any()
    assert not mask[5, 5:12, 19].any()
    assert mask[20, 20, 20]
    assert mask.sum() == 30**3 - 20 - 6
