"""The separable resampling against scikit-image's spline resize, which nnU-Net calls."""

import numpy as np
import pytest
from skimage.transform import resize

from umamba.preprocessing import resample_image, resample_label
from umamba.preprocessing.resample import separate_axis


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("new_shape", [(9, 13, 31), (20, 11, 40), (12, 17, 23), (5, 70, 90)])
def test_isotropic_images(order: int, new_shape: tuple[int, ...]) -> None:
    volume = np.random.default_rng(0).normal(size=(12, 17, 23))
    expected = resize(volume, new_shape, order, mode="edge", anti_aliasing=False, clip=True)
    found = resample_image(volume[None].astype(np.float32), new_shape, (1, 1, 1), (1, 1, 1), order)[0]
    assert np.abs(found - expected).max() < 2e-5


def test_the_thick_axis_takes_the_nearest_slice() -> None:
    volume = np.random.default_rng(0).normal(size=(4, 10, 12)).astype(np.float32)
    found = resample_image(volume[None], (8, 15, 12), (6, 1, 1), (3, 1, 1))[0]
    slices = [resize(each, (15, 12), 3, mode="edge", anti_aliasing=False, clip=True) for each in volume]
    for index in range(8):
        assert np.abs(found[index] - slices[index // 2]).max() < 2e-5


def test_labels_take_the_largest_indicator() -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(-1, 4, (6, 9, 11)).astype(np.int16)
    new_shape = (9, 12, 8)
    indicators = [
        resize((volume == value).astype(float), new_shape, 1, mode="edge", anti_aliasing=False, clip=True)
        for value in range(-1, 4)
    ]
    ranked = np.sort(indicators, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4  # elsewhere two labels are tied, and that of the nearest voxel wins
    expected = np.argmax(indicators, axis=0) - 1
    found = resample_label(volume[None], new_shape, (1, 1, 1), (1, 1, 1))[0]
    assert found.dtype == np.int16
    assert clear.mean() > 0.5
    assert np.array_equal(found[clear], expected[clear])


def test_nothing_changes_without_a_change_of_size() -> None:
    volume = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    assert np.array_equal(resample_image(volume, (3, 4, 5), (1, 1, 1), (9, 9, 9)), volume)


@pytest.mark.parametrize(
    ("current", "target", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((3, 1, 1), (1, 1, 1), None),  # exactly 3 times is not more than 3 times
        ((3.1, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (1, 4, 1), 1),
        ((5, 5, 1), (1, 1, 1), None),  # two axes share the coarsest spacing
        ((999, 1, 1), (999, 2, 2), 0),
    ],
)
def test_which_axis_is_separate(current: tuple[float, ...], target: tuple[float, ...], axis: int | None) -> None:
    assert separate_axis(current, target) == axis
