"""Predictions of images in any orientation come back in the file's own; orientations unlike the training are named."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from umamba.datasets import REORIENTING_READER
from umamba.inference import Model, Predictor
from umamba.io import UserError, read_image
from umamba.settings import PredictionSettings

ORDERS = ("RAS", "LPS", "PSR", "ILA", "SRA")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one image stored in several orientations."""
    folder = tmp_path_factory.mktemp("images")
    array = np.random.default_rng(0).normal(size=(14, 12, 9)).astype(np.float32)
    array[:2], array[:, -3:] = 0, 0
    source = nibabel.Nifti1Image(array, np.diag([0.7, 0.9, 1.5, 1.0]))
    for order in ORDERS:
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(tuple(order))
        )
        nibabel.save(source.as_reoriented(turn), folder / f"{order}.nii.gz")
    return folder


def loaded(path: Path) -> Any:
    """Read a file with nibabel."""
    return nibabel.load(path)


def model(make_model: Callable[..., Any], seed: int = 0, **changes: Any) -> Model:
    """Return a model of one convolution, which sees the difference between an image and its mirror image."""
    torch.manual_seed(seed)
    network = nn.Conv3d(1, 3, 3, padding=1)
    made = make_model(network, (8, 8, 8), 3, num_channels=1, spacing=(1.2, 1.0, 1.0), forward=(2, 0, 1))
    made.plan = replace(made.plan, **changes)
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [1, 2])
def test_segmentations_are_equal_in_the_patient(
    make_model: Callable[..., Any], images: Path, tmp_path: Path, count: int
) -> None:
    models = [model(make_model, seed, reader=REORIENTING_READER) for seed in range(count)]
    settings = PredictionSettings(probabilities=True)
    Predictor(tuple(models)).predict(images, tmp_path / "out", settings, progress=False)
    plain = tuple(replace(made, plan=replace(made.plan, reader=None)) for made in models)
    (expected,) = Predictor(plain).predict(images / "RAS.nii.gz", tmp_path / "plain", settings, progress=False)
    reference = loaded(expected)
    assert len(np.unique(reference.get_fdata())) == 3
    for order in ORDERS:
        found, source = loaded(tmp_path / "out" / f"{order}.nii.gz"), loaded(images / f"{order}.nii.gz")
        np.testing.assert_allclose(found.affine, source.affine, atol=1e-5)
        canonical = nibabel.as_closest_canonical(found)
        np.testing.assert_array_equal(canonical.get_fdata(), reference.get_fdata())
        stored = np.load(tmp_path / "out" / f"{order}.npz")["probabilities"]
        np.testing.assert_array_equal(stored.shape[1:], source.shape[::-1])
        np.testing.assert_array_equal(stored.argmax(0).transpose(2, 1, 0), found.get_fdata())
        in_memory = Predictor(tuple(models)).predict_image(read_image([images / f"{order}.nii.gz"]))
        np.testing.assert_array_equal(in_memory.transpose(2, 1, 0), found.get_fdata())


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "orientation" in message]


@pytest.mark.parametrize(("trained", "named"), [(("RAS",), "training images in RAS"), ((), "images before it in")])
def test_other_orientations_are_named_once(
    make_model: Callable[..., Any],
    images: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    trained: tuple[str, ...],
    named: str,
) -> None:
    made = model(make_model, orientations=trained)
    with caplog.at_level(logging.WARNING, "umamba"):
        Predictor((made,)).predict(images, tmp_path / "out", progress=False)
    (message,) = messages(caplog)
    assert named in message
    assert message.split()[0] in ORDERS[1:]


@pytest.mark.parametrize("changes", [{"orientations": ("LPS", "RAS")}, {"reader": REORIENTING_READER}, {}])
def test_no_warning_without_need(
    make_model: Callable[..., Any],
    images: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
) -> None:
    with caplog.at_level(logging.WARNING, "umamba"):
        Predictor((model(make_model, **changes),)).predict(images / "LPS.nii.gz", tmp_path / "out", progress=False)
    assert messages(caplog) == []


def test_networks_of_different_readers_are_not_averaged(make_model: Callable[..., Any], images: Path) -> None:
    models = model(make_model, reader=REORIENTING_READER), model(make_model)
    with pytest.raises(UserError, match="networks of one reader"):
        Predictor(models).predict_image(read_image([images / "RAS.nii.gz"]))
