"""Tiling: exact for networks that work voxel by voxel, whatever the sizes; the tiles and weights of nnU-Net's rule."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from umamba.inference import predict_logits
from umamba.inference.tiling import gaussian_weights, tile_starts
from umamba.planning import Configuration


def configuration(patch_size: tuple[int, ...]) -> Configuration:
    """Return a configuration with a patch size and nothing else of interest."""
    dim = len(patch_size)
    return Configuration(
        name="2d" if dim == 2 else "3d_fullres",
        spacing=(1.0,) * dim,
        median_shape=(64.0,) * dim,
        patch_size=patch_size,
        batch_size=2,
        batch_dice=False,
        normalization=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        strides=((1,) * dim,),
        kernel_sizes=((3,) * dim,),
        features_per_stage=(4,),
        encoder_blocks=(2,),
        decoder_blocks=(),
        residual_encoder=False,
    )


class Recorder(nn.Module):
    """Returns its input, and remembers the shapes it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        return x


sizes = st.integers(1, 14)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(sizes, sizes, sizes),
    patch=st.tuples(sizes, sizes, sizes) | st.tuples(sizes, sizes),
    step=st.floats(0.2, 1.0),
    tta=st.booleans(),
    tiles_at_once=st.integers(1, 5),
)
def test_identity_gives_the_image_back(
    shape: tuple[int, ...], patch: tuple[int, ...], step: float, tta: bool, tiles_at_once: int
) -> None:
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    network = Recorder()
    logits = predict_logits(
        network,
        image,
        configuration(patch),
        num_classes=2,
        tile_step_size=step,
        tta=tta,
        tiles_at_once=tiles_at_once,
    )
    torch.testing.assert_close(logits, image, rtol=1e-5, atol=1e-6)
    assert {seen[2:] for seen in network.shapes} == {patch}
    assert max(seen[0] for seen in network.shapes) <= tiles_at_once


@pytest.mark.parametrize(
    ("length", "patch", "step", "expected"),
    [(10, 10, 0.5, [0]), (11, 10, 0.5, [0, 1]), (20, 10, 0.5, [0, 5, 10]), (21, 10, 0.5, [0, 4, 7, 11])],
)
def test_tile_starts(length: int, patch: int, step: float, expected: list[int]) -> None:
    assert tile_starts(length, patch, step) == expected


def test_unusable_steps_are_refused() -> None:
    for step in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match="tile_step_size"):
            tile_starts(20, 10, step)


@pytest.mark.parametrize("patch", [(8, 13, 32), (1, 64, 64), (160, 160), (1, 1, 1)])
def test_weights_are_positive_and_highest_in_the_centre(patch: tuple[int, ...]) -> None:
    weights = gaussian_weights(patch)
    assert weights.shape == patch
    assert (weights > 0).all()
    assert weights[tuple(length // 2 for length in patch)] == weights.max() == 1
    sigma = patch[-1] / 8
    row = weights[tuple(length // 2 for length in patch[:-1])].numpy()
    expected = np.exp(-0.5 * ((np.arange(patch[-1]) - patch[-1] // 2) / sigma) ** 2)
    np.testing.assert_allclose(row, expected, rtol=1e-6)


class Uneven(nn.Module):
    """Multiplies each voxel by its place in the patch, so that tiles disagree."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.arange(x.shape[-1], dtype=x.dtype)
        return x * ramp


def test_overlapping_tiles_are_averaged_by_weight() -> None:
    image = torch.ones(1, 1, 1, 12)
    logits = predict_logits(Uneven(), image, configuration((1, 1, 8)), num_classes=1)
    weight = np.exp(-0.5 * (np.arange(8) - 4.0) ** 2)
    tiles = [0, 4]
    for voxel in range(12):
        inside = [voxel - start for start in tiles if 0 <= voxel - start < 8]
        expected = sum(weight[i] * i for i in inside) / sum(weight[i] for i in inside)
        assert logits[0, 0, 0, voxel].item() == pytest.approx(expected, rel=1e-5)


def test_mirroring_is_the_mean_over_all_flips() -> None:
    image = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    logits = predict_logits(Uneven(), image, configuration((2, 3, 4)), num_classes=1, tta=True)
    torch.testing.assert_close(logits, image * 1.5)  # mean of the ramp 0..3 and its mirror image


def test_first_of_several_outputs_counts() -> None:
    class Deep(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return [x, x[..., ::2]]

    image = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(predict_logits(Deep(), image, configuration((2, 6, 6)), num_classes=1), image)


def test_wrong_heads_and_precision_are_refused() -> None:
    image = torch.zeros(1, 2, 2, 2)
    with pytest.raises(ValueError, match="outputs"):
        predict_logits(Recorder(), image, configuration((2, 2, 2)), num_classes=3)
    with pytest.raises(ValueError, match="precision"):
        predict_logits(Recorder(), image, configuration((2, 2, 2)), num_classes=1, precision="8-bit")


def test_bfloat16_runs_close_to_float32() -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 3, padding=1)
    image = torch.randn(1, 6, 12, 12)
    full, half = (
        predict_logits(network, image, configuration((6, 8, 8)), num_classes=3, precision=precision)
        for precision in ("32-true", "bf16-mixed")
    )
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.05
