"""An image that is unlike those of training is named with its numbers; one that is like them is not."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from torch import nn

from umamba.inference import Model, Predictor
from umamba.inference.likeness import Unlike, distances, unlike_training
from umamba.inference.prepared_image import prepare_image
from umamba.inference.resize import whole
from umamba.io import Geometry, Image, UserError
from umamba.planning import Intensity
from umamba.settings import PredictionSettings

SOFT_TISSUE = Intensity(100, 95, 60, -150, 400, -90, 250)
DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def model(make_model: Callable[..., Model]) -> Model:
    """A CT network: spacing 2.5 x 0.8 x 0.8 mm, 40 x 100 x 100 voxels."""
    made = make_model(nn.Identity(), (8, 8, 8), 2, num_channels=1, spacing=(2.5, 0.8, 0.8))
    made.configuration = replace(made.configuration, normalization=("CTNormalization",))
    made.plan = replace(
        made.plan, median_spacing=(2.5, 0.8, 0.8), median_shape=(40.0, 100.0, 100.0), intensity=(SOFT_TISSUE,)
    )
    return made


def ct(shape: tuple[int, int, int] = (20, 60, 60)) -> np.ndarray:
    """Return air around a body of soft tissue with some bone."""
    array = np.full(shape, -1000.0)
    body = array[:, 10:-10, 10:-10]
    body[:] = np.random.default_rng(0).normal(60, 60, body.shape)
    body[:, :3, :3] = 900
    return array


def said(
    model: Model, array: np.ndarray, spacing: tuple[float, float, float] = (3.0, 0.9, 0.9), is_2d: bool = False
) -> str:
    geometry = Geometry(spacing, (0.0, 0.0, 0.0), DIRECTION, array.shape, is_2d)  # type: ignore[arg-type]
    return "; ".join(unlike_training(Image(array[None], geometry), whole(array.shape), model))


def test_a_usual_ct_is_not_named(model: Model) -> None:
    assert said(model, ct()) == ""
    assert said(model, ct(), (5.0, 0.6, 0.6)) == ""


def test_intensities_in_other_units(model: Model) -> None:
    assert said(model, ct() + 1024).startswith("intensities 24 to ")
    assert "training's foreground -90 to 250: no value is below 0, so these are probably not Houns" in said(
        model, ct() + 1024
    )
    scaled = (ct() + 1000) / 1900
    assert "intensities" in said(model, scaled)
    assert "other units" in said(model, scaled - 0.5)
    assert "other units" in said(model, 1000 * ct())


def test_a_blank_image_is_named_and_far(model: Model) -> None:
    blank = np.zeros((20, 60, 60))
    assert said(model, blank) == "intensities are all 0: perhaps a blank image"
    geometry = Geometry((3.0, 0.9, 0.9), (0.0, 0.0, 0.0), DIRECTION, blank.shape, False)  # type: ignore[arg-type]
    assert distances(Image(blank[None], geometry), whole(blank.shape), model)["intensities"] > 10


def test_z_scores_forget_the_scale_within_reason(model: Model) -> None:
    model.configuration = replace(model.configuration, normalization=("ZScoreNormalization",))
    assert said(model, 3 * ct() + 5000) == ""
    assert "other units" in said(model, 1000 * ct())


def test_a_warning_ends_with_one_mark(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    unlike = Unlike([])
    unlike.add("scaled", [said(model, 1000 * ct())])
    unlike.add("blank", [said(model, np.zeros((20, 60, 60)))])
    scaled, blank = (record.getMessage() for record in caplog.records)
    assert scaled.endswith(": perhaps other units. Check its segmentation.")
    assert blank.endswith(": perhaps a blank image. Check its segmentation.")


def test_one_channel_is_named_in_the_singular(model: Model) -> None:
    model.num_channels = 2
    geometry = Geometry((3.0, 0.9, 0.9), (0.0, 0.0, 0.0), DIRECTION, (20, 60, 60), False)
    with pytest.raises(UserError, match="the image has 1 channel, the network was trained with 2"):
        prepare_image(Image(ct()[None], geometry), [model])


def test_training_images_of_several_units_are_not_named(model: Model) -> None:
    """Hippocampus MR: most images reach some hundreds, a few some hundred thousand, so the pooled range is wide."""
    model.configuration = replace(model.configuration, normalization=("ZScoreNormalization",))
    model.plan = replace(model.plan, intensity=(Intensity(9000, 150, 40000, 1, 500000, 20, 250000),))
    usual = np.random.default_rng(0).uniform(20, 400, (20, 60, 60))
    assert said(model, usual) == ""
    assert said(model, 1000 * usual) == ""
    assert "other units" in said(model, usual / 1000)


def test_spacing_and_field_of_view(model: Model) -> None:
    assert (
        said(model, ct(), (8.0, 0.9, 0.9)) == "spacing 8 x 0.9 x 0.9 mm, the median of training is 2.5 x 0.8 x 0.8 mm"
    )
    assert said(model, ct((20, 60, 60))[:, :28, :28], (3.0, 0.9, 0.9)) == (
        "field of view 60 x 25.2 x 25.2 mm, the median of training is 100 x 80 x 80 mm"
    )


def test_axes_of_a_transposed_plan_and_of_slices(model: Model) -> None:
    """A 2D network does not see the distance of slices; a transposed plan's axes are compared with the right ones."""
    model.configuration = replace(model.configuration, patch_size=(8, 8), spacing=(0.8, 0.8))
    assert said(model, ct(), (999.0, 0.9, 0.9)) == ""
    model.configuration = replace(model.configuration, patch_size=(8, 8, 8), spacing=(2.5, 0.8, 0.8))
    model.plan = replace(model.plan, transpose_forward=(2, 0, 1), transpose_backward=(1, 2, 0))
    assert said(model, np.moveaxis(ct(), 0, 2), (0.9, 0.9, 3.0)) == ""
    assert "spacing 8 x 0.9 x 0.9" in said(model, np.moveaxis(ct(), 0, 2), (0.9, 0.9, 8.0))


def test_a_warning_names_the_case_once(model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    for number in range(12):
        image = sitk.GetImageFromArray((ct((8, 40, 40)) + 1024).astype(np.int16))
        image.SetSpacing((0.9, 0.9, 5.0))
        sitk.WriteImage(image, str(tmp_path / "in" / f"case{number:02d}.nii.gz"))

    class Two(nn.Module):
        def forward(self, x: object) -> object:
            import torch

            return torch.cat([x, -x], dim=1)  # type: ignore[list-item, operator]

    model.network = Two()
    caplog.set_level(logging.WARNING, "umamba")
    settings = PredictionSettings(tile_step_size=1.0)
    Predictor((model,)).predict(tmp_path / "in", tmp_path / "out", settings, progress=False)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 11
    assert lines[0].startswith("case00 is unlike the training images: intensities 24 to ")
    assert lines[-1] == "12 of 12 images are unlike the training images."
