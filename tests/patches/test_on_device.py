"""Augmentation of a batch on the network's device: the patches of the workers, and nothing waits for the device."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch.utils._python_dispatch import TorchDispatchMode

from umamba.patches.blur import blur_axis, blur_rows, gaussian_weights
from umamba.patches.on_device import sample_regions
from umamba.patches.spatial import rotation_matrix
from umamba.patches.warp import resample_patch
from umamba.settings import AugmentationSettings

Make = Callable[..., Any]

CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of the range of the image, which sums over a patch in another order cost
# Patches whose augmentation differs: 3D, flat 3D (moved in-plane), and 2D.
PATCHES = [(8, 10, 6), (3, 12, 14), (16, 12)]
KINDS = [name for name in vars(AugmentationSettings()) if name not in ("device", "extra", "previous_stage", "cutmix")]


def pairs(make_module: Make, store: Any, kinds: AugmentationSettings, patch: Sequence[int], **options: Any) -> Any:
    """Return batches of workers, and the same from regions that a device augments."""
    early, late = (
        make_module(store, patch, augmentation=replace(kinds, device=device), **options) for device in ("cpu", "gpu")
    )
    for expected, regions in zip(early.train_dataloader(), late.train_dataloader(), strict=True):
        yield expected, late.on_after_batch_transfer(late.transfer_batch_to_device(regions, CPU, 0), 0)


@pytest.mark.parametrize("kind", [*KINDS, "all"])
@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_batches_are_those_of_the_workers(
    make_module: Make, make_cases: Make, often: AugmentationSettings, kind: str, patch: tuple[int, ...]
) -> None:
    """Every kind alone, and all together: labels are equal, images within the tolerance."""
    store = make_cases([(20, 22, 24), (14, 30, 16)], 2)
    off = AugmentationSettings.off()
    kinds = often if kind == "all" else replace(off, **{kind: replace(getattr(often, kind), p=0.8)})
    plain = [batch["image"] for batch in make_module(store, patch, augmentation=off, iterations=2).train_dataloader()]
    changed = False
    options = {"mask": (True, False), "iterations": 6 if kind == "all" else 2}
    for number, (expected, batch) in enumerate(pairs(make_module, store, kinds, patch, **options)):
        assert set(batch) == {"image", "label", "case_id"}
        assert batch["case_id"] == expected["case_id"]
        assert batch["label"].dtype == torch.int64
        assert torch.equal(batch["label"], expected["label"].long())
        torch.testing.assert_close(batch["image"], expected["image"], rtol=0, atol=2 * TOLERANCE)  # values from 0 to 2
        changed |= number >= 2 or not torch.equal(batch["image"], plain[number])
    assert changed


@pytest.mark.parametrize("workers", [0, 1])
def test_regions_and_draws_come_from_workers_too(
    make_module: Make, store: Any, often: AugmentationSettings, workers: int
) -> None:
    late = make_module(store, augmentation=replace(often, device="gpu"), num_workers=workers)
    expected = make_module(store, augmentation=often).train_dataloader()
    for regions, own in zip(late.train_dataloader(), expected, strict=True):
        assert regions["image"].shape[-1] > 6, "regions that hold what any rotation needs"
        batch = late.on_after_batch_transfer(regions, 0)
        torch.testing.assert_close(batch["image"], own["image"], rtol=0, atol=2 * TOLERANCE)
        assert torch.equal(batch["label"], own["label"].long())
    for batch, own in zip(late.val_dataloader(), make_module(store).val_dataloader(), strict=True):
        assert torch.equal(late.on_after_batch_transfer(batch, 0)["image"], own["image"])


def test_the_same_batch_twice(make_module: Make, store: Any, often: AugmentationSettings) -> None:
    late = make_module(store, augmentation=replace(often, device="gpu"))
    first, second = ([late.on_after_batch_transfer(b, 0) for b in late.train_dataloader()] for _ in range(2))
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(first, second, strict=True))


class Crossings(TorchDispatchMode):
    """Counts operations between the CPU and another device, and those that ask a device for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, result) if isinstance(each, torch.Tensor) and each.dim()]
        if len({each.device.type for each in tensors}) > 1:
            self.copies.append(str(func))
        on_device = any(each.device.type == "meta" for each in tensors)
        if on_device and str(func).split(".")[1] in (
            "_local_scalar_dense",
            "nonzero",
            "equal",
            "_unique2",
            "is_nonzero",
        ):
            self.asked.append(str(func))
        return result


@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_one_copy_and_no_question(
    make_module: Make, store: Any, often: AugmentationSettings, patch: tuple[int, ...]
) -> None:
    """The device "meta" holds no values, so that asking it for one raises; all numbers reach it in one copy."""
    late = make_module(store, patch, augmentation=replace(often, device="gpu"), mask=(True,), batch_size=12)
    for regions in itertools.islice(late.train_dataloader(), 2):
        moved: dict[str, Any] = {name: regions[name].to("meta") for name in ("image", "label")}
        moved |= {"noise": [noise.to("meta") for noise in regions["noise"]], "case_id": regions["case_id"]}
        assert moved["noise"]
        with Crossings() as crossings:
            batch = late.train_patches.transform_batch({**moved, "drawn": regions["drawn"]})
        assert batch["image"].shape == (12, 1, *patch)
        assert crossings.copies == ["aten._to_copy.default"]
        assert not crossings.asked


@pytest.mark.parametrize("length", [2, 3, 9, 20])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_blur_equals_scipy(length: int, axis: int) -> None:
    image = np.random.default_rng(0).normal(size=(length, length, length)).astype(np.float32)
    sigmas = (0.5, 0.74, 1.0)
    kernels = [gaussian_weights(sigma) for sigma in sigmas]
    longest = max(map(len, kernels))
    filled = [torch.nn.functional.pad(own, [(longest - len(own)) // 2] * 2) for own in kernels]
    together = blur_rows(torch.from_numpy(image).expand(3, -1, -1, -1), torch.stack(filled), axis)
    for sigma, kernel, row in zip(sigmas, kernels, together, strict=True):
        expected = gaussian_filter1d(image, sigma, axis=axis, mode="mirror")
        for blurred in (blur_axis(torch.from_numpy(image), kernel, axis), row):
            np.testing.assert_allclose(blurred, expected, atol=1e-6)


@pytest.mark.parametrize("angles", [[0.4], [0.3, -0.5, 0.2]], ids=["in-plane", "3d"])
@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_votes_are_the_same(angles: list[float], factor: float) -> None:
    """Labels of noise, where nearly every voxel has several candidates."""
    label = np.random.default_rng(0).integers(-1, 4, size=(2, 1, 9, 16, 14)).astype(np.int16)
    matrices = [factor * rotation_matrix(angles), rotation_matrix([-angle for angle in angles])]
    size = (9, 14, 18)
    images, labels = torch.from_numpy(label.astype(np.float32)), torch.from_numpy(label)
    image, voted = sample_regions(images, labels, torch.from_numpy(np.stack(matrices)).flatten(1), size)
    assert voted.dtype == torch.int16
    for own, matrix, found, votes in zip(label, matrices, image, voted, strict=True):
        resampled, expected = resample_patch(own.astype(np.float32), own, matrix, size)
        assert set(np.unique(expected)) == {-1, 0, 1, 2, 3}
        np.testing.assert_array_equal(votes, expected)
        np.testing.assert_allclose(found, resampled, atol=1e-5)


def test_a_region_outside_the_image_has_no_label() -> None:
    outside = torch.full((1, 1, 4, 4, 4), -1)
    matrix = torch.from_numpy(rotation_matrix([0.1, 0.1, 0.1])).reshape(1, -1)
    image, label = sample_regions(torch.zeros(outside.shape), outside, matrix, (3, 3, 3))
    assert (label == -1).all()
    assert not image.any()


class Sampled:
    """A trainer as far as a loader asks it."""

    global_rank, world_size = 0, 1

    def __init__(self, device: str) -> None:
        self.strategy = type("Strategy", (), {"root_device": torch.device(device)})()
        progress = type("Progress", (), {"current": type("Current", (), {"processed": 0})()})()
        self.fit_loop = type("Loop", (), {"epoch_progress": progress})()


def test_auto_changes_to_the_device_at_an_epoch_and_a_resumed_run_follows(
    make_module: Make, store: Any, often: AugmentationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With workers that live on: batches of the first epoch are patches, those of the second regions."""
    monkeypatch.setattr("torchio.SubjectsLoader.__init__", _without_pinning)
    kinds = replace(often, device="auto")

    def module(device: str = "cuda") -> Any:
        made = make_module(store, augmentation=kinds, num_workers=1)
        made.trainer = Sampled(device)
        return made

    begun = module()
    assert begun.undecided
    assert begun.state_dict() == {}
    loader = begun.train_dataloader()
    assert all("drawn" not in batch for batch in loader)
    assert "auto: gpu, from the next epoch on, because the network waits for patches in 30%" in begun.choose_device(
        0.3, 0
    )
    loader.sampler.set_epoch(1)
    second = list(loader)
    assert all("drawn" in batch for batch in second)
    early = make_module(store, augmentation=often).train_dataloader()
    early.sampler.set_epoch(1)
    resumed = module()
    resumed.load_state_dict(begun.state_dict())
    again = resumed.train_dataloader()
    assert all("drawn" not in batch for batch in again), "the first epoch stays what it was"
    again.sampler.set_epoch(1)
    for regions, other, expected in zip(second, again, early, strict=True):
        assert torch.equal(regions["image"], other["image"])
        batch = begun.on_after_batch_transfer(regions, 0)
        torch.testing.assert_close(batch["image"], expected["image"], rtol=0, atol=2 * TOLERANCE)
    stays = module()
    assert "auto: cpu, because the network waits for patches in 4%" in stays.choose_device(0.04, 0)
    assert stays.state_dict() == {"augmentation_device": "cpu", "deferred_from": None}
    on_cpu = module("cpu")
    on_cpu.train_dataloader()
    assert not on_cpu.undecided
    assert not on_cpu.train_patches.may_defer


def _without_pinning(self: Any, *arguments: Any, **options: Any) -> None:
    torch.utils.data.DataLoader.__init__(self, *arguments, **{**options, "pin_memory": False})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_patches_made_on_a_gpu_are_the_same(make_module: Make, store: Any, often: AugmentationSettings) -> None:
    early, late = (make_module(store, augmentation=replace(often, device=device)) for device in ("cpu", "gpu"))
    for expected, regions in zip(early.train_dataloader(), late.train_dataloader(), strict=True):
        moved = late.transfer_batch_to_device(regions, torch.device("cuda"), 0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch = late.train_patches.transform_batch(moved)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert batch["image"].is_cuda
        torch.testing.assert_close(batch["image"].cpu(), expected["image"], rtol=0, atol=4 * TOLERANCE)
        assert torch.equal(batch["label"].cpu(), expected["label"])
