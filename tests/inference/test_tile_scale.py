"""Tiles of several patches: InstanceNorm measures the whole picture, and noise in dark parts stays noise."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from umamba.inference import Model, Predictor
from umamba.inference.manifest import network_entry
from umamba.io import Image, UserError
from umamba.io.image import Geometry
from umamba.settings import PredictionSettings

ABOVE = 1.5  # standard deviations from which on a pixel is foreground


class Bright(nn.Module):
    """Foreground is what lies above the mean of a tile by more than `ABOVE` standard deviations."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return torch.cat([torch.full_like(y, ABOVE), y], dim=1)


class OfOnePatch(Bright):
    """Weights that are tied to the patch."""

    fixed_patch_size = (16, 16)


def dark_picture() -> np.ndarray:
    """Return a picture (1, 1, 32, 32) with a bright square and faint noise elsewhere."""
    array = 10 + 0.01 * np.random.default_rng(0).standard_normal((1, 1, 32, 32)).astype(np.float32)
    array[0, 0, 4:9, 5:11] = 100
    return array


def segmented(model: Model) -> np.ndarray:
    geometry = Geometry((999.0, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), (1, 32, 32), True)
    asked = PredictionSettings(tile_step_size=1.0)
    return Predictor((model,)).predict_image(Image(dark_picture(), geometry), asked)


def test_noise_in_dark_tiles_is_not_lifted(make_model: Callable[..., Model]) -> None:
    model = make_model(Bright(), (16, 16), 2, num_channels=1)
    array = dark_picture()[0]
    expected = array > array.mean() + ABOVE * array.std()
    assert not expected[:, 16:].any()
    assert segmented(model)[:, 16:].sum() > 10  # tiles of one patch that hold noise only
    scaled = replace(model, tile_scale=2)
    assert scaled.window == (1, 32, 32)
    assert scaled.tile_shape == (8, 1, 32, 32)
    assert np.array_equal(segmented(scaled), expected)
    assert network_entry(scaled)["tile_scale"] == 2


def test_a_network_of_one_patch_size_refuses_it(make_model: Callable[..., Model]) -> None:
    model = make_model(OfOnePatch(), (16, 16), 2, num_channels=1)
    with pytest.raises(UserError, match=r"tile_scale=2: .* tied to its patch of 16 x 16 voxels\. Give tile_scale=1"):
        replace(model, tile_scale=2)
