"""Tiles of several patches: InstanceNorm measures the whole picture, and noise in dark parts stays noise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from umamba.inference import Model, Predictor
from umamba.inference.manifest import network_entry
from umamba.io import Image, UserError
from umamba.io.image import Geometry
from umamba.records import RunFolder
from umamba.runs import PreparedDataset
from umamba.runs import score as score_module
from umamba.runs.identity import checkpoint_record
from umamba.runs.trainer import build_trainer
from umamba.settings import PredictionSettings, TrainSettings
from umamba.training.case_validation import CaseValidation
from umamba.training.module import SegmentationModule

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


def test_a_run_validates_and_scores_with_the_tiles_of_its_prediction(
    make_settings: Callable[..., TrainSettings], prepared: PreparedDataset, tmp_path: Path
) -> None:
    settings = make_settings("predict.tile_scale=2", "data.validate_cases_every=1", "predict.engine=torch")
    trainer = build_trainer(settings, prepared, RunFolder(tmp_path / "run"), list(prepared.store.case_ids)[:1])
    assert [own.tile_scale for own in trainer.callbacks if isinstance(own, CaseValidation)] == [2]  # type: ignore[attr-defined]
    module = SegmentationModule(checkpoint_record(settings, prepared))
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "last.ckpt")
    (model,) = score_module._predictor(settings, tmp_path / "last.ckpt").models
    assert model.tile_scale == 2
