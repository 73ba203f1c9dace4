"""Several networks: they give the mean of their probabilities, also with different plans and a memory limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from umamba.datasets import RawCase
from umamba.inference import Model, Predictor
from umamba.inference.canvas import Canvas
from umamba.inference.prepared_image import prepare_image
from umamba.inference.slabs import choose_layout, give_slabs, logits_bytes
from umamba.io import Image, UserError, read_label, write_segmentation
from umamba.settings import PredictionSettings, SlidingWindowSettings

SHAPE = (13, 17, 19)


def probabilities(models: list[Model], source: Image, tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities and the segmentation that are written for the image."""
    write_segmentation(tmp_path / "image.mha", source.array[0], source.geometry)
    case = RawCase("case", (tmp_path / "image.mha",), None)
    settings = PredictionSettings(probabilities=True)
    (path,) = Predictor(tuple(models)).predict_cases([case], tmp_path / "out", settings, progress=False)
    with np.load(tmp_path / "out" / "case.npz") as content:
        found = content["probabilities"]
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "case.nii.gz",
        "case.npz",
        "labels_itksnap.txt",
        "labels_slicer.ctbl",
        "prediction.json",
        "volumes.csv",
    ]
    return found, read_label(path).array[0]


@pytest.mark.parametrize("regions", [False, True])
def test_mean_of_the_members_probabilities(
    members: Callable[..., list[Model]], cropped_image: Image, tmp_path: Path, regions: bool
) -> None:
    models = members(regions)
    own = [probabilities([model], cropped_image, tmp_path / str(number))[0] for number, model in enumerate(models)]
    mean, segmentation = probabilities(models, cropped_image, tmp_path / "all")
    assert mean.dtype == np.float32
    assert mean.shape == (3, *SHAPE)
    np.testing.assert_allclose(mean, np.mean(own, axis=0, dtype=np.float64), rtol=0, atol=1e-6)
    if regions:
        expected = np.zeros(SHAPE, dtype=int)
        for index in range(3):
            expected[mean[index] > 0.5] = index + 1
        assert not mean[:, :2].any()
    else:
        expected = mean.argmax(0)
        assert (mean[0, :2] == 1).all()  # background beyond the crop
        np.testing.assert_allclose(mean.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(segmentation, expected)
    assert len(np.unique(segmentation)) > 1
    np.testing.assert_array_equal(Predictor(tuple(models)).predict_image(cropped_image), segmentation)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_bounded_equals_naive(
    members: Callable[..., list[Model]], cropped_image: Image, count: int, share: float
) -> None:
    models = members()[:count]
    expected = Predictor(tuple(models)).predict_image(cropped_image)
    prepared = prepare_image(cropped_image, models)
    shape = prepared.placement.crop_shape
    assert shape == (10, 14, 15)
    whole = choose_layout(prepared.views, shape, None)
    assert whole is not None
    naive = sum(logits_bytes(view, shape, whole) for view in prepared.views)
    limit = naive * (0.35 + 0.65 * share)
    layout = choose_layout(prepared.views, shape, limit)
    assert layout is not None
    assert layout != whole
    canvas = Canvas(prepared.placement, models[0].labels)
    boxes = 0
    for box, slabs in give_slabs(
        prepared.views,
        shape,
        layout,
        SlidingWindowSettings(),
        sums_on=torch.device("cpu"),
        advance=lambda tiles: None,
    ):
        # The storage is that of all sums; the slab is a part of it.
        assert sum(slab.logits.untyped_storage().nbytes() for slab in slabs) <= limit
        canvas.add(box, slabs)
        boxes += 1
    assert boxes > 1
    np.testing.assert_array_equal(canvas.segmentation, expected)


def test_networks_of_other_labels_are_refused(
    mixed: Callable[[int, int, int], nn.Module], make_model: Callable[..., Any]
) -> None:
    two, three = (make_model(mixed(3, heads, 0), (8, 8, 8), heads, num_channels=1) for heads in (2, 3))
    with pytest.raises(UserError, match="differ in labels"):
        Predictor((two, three))
