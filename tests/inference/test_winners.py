"""Labels painted by compiled code against a slow float64 interpolation of all logits, and against PyTorch's path."""

import itertools

import numpy as np
import pytest
import torch

from umamba.inference import canvas
from umamba.inference.canvas import Canvas, Placement, Slab
from umamba.inference.resize import AxisMaps, axis_maps, whole
from umamba.inference.winners import paint_winners
from umamba.labels import LabelSet

GRID, IMAGE = (5, 9, 11), (12, 14, 29)
ISOTROPIC = (1.0, 1.0, 1.0)


def smooth_logits(heads: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Return logits with areas of one winner and borders between them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, heads, 3, 3, 3), generator=generator)
    return torch.nn.functional.interpolate(coarse, shape, mode="trilinear")[0].contiguous()


def interpolated(logits: torch.Tensor, maps: AxisMaps) -> np.ndarray:
    """Return all logits on the image's grid in float64, axis after axis."""
    values = logits.double().numpy()
    for axis, own in enumerate(maps, start=1):
        share = own.share.double().numpy().reshape([-1 if each == axis else 1 for each in range(4)])
        low, high = values.take(own.low.numpy(), axis), values.take(own.high.numpy(), axis)
        values = low * (1 - share) + high * share
    return values


def painted(logits: torch.Tensor, maps: AxisMaps, labels: np.ndarray, regions: bool) -> np.ndarray:
    """Return the labels of the whole image."""
    shape = tuple(len(own.low) for own in maps)
    result = np.full(shape, 77, dtype=np.uint8)
    assert paint_winners(result, [Slab(logits, (0, 0), maps)], whole(shape), labels, regions=regions)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("image", [IMAGE, (5, 4, 23), (3, 5, 6), GRID])
def test_the_highest_interpolated_logit_wins(image: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = smooth_logits(4, GRID).to(dtype)
    maps = axis_maps(GRID, image, ISOTROPIC, ISOTROPIC)
    values = interpolated(logits, maps)
    clear = np.diff(np.sort(values, axis=0)[-2:], axis=0)[0] > 1e-5
    labels = np.array([0, 5, 9, 2], dtype=np.uint8)
    found = painted(logits, maps, labels, regions=False)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], labels[values.argmax(axis=0)][clear])


def test_a_head_that_wins_nowhere_on_the_grid_wins_between() -> None:
    logits = torch.tensor([[10.0, -10.0], [-10.0, 10.0], [4.0, 4.0]]).reshape(3, 1, 1, 2)
    maps = axis_maps((1, 1, 2), (1, 1, 20), ISOTROPIC, ISOTROPIC)
    found = painted(logits, maps, np.arange(3, dtype=np.uint8), regions=False)
    np.testing.assert_array_equal(found, interpolated(logits, maps).argmax(axis=0))
    assert set(found.ravel()) == {0, 1, 2}


def test_the_first_of_equal_heads_wins() -> None:
    logits = torch.ones(3, *GRID)
    logits[0, :, :4] = 0
    maps = axis_maps(GRID, IMAGE, ISOTROPIC, ISOTROPIC)
    found = painted(logits, maps, np.arange(3, dtype=np.uint8), regions=False)
    assert set(found.ravel()) == {0, 1}


def test_regions_are_painted_in_order() -> None:
    logits = smooth_logits(3, GRID, seed=1)
    maps = axis_maps(GRID, IMAGE, ISOTROPIC, ISOTROPIC)
    values = interpolated(logits, maps)
    expected = np.zeros(IMAGE, dtype=np.uint8)
    for head, label in enumerate((3, 1, 2)):
        expected[values[head] > 0] = label
    clear = (np.abs(values) > 1e-5).all(axis=0)
    found = painted(logits, maps, np.array([0, 3, 1, 2], dtype=np.uint8), regions=True)
    np.testing.assert_array_equal(found[clear], expected[clear])


def test_a_separate_axis_takes_the_nearest_plane() -> None:
    logits = smooth_logits(3, GRID, seed=2)
    maps = axis_maps(GRID, IMAGE, (5.0, 1.0, 1.0), (2.0, 1.0, 1.0))
    values = interpolated(logits, maps)
    np.testing.assert_array_equal(
        painted(logits, maps, np.arange(3, dtype=np.uint8), regions=False), values.argmax(axis=0)
    )


def test_boxes_of_an_image_are_painted_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umamba.inference.winners._BYTES", 4000)  # several blocks, too
    logits = smooth_logits(4, GRID, seed=3)
    maps = axis_maps(GRID, IMAGE, ISOTROPIC, ISOTROPIC)
    labels = np.arange(4, dtype=np.uint8)
    expected = painted(logits, maps, labels, regions=False)
    found = np.full(IMAGE, 77, dtype=np.uint8)
    cuts = (slice(0, 5), slice(5, 12)), (slice(0, 3), slice(3, 14))
    for planes, rows in itertools.product(*cuts):
        box = (planes, rows, slice(0, IMAGE[2]))
        z, y = maps[0].needed(planes), maps[1].needed(rows)
        part = logits[:, z, y]
        slab = Slab(part, (z.start, y.start), maps)
        assert paint_winners(found[planes, rows], [slab], box, labels, regions=False)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("networks", [1, 2])
def test_values_that_are_not_finite_are_noticed(value: float, networks: int) -> None:
    maps = axis_maps(GRID, IMAGE, ISOTROPIC, ISOTROPIC)
    slabs = [Slab(smooth_logits(3, GRID, seed), (0, 0), maps) for seed in range(networks)]
    slabs[-1].logits[1, 2, 3, 4] = value
    labels = np.arange(3, dtype=np.uint8)
    assert not paint_winners(np.zeros(IMAGE, np.uint8), slabs, whole(IMAGE), labels, regions=False)


def test_the_mean_of_the_probabilities_of_several_networks_decides() -> None:
    grids = (GRID, (7, 6, 15))  # of two plans
    logits = [4 * smooth_logits(4, shape, seed) for seed, shape in enumerate(grids)]
    maps = [axis_maps(shape, IMAGE, ISOTROPIC, ISOTROPIC) for shape in grids]
    mean = np.zeros((4, *IMAGE))
    for own, its in zip(logits, maps, strict=True):
        odds = np.exp(interpolated(own, its))
        mean += odds / odds.sum(axis=0) / 2
    clear = np.diff(np.sort(mean, axis=0)[-2:], axis=0)[0] > 1e-5
    labels = np.array([0, 5, 9, 2], dtype=np.uint8)
    found = np.full(IMAGE, 77, dtype=np.uint8)
    slabs = [Slab(own, (0, 0), its) for own, its in zip(logits, maps, strict=True)]
    assert paint_winners(found, slabs, whole(IMAGE), labels, regions=False)
    np.testing.assert_array_equal(found[clear], labels[mean.argmax(axis=0)][clear])
    assert (found != labels[interpolated(logits[0], maps[0]).argmax(axis=0)]).any()


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("order", [None, (2, 1)])
def test_large_images_get_the_labels_of_small_ones(
    monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...] | None, networks: int
) -> None:
    labels = LabelSet(("whole", "core"), ((1, 2), (2,)) if order else ((1,), (2,)), region_order=order)
    crop = (slice(1, 13), slice(0, 14), slice(2, 31))
    maps = axis_maps(GRID, IMAGE, ISOTROPIC, ISOTROPIC)
    slabs = [Slab(smooth_logits(labels.num_classes, GRID, 4 + k), (0, 0), maps) for k in range(networks)]
    found = []
    for limit in (1 << 40, 0):
        monkeypatch.setattr(canvas, "_LARGE", limit)
        own = Canvas(Placement((14, 15, 33), crop), labels)
        own.add(whole(IMAGE), slabs)
        found.append(own.segmentation)
    np.testing.assert_array_equal(found[0], found[1])
    assert len(set(found[0].ravel())) > 1
