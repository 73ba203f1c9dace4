"""Augmentation on the network's device: the same patches as from workers, by operations that run on any device."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from umamba.patches.blur import blur_axis_by_convolution, blur_axis_compiled, gaussian_weights
from umamba.patches.spatial import rotation_matrix, vote_label_by_sampling
from umamba.patches.warp import resample_patch
from umamba.settings import AugmentationSettings
from umamba.settings.augmentation import Noise

Make = Callable[..., Any]


@pytest.mark.parametrize("patch", [(8, 10, 6), (16, 12)])
def test_batches_equal_those_of_the_workers(
    make_module: Make, make_cases: Make, often: AugmentationSettings, patch: tuple[int, ...]
) -> None:
    store = make_cases([(20, 22, 24), (14, 30, 16)])
    early = make_module(store, patch, augmentation=often, mask=(True,))
    late = make_module(store, patch, augmentation=replace(often, device="gpu"), mask=(True,))
    batches = list(late.train_dataloader())
    assert batches[0]["image"].shape[-1] > patch[-1], "regions that hold what any rotation needs"
    assert batches[0]["label"].min() == -1
    for expected, regions in zip(early.train_dataloader(), batches, strict=True):
        moved = late.transfer_batch_to_device(regions, torch.device("cpu"), 0)
        batch = late.on_after_batch_transfer(moved, 0)
        assert set(batch) == {"image", "label", "case_id"}
        assert batch["case_id"] == expected["case_id"]
        assert torch.equal(batch["image"], expected["image"])
        assert batch["label"].dtype == torch.int64
        assert torch.equal(batch["label"], expected["label"].long())
        assert late.transfer_s > 0
    for batch, expected in zip(late.val_dataloader(), early.val_dataloader(), strict=True):
        assert torch.equal(late.on_after_batch_transfer(batch, 0)["image"], expected["image"])


@pytest.mark.parametrize("length", [2, 3, 9, 20])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_blur_equals_scipy(length: int, axis: int) -> None:
    image = np.random.default_rng(0).normal(size=(length, length, length)).astype(np.float32)
    for sigma in (0.5, 0.74, 1.0):
        expected = gaussian_filter1d(image, sigma, axis=axis, mode="mirror")
        for blur in (blur_axis_compiled, blur_axis_by_convolution):
            blurred = blur(torch.from_numpy(image), gaussian_weights(sigma), axis)
            np.testing.assert_allclose(blurred, expected, atol=1e-6)


@pytest.mark.parametrize("angles", [[0.4], [0.3, -0.5, 0.2]], ids=["in-plane", "3d"])
@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_votes_are_the_same(angles: list[float], factor: float) -> None:
    label = np.random.default_rng(0).integers(-1, 4, size=(1, 9, 16, 14)).astype(np.int16)
    matrix = factor * rotation_matrix(angles)
    size = (9, 14, 18)
    _, expected = resample_patch(label.astype(np.float32), label, matrix, size)
    voted = vote_label_by_sampling(torch.from_numpy(label), matrix, size)
    assert voted.dtype == torch.int16
    assert set(np.unique(expected)) == {-1, 0, 1, 2, 3}
    assert (voted.numpy() != expected).mean() < 0.002, "except near ties"


def test_a_region_outside_the_image_has_no_label() -> None:
    outside = torch.full((1, 4, 4, 4), -1)
    assert (vote_label_by_sampling(outside, rotation_matrix([0.1, 0.1, 0.1]), (3, 3, 3)) == -1).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_patches_made_on_a_gpu_are_the_same(make_module: Make, store: Any, often: AugmentationSettings) -> None:
    """The noise is left out because each device draws its own."""
    same = replace(often, noise=Noise(p=0))
    early, late = (make_module(store, augmentation=replace(same, device=device)) for device in ("cpu", "gpu"))
    for expected, regions in zip(early.train_dataloader(), late.train_dataloader(), strict=True):
        batch = late.on_after_batch_transfer(late.transfer_batch_to_device(regions, torch.device("cuda"), 0), 0)
        assert batch["image"].is_cuda
        torch.testing.assert_close(batch["image"].cpu(), expected["image"], rtol=1e-3, atol=1e-3)
        assert (batch["label"].cpu() != expected["label"]).float().mean() < 0.002
