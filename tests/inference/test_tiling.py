"""Tiling: exact for voxel-wise networks of all sizes, tiles and weights of nnU-Net's rule, equal under any limit."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from umamba.inference import Model, half_sums, tiling
from umamba.inference.half_sums import add_weighted
from umamba.inference.resize import axis_maps, resize_box
from umamba.inference.slabs import SlabLayout, View, choose_layout, count_tiles, give_slabs, logits_bytes
from umamba.inference.tiling import gaussian_weights, tile_starts, tiles_along
from umamba.io import UserError
from umamba.settings import SlidingWindowSettings

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """Returns its input, and remembers the shapes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return x


class Uneven(nn.Module):
    """Multiplies each voxel by its position in the patch, so that overlapping tiles differ."""

    def forward(self, x: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            x = x * torch.arange(1, x.shape[axis] + 1, dtype=x.dtype).reshape([-1] + [1] * (x.ndim - 1 - axis))
        return x


def logits_of(model: Model, image: Tensor, step: float, *, limit: float | None = None, tta: bool = False) -> Tensor:
    """Return the logits of an image, put together from the slabs under a memory limit."""
    shape = image.shape[1:]
    view = View(model, image, axis_maps(shape, shape, (1, 1, 1), (1, 1, 1)))
    layout = choose_layout([view], shape, limit)
    assert layout is not None
    result = torch.full((model.labels.num_classes, *shape), torch.nan)
    tiles: list[int] = []
    for box, (slab,) in give_slabs(
        [view],
        shape,
        layout,
        SlidingWindowSettings(tile_step_size=step, tta=tta),
        sums_on=CPU,
        advance=tiles.append,
    ):
        assert slab.first == (box[0].start, box[1].start)
        result[(slice(None), *box)] = slab.logits.float()
    assert sum(tiles) == count_tiles([view], shape, layout, step)
    return result


def test_compiled_sums_in_half_precision_have_the_bits_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    sums = torch.randn((5, 6, 40), generator=generator).half()
    sums[0, 0, :8] = torch.tensor([0.0, 6e-8, -3e-6, 65504.0, -65504.0, torch.inf, -torch.inf, torch.nan])
    part = torch.randn((3, 4, 20), generator=generator).bfloat16() * 1e-3
    part[0, 0, :4] = torch.tensor([7e8, -7e8, torch.nan, torch.inf])
    weights = tuple(torch.rand(length, generator=generator) for length in part.shape)
    expected = sums.clone()
    expected[1:4, 2:6, 15:35] += part.float() * (weights[0][:, None, None] * weights[1][:, None] * weights[2])
    add_weighted(sums, (1, 2, 15), part, weights)  # type: ignore[arg-type]
    assert torch.equal(sums.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    with pytest.raises(ValueError, match="exceeds the sums"):
        add_weighted(sums, (3, 2, 15), part, weights)  # type: ignore[arg-type]
    # All float16 values keep their bits when zero is added, and random float32 values are rounded as PyTorch does.
    every = torch.arange(-(1 << 15), 1 << 15).short().view(torch.float16).reshape(1, 1, -1)
    kept, ones = every.clone(), (torch.ones(1), torch.ones(1), torch.ones(1 << 16))
    add_weighted(kept, (0, 0, 0), torch.zeros(every.shape), ones)
    assert torch.equal(kept.nan_to_num(nan=7.0), (every + 0).nan_to_num(nan=7.0))
    values = torch.randint(-(1 << 31), 1 << 31, (1, 1, 1 << 16), generator=generator).int().view(torch.float32)
    rounded = torch.zeros((1, 1, 1 << 16), dtype=torch.float16)
    add_weighted(rounded, (0, 0, 0), values, ones)
    assert torch.equal(rounded.nan_to_num(nan=7.0), values.half().nan_to_num(nan=7.0))


@pytest.mark.parametrize("size", [17, 31, 70])
def test_the_last_axis_is_resampled_with_one_rounding_in_any_box(size: int) -> None:
    maps = axis_maps((5, 4, 24), (5, 4, size), (1, 1, 1), (1, 1, 24 / size))
    logits = torch.randn((5, 4, 24), generator=torch.Generator().manual_seed(size))
    low, high, share = maps[2].low, maps[2].high, maps[2].share
    exact = (
        logits[..., low].double() * (1 - share) + logits[..., high].double() * share
    )  # products of float32 are exact
    columns = slice(0, size)
    for planes, rows in ((slice(0, 5), slice(0, 4)), (slice(2, 3), slice(1, 2)), (slice(0, 2), slice(0, 3))):
        part = logits[planes, rows]
        found = resize_box(part, (planes.start, rows.start), maps, (planes, rows, columns))
        assert torch.equal(found, exact[planes, rows].float())


@pytest.mark.parametrize("limit", [None, 1])
def test_large_sums_are_compiled_and_equal(
    make_model: Callable[..., Model], limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(Uneven(), (4, 6, 8), 2, precision="bf16-mixed")
    image = torch.randn((2, 9, 11, 13), generator=torch.Generator().manual_seed(0))
    limit = limit and logits_bytes(
        View(model, image, axis_maps((9, 11, 13), (9, 11, 13), (1, 1, 1), (1, 1, 1))), (9, 11, 13), SlabLayout(2, 2)
    )
    expected = logits_of(model, image, 0.5, limit=limit)
    calls: list[int] = []
    monkeypatch.setattr(tiling, "_COMPILED_FROM", 0)
    add = half_sums._add

    def counted(*given: Any) -> None:
        calls.append(1)
        add(*given)

    monkeypatch.setattr(half_sums, "_add", counted)
    assert torch.equal(logits_of(model, image, 0.5, limit=limit), expected)
    assert calls


def naive_logits(network: nn.Module, image: np.ndarray, patch: Sequence[int], step: float) -> np.ndarray:
    """Sum weighted tiles and weights in whole volumes, then divide: the rule as it is written."""
    amounts = [max(size - length, 0) for size, length in zip(patch, image.shape[1:], strict=True)]
    padding = [(amount // 2, amount - amount // 2) for amount in amounts]
    padded = np.pad(image, [(0, 0), *padding]).astype(np.float64)
    grids = np.meshgrid(*[(np.arange(size) - size // 2) / (size / 8) for size in patch], indexing="ij")
    gaussian = np.exp(-0.5 * sum(grid**2 for grid in grids))
    total, weights = np.zeros_like(padded), np.zeros(padded.shape[1:])
    starts = [tile_starts(length, size, step) for length, size in zip(padded.shape[1:], patch, strict=True)]
    for start in itertools.product(*starts):
        place = tuple(slice(first, first + size) for first, size in zip(start, patch, strict=True))
        total[(slice(None), *place)] += (
            network(torch.from_numpy(padded[(slice(None), *place)])[None])[0].numpy() * gaussian
        )
        weights[place] += gaussian
    inner = tuple(slice(before, before + length) for (before, _), length in zip(padding, image.shape[1:], strict=True))
    return (total / weights)[(slice(None), *inner)]


sizes = st.integers(1, 11)


@settings(max_examples=500, deadline=None)
@given(
    shape=st.tuples(sizes, sizes, sizes),
    patch=st.tuples(sizes, sizes, sizes) | st.tuples(sizes, sizes),
    step=st.floats(0.3, 1.0),
    share=st.floats(0, 1),
    tta=st.booleans(),
    forward=st.sampled_from([(0, 1, 2), (1, 0, 2), (2, 0, 1)]),
)
def test_identity_gives_the_image_back_within_any_limit(
    make_model: Callable[..., Model],
    shape: tuple[int, ...],
    patch: tuple[int, ...],
    step: float,
    share: float,
    tta: bool,
    forward: tuple[int, int, int],
) -> None:
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    recorder = Recorder()
    model = make_model(recorder, patch, 2, forward=forward)
    whole = logits_of(model, image, step, tta=tta)
    torch.testing.assert_close(whole, image, rtol=1e-5, atol=1e-6)
    assert {seen[2:] for seen in recorder.shapes} == {patch}
    view = View(model, image, axis_maps(shape, shape, (1, 1, 1), (1, 1, 1)))
    least = logits_bytes(view, shape, SlabLayout(shape[1], 1))
    most = logits_bytes(view, shape, SlabLayout(1, shape[0]))
    assert most == image.nbytes
    limit = least + share * max(0, most - least)
    layout = choose_layout([view], shape, limit)
    assert layout is not None
    assert logits_bytes(view, shape, layout) <= limit
    assert torch.equal(logits_of(model, image, step, limit=limit, tta=tta), whole)


@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(sizes, sizes, sizes), patch=st.tuples(sizes, sizes, sizes), step=st.floats(0.2, 1.0))
def test_tiles_that_differ_are_averaged_by_the_rule(
    make_model: Callable[..., Model], shape: tuple[int, ...], patch: tuple[int, ...], step: float
) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    model = make_model(Uneven(), patch, 1)
    expected = torch.from_numpy(naive_logits(Uneven(), image.numpy(), patch, step)).float()
    torch.testing.assert_close(logits_of(model, image, step), expected, rtol=1e-4, atol=1e-3)
    view = View(model, image, axis_maps(shape, shape, (1, 1, 1), (1, 1, 1)))
    limit = logits_bytes(view, shape, SlabLayout(2, 1))
    torch.testing.assert_close(logits_of(model, image, step, limit=limit), expected, rtol=1e-4, atol=1e-3)


def test_half_precision_sums_are_close(make_model: Callable[..., Model]) -> None:
    image = 20 * torch.randn(2, 20, 17, 19, generator=torch.Generator().manual_seed(0))
    model = make_model(nn.Identity(), (8, 8, 8), 2, precision="bf16-mixed")
    assert model.sums_dtype == torch.float16
    found = logits_of(model, image, 0.5)
    assert 0 < (found - image).abs().max() < 20 * 4 * 2**-11 * 3
    assert torch.equal(logits_of(model, image, 0.5, limit=2 * 2 * 9 * 17 * 19), found)


@pytest.mark.parametrize(
    ("length", "patch", "step", "expected"),
    [
        (10, 10, 0.5, [0]),
        (11, 10, 0.5, [0, 1]),
        (20, 10, 0.5, [0, 5, 10]),
        (21, 10, 0.5, [0, 4, 7, 11]),
        (5, 1, 0.5, [0, 1, 2, 3, 4]),
        (6, 2, 0.3, [0, 1, 2, 3, 4]),
    ],
)
def test_tile_starts(length: int, patch: int, step: float, expected: list[int]) -> None:
    assert tile_starts(length, patch, step) == expected


@pytest.mark.parametrize("limited", [False, True])
def test_a_2d_network_computes_each_slice_once(make_model: Callable[..., Model], limited: bool) -> None:
    """Tiles of 8 x 8 and steps of 4 voxels: 20 voxels need 4 tiles, 13 need 3, and 15 slices need 15 x 4 x 3 tiles."""
    recorder, shape = Recorder(), (15, 20, 13)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    model = make_model(recorder, (8, 8), 1, num_channels=1)
    view = View(model, image, axis_maps(shape, shape, (1, 1, 1), (1, 1, 1)))
    limit = logits_bytes(view, shape, SlabLayout(1, 4)) if limited else None
    torch.testing.assert_close(logits_of(model, image, 0.5, limit=limit), image)
    assert sum(seen[0] for seen in recorder.shapes) == 15 * 4 * 3


@pytest.mark.parametrize("length", [1, 8, 13, 64, 160])
def test_weights_are_a_gaussian_and_shares_add_up(length: int) -> None:
    weights = gaussian_weights(length)
    assert (weights > 0).all()
    assert weights[length // 2] == weights.max() == 1
    expected = np.exp(-0.5 * ((np.arange(length) - length // 2) / (length / 8)) ** 2)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-9)
    total = torch.zeros(3 * length + 1)
    for tile in tiles_along(3 * length + 1, length, 0.5):
        total[tile.start : tile.stop] += tile.weights
    torch.testing.assert_close(total, torch.ones_like(total))


def test_small_images_lie_in_the_middle_of_the_tile() -> None:
    (tile,) = tiles_along(5, 8, 0.5)
    assert (tile.start, tile.stop) == (-1, 7)


def test_mirroring_is_the_mean_over_all_flips(make_model: Callable[..., Model]) -> None:
    class Ramp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.arange(x.shape[-1], dtype=x.dtype)

    image = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    logits = logits_of(make_model(Ramp(), (2, 3, 4), 1), image, 0.5, tta=True)
    torch.testing.assert_close(logits, image * 1.5)  # mean of the ramp 0..3 and its mirror image


def test_first_of_several_outputs_counts(make_model: Callable[..., Model]) -> None:
    class Deep(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return [x, x[..., ::2]]

    image = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(logits_of(make_model(Deep(), (2, 6, 6), 1), image, 0.5), image)


def test_wrong_heads_and_precision_are_refused(make_model: Callable[..., Model]) -> None:
    with pytest.raises(ValueError, match="outputs"):
        logits_of(make_model(Recorder(), (2, 2, 2), 3), torch.zeros(1, 2, 2, 2), 0.5)
    with pytest.raises(UserError, match="precision"):
        make_model(Recorder(), (2, 2, 2), 1, precision="8-bit")


def test_bfloat16_runs_close_to_float32(make_model: Callable[..., Model]) -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 3, padding=1)
    image = torch.randn(1, 6, 12, 12)
    full, half = (
        logits_of(make_model(network, (6, 8, 8), 3, num_channels=1, precision=precision), image, 0.5)
        for precision in ("32-true", "bf16-mixed")
    )
    assert 0 < (full - half).abs().max() < 0.05


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("share", [None, 1.0, 0.0])
def test_slices_far_apart(make_model: Callable[..., Model], slices: int, share: float | None) -> None:
    """Slices of 80 mm on a grid of 2 mm: most rows of the grid are not wanted; tiles that end before are left out."""
    grid, crop = (40 * slices, 9, 7), (slices, 9, 7)
    image = torch.randn(1, *grid, generator=torch.Generator().manual_seed(0))
    recorder = Recorder()

    class Counted(Uneven):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(recorder(x))

    model = make_model(Counted(), (16, 4, 4), 1)
    view = View(model, image, axis_maps(grid, crop, (2, 1, 1), (80, 1, 1)))
    least, most = (logits_bytes(view, crop, SlabLayout(*cut)) for cut in ((crop[1], 1), (1, slices)))
    layout = choose_layout([view], crop, None if share is None else least + share * (most - least))
    assert layout is not None
    tiles: list[int] = []
    found = torch.full(crop, torch.nan)
    asked = SlidingWindowSettings(tile_step_size=0.5)
    for box, (slab,) in give_slabs([view], crop, layout, asked, sums_on=CPU, advance=tiles.append):
        found[box] = slab.resized(0, box)
    wanted = [20 + 40 * index for index in range(slices)]  # the nearest rows of the grid to the slices' centres
    expected = naive_logits(Uneven(), image.numpy(), (16, 4, 4), 0.5)[0][wanted]
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-3)
    assert sum(tiles) == len(recorder.shapes) == count_tiles([view], crop, layout, 0.5)
