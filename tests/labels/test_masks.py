"""Masks, areas of slices and percentiles plane by plane, against numpy's own on whole arrays."""

import numpy as np
import pytest

from umamba.labels.masks import mask_of, outer_percentiles, slice_areas


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("shape", [(4, 5, 6), (7, 8)])
def test_masks(dtype: type, shape: tuple[int, ...]) -> None:
    segmentation: np.ndarray = np.random.default_rng(0).integers(0, 9, shape).astype(dtype)
    assert np.array_equal(mask_of(segmentation, [2, 7]), np.isin(segmentation, [2, 7]))
    assert np.array_equal(mask_of(segmentation[::-1, ::-1], [3]), segmentation[::-1, ::-1] == 3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_areas(axis: int) -> None:
    mask = np.random.default_rng(0).random((4, 5, 6)) < 0.3
    others = tuple(other for other in range(3) if other != axis)
    assert np.array_equal(slice_areas(mask, axis), mask.sum(axis=others))


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("shape", [(3, 40, 50), (51, 7), (1,), (402,)])
def test_percentiles(dtype: type, shape: tuple[int, ...]) -> None:
    values: np.ndarray = np.random.default_rng(0).normal(100, 30, shape).clip(0, 255).astype(dtype)
    if dtype == np.int16:
        values -= np.int16(300)
    low, high = outer_percentiles(values)
    assert low == pytest.approx(np.percentile(values, 0.5), rel=1e-6)
    assert high == pytest.approx(np.percentile(values, 99.5), rel=1e-6)
