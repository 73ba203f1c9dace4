"""Prediction with the second stage of a cascade: the labels of the first one reach the network, on its grid."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from skimage.transform import resize
from torch import Tensor, nn

from umamba.datasets import RawCase
from umamba.inference import Model, Predictor
from umamba.inference.problems import UnsegmentedCases
from umamba.io import UserError, read_image, read_label
from umamba.runs.cascade import labels_on_grid
from umamba.settings import PredictionSettings

SHAPE = (7, 20, 18)


class FirstStageAgain(nn.Module):
    """Returns the channels of the first stage as logits; the image has one channel."""

    def forward(self, tiles: Tensor) -> Tensor:
        return torch.cat([torch.full_like(tiles[:, :1], 0.5), tiles[:, 1:]], 1)


class Positions(nn.Module):
    """Returns three fields of the image, which differ from place to place."""

    def forward(self, tiles: Tensor) -> Tensor:
        return torch.cat([tiles, 1.2 - tiles, 2.1 * (tiles - 0.5).abs()], 1)


@pytest.fixture
def second(make_model: Callable[..., Model]) -> Callable[..., Model]:
    """Return a maker of models that are the second stage of a cascade with two labels."""

    def make(**changes: Any) -> Model:
        model = make_model(FirstStageAgain(), (8, 16, 16), 3, num_channels=1, **changes)
        configuration = replace(model.configuration, name="3d_cascade_fullres", previous_stage="3d_lowres")
        first = replace(model.configuration, name="3d_lowres")
        configurations = {"3d_fullres": model.configuration, "3d_lowres": first, configuration.name: configuration}
        model.configuration, model.plan = configuration, replace(model.plan, configurations=configurations)
        return model

    return make


def write(path: Path, array: np.ndarray, spacing_xyz: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
    """Write an array."""
    path.parent.mkdir(exist_ok=True, parents=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_xyz)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with an image, beside which stands what the first stage has found in it."""
    rng = np.random.default_rng(0)
    write(tmp_path / "images" / "a_0000.nii.gz", rng.uniform(1, 2, SHAPE).astype(np.float32))
    write(tmp_path / "first" / "a.nii.gz", rng.integers(0, 3, SHAPE).astype(np.uint8))
    return tmp_path / "images"


@pytest.mark.parametrize("forward", [(0, 1, 2), (2, 0, 1)])
def test_the_network_sees_the_first_stage(
    second: Callable[..., Model], images: Path, tmp_path: Path, forward: tuple[int, int, int]
) -> None:
    predictor = Predictor((second(forward=forward),))
    settings = PredictionSettings(previous_stage=tmp_path / "first", tile_step_size=1.0)
    (path,) = predictor.predict(images, tmp_path / "out", settings, progress=False)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "first" / "a.nii.gz")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), expected)
    image, previous = read_image((images / "a_0000.nii.gz",)), read_label(tmp_path / "first" / "a.nii.gz")
    np.testing.assert_array_equal(predictor.predict_image(image, settings, previous), expected)


def test_a_missing_first_stage_is_named(second: Callable[..., Model], images: Path, tmp_path: Path) -> None:
    predictor = Predictor((second(),))
    needed = "needs the segmentation of the image by 3d_lowres: give previous_check"
    with pytest.raises(UserError, match=needed):
        predictor.predict(images, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=needed):
        predictor.predict_image(read_image((images / "a_0000.nii.gz",)))
    (tmp_path / "first" / "a.nii.gz").unlink()
    settings = PredictionSettings(previous_stage=tmp_path / "first")
    with pytest.raises(UnsegmentedCases, match=r"a\.nii\.gz: the segmentation by the previous stage is missing"):
        predictor.predict(images, tmp_path / "other", settings, progress=False)


def test_another_first_stage_makes_another_segmentation(
    second: Callable[..., Model], images: Path, tmp_path: Path
) -> None:
    predictor, output = Predictor((second(),)), tmp_path / "out"
    settings = PredictionSettings(previous_stage=tmp_path / "first")
    predictor.predict(images, output, settings, progress=False)
    first = read_label(tmp_path / "first" / "a.nii.gz").array[0]
    write(tmp_path / "first" / "a.nii.gz", first)  # the same, written again
    predictor.predict(images, output, settings, progress=False)
    (tmp_path / "first" / "a.nii.gz").unlink()  # it is not needed any more
    predictor.predict(images, output, settings, progress=False)
    write(tmp_path / "first" / "a.nii.gz", np.flip(first, 0).copy())
    with pytest.raises(UserError, match=r"of other images than these, or of an earlier content.*a\.nii\.gz"):
        predictor.predict(images, output, settings, progress=False)


def test_the_first_stage_must_be_of_the_same_image(second: Callable[..., Model], images: Path, tmp_path: Path) -> None:
    predictor = Predictor((second(),))
    for wrong, said in ((np.zeros((7, 20, 17)), "shape"), (np.full(SHAPE, 7), "holds values from 7 to 7")):
        write(tmp_path / "first" / "a.nii.gz", wrong.astype(np.uint8))
        settings = PredictionSettings(previous_stage=tmp_path / "first", overwrite=True)
        with pytest.raises(UnsegmentedCases, match=said):
            predictor.predict(images, tmp_path / "out", settings, progress=False)


def test_other_networks_have_no_first_stage(make_model: Callable[..., Model], images: Path, tmp_path: Path) -> None:
    predictor = Predictor((make_model(nn.Conv3d(1, 2, 1), (8, 16, 16), 2, num_channels=1),))
    with pytest.raises(UserError, match="previous_stage: none of the networks of checkpoint is the second stage"):
        predictor.predict(images, tmp_path / "out", PredictionSettings(previous_stage=tmp_path), progress=False)


def test_labels_are_decided_on_the_grid_of_the_second_stage(make_model: Callable[..., Model], tmp_path: Path) -> None:
    """nnU-Net's `resample_and_save`: the logits are resized linearly, then the highest wins."""
    shape, grid = (8, 16, 12), (16, 31, 24)
    field = np.random.default_rng(2).uniform(0.05, 1, shape).astype(np.float32)
    case = RawCase("a", (write(tmp_path / "a_0000.nii.gz", field, (2.0, 2.0, 2.0)),), None)
    model = make_model(Positions(), (8, 16, 16), 3, num_channels=1, spacing=(2.0, 2.0, 2.0))
    found = labels_on_grid(model, case, grid, PredictionSettings(tile_step_size=1.0))
    with torch.no_grad():
        logits = Positions()(torch.from_numpy(field)[None, None])[0].numpy().astype(np.float64)
    resized = np.stack([resize(each, grid, order=1, mode="edge", anti_aliasing=False) for each in logits])
    assert found.shape == grid
    assert (found == resized.argmax(0)).mean() > 0.999  # but for rounding
    assert len(np.unique(found)) == 3
