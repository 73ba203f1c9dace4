"""The labels of a cascade's first stage in patches: they move with the image, become channels, and are spoilt."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.morphology import ball

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.labels.masks import one_hot
from umamba.patches.patch import Patch
from umamba.patches.previous_stage import (
    SHAPE_CHANGES,
    AddPreviousStage,
    change_shape,
    closed,
    dilated,
    eroded,
    opened,
    remove_component,
    spoil,
)
from umamba.settings import AugmentationSettings
from umamba.settings.augmentation import Mirror, PreviousStage, Rotation, Scaling

Make = Callable[..., Any]
ORGANS = LabelSet(("liver", "spleen"), ((1,), (2,)), ignore=3)
NEVER = PreviousStage(p_shape=0, p_removal=0)


def random_mask(shape: tuple[int, ...] = (14, 15, 16), seed: int = 0) -> np.ndarray:
    """Return smooth random blobs, some of which touch the border."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(ndimage.gaussian_filter(noise, 1.5) > 0.05)


def by_definition(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Dilate voxel by voxel: is any voxel of the mask under the element, whose even edges reach farther ahead?"""
    low = [(edge - 1) // 2 for edge in element.shape]
    padded = np.pad(mask, [(before, edge) for before, edge in zip(low, element.shape, strict=True)])
    found = np.zeros_like(mask)
    for place in np.ndindex(*mask.shape):
        window = tuple(slice(first, first + edge) for first, edge in zip(place, element.shape, strict=True))
        found[place] = (padded[window] & element).any()
    return found


@pytest.mark.parametrize("radius", [1.0, 1.3, 1.8, 2.0, 2.6, 4.2])
def test_dilation_is_that_of_the_definition(radius: float) -> None:
    element, mask = ball(radius, dtype=bool), random_mask((9, 8, 10))
    assert element.shape == (int(2 * radius + 1),) * 3
    np.testing.assert_array_equal(dilated(mask, element), by_definition(mask, element))
    np.testing.assert_array_equal(eroded(mask, element), ~by_definition(~mask, element))


@pytest.mark.parametrize("radius", [1.0, 2.0, 3.0])
def test_odd_balls_agree_with_scipy(radius: float) -> None:
    element, mask = ball(radius, dtype=bool), random_mask()
    np.testing.assert_array_equal(dilated(mask, element), ndimage.binary_dilation(mask, element))
    np.testing.assert_array_equal(eroded(mask, element), ndimage.binary_erosion(mask, element, border_value=1))
    opening = ndimage.binary_dilation(ndimage.binary_erosion(mask, element, border_value=1), element)
    np.testing.assert_array_equal(opened(mask, element), opening)
    closing = ndimage.binary_erosion(ndimage.binary_dilation(mask, element), element, border_value=1)
    np.testing.assert_array_equal(closed(mask, element), closing)


@pytest.mark.parametrize("change", SHAPE_CHANGES)
@pytest.mark.parametrize("radius", [1.0, 2.7, 3.4])
def test_a_small_box_around_the_label_is_enough(change: Any, radius: float) -> None:
    mask = np.zeros((30, 28, 26), dtype=bool)
    mask[9:15, 10:17, 0:6] = random_mask((6, 7, 6), 3)
    other = np.zeros_like(mask)
    other[9:15, 14:22, 0:6] = True
    channels = np.stack([mask, other & ~mask]).astype(np.float32)
    before = channels.copy()
    change_shape(channels, 0, change, radius)
    expected = change(mask, ball(radius, dtype=bool))
    np.testing.assert_array_equal(channels[0] > 0, expected)
    # What the label gains, the other one loses; nothing else changes.
    np.testing.assert_array_equal(channels[1], before[1] * ~(expected & ~mask))


def test_only_small_components_are_removed() -> None:
    mask = np.zeros((10, 10, 10), dtype=np.float32)
    mask[:4, :7, :7] = 1  # 196 voxels, more than 15 %
    mask[8, 8, 8] = mask[9, 9, 9] = 1  # one component, connected at a corner
    large = mask[:4].copy()
    remove_component(mask, 0.15)
    assert mask.sum() == large.sum() == 196
    remove_component(mask, 0.15)
    assert mask.sum() == 196
    remove_component(mask, 0.2)
    assert mask.sum() == 0


def test_how_often_labels_are_spoilt() -> None:
    """nnU-Net 2.8.1: shapes with 0.4, components with 0.2, each label with a half."""
    torch.manual_seed(0)
    shapes = removals = 0
    for _ in range(600):
        channels = np.zeros((1, 12, 12, 12), dtype=np.float32)
        channels[0, 5:8, 5:8, 5:8] = 1
        only_shape = channels.copy()
        spoil(only_shape, PreviousStage(p_removal=0, radius=(1.0, 1.0)))
        shapes += not np.array_equal(only_shape, channels)  # closing changes nothing here: 3 of 4 changes are seen
        spoil(channels, PreviousStage(p_shape=0))
        removals += not channels.any()
    assert shapes / 600 == pytest.approx(0.4 * 0.5 * 0.75, abs=0.05)
    assert removals / 600 == pytest.approx(0.2 * 0.5, abs=0.04)


def test_the_channels_are_those_of_each_label() -> None:
    image, label = torch.rand(2, 3, 4, 5), torch.randint(0, 4, (2, 3, 4, 5), dtype=torch.int16)
    patch = AddPreviousStage(ORGANS, NEVER).apply_transform(Patch(image, label))
    assert torch.equal(patch.get_image("label").data, label[:1])
    found = patch.get_image("image").data
    assert found.dtype == torch.float32
    assert torch.equal(found[:2], image)
    assert torch.equal(
        found[2:], torch.stack([label[1] == 1, label[1] == 2]).float()
    )  # no channel for the ignore label


@pytest.fixture
def cascade_cases(make_cases: Make) -> Any:
    """Return a store whose first stage has found exactly the labels."""
    store = make_cases([(20, 22, 24), (14, 30, 16)])
    for case in store.cases.values():
        case.previous = case.label.copy()
    return store


def test_the_first_stage_turns_with_the_image(cascade_cases: Any, make_module: Make) -> None:
    moving = replace(
        AugmentationSettings.off(),
        rotation=Rotation(p=1),
        scaling=Scaling(p=1),
        mirror=Mirror(p=0.5),
        previous_stage=NEVER,
    )
    module = make_module(cascade_cases, augmentation=moving, previous_stage="3d_lowres")
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for batch in loader:
            assert batch["image"].shape == (3, 3, 8, 10, 6)
            assert batch["label"].shape == (3, 1, 8, 10, 6)
            labels = batch["label"][:, 0]
            assert torch.equal(batch["image"][:, 1:], torch.stack([labels == 1, labels == 2], 1).float())


def test_workers_make_the_same_patches(cascade_cases: Any, make_module: Make) -> None:
    often = replace(AugmentationSettings.off(), previous_stage=PreviousStage(p_shape=1, p_removal=1, p_label=1))
    first, second = (
        list(make_module(cascade_cases, augmentation=often, previous_stage="3d_lowres", **given).train_dataloader())
        for given in ({}, {"num_workers": 1})
    )
    spoilt = 0
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
        labels = one["label"][:, 0]
        spoilt += not torch.equal(one["image"][:, 1:], torch.stack([labels == 1, labels == 2], 1).float())
    assert spoilt > 0


def test_a_gpu_is_refused(cascade_cases: Any, make_module: Make) -> None:
    on_gpu = replace(AugmentationSettings.off(), device="gpu")
    with pytest.raises(UserError, match=r"augmentation\.device=gpu: the labels of the previous stage"):
        make_module(cascade_cases, augmentation=on_gpu, previous_stage="3d_lowres")
    assert not make_module(
        cascade_cases, augmentation=replace(on_gpu, device="auto"), previous_stage="3d_lowres"
    ).undecided


def test_one_hot_has_a_channel_for_each_value_of_a_region() -> None:
    labels = LabelSet(("whole", "core"), ((1, 2), (2,)), region_order=(1, 2))
    found = one_hot(np.array([[[-1, 0, 1, 2, 9]]]), labels)
    assert found.dtype == np.float32
    assert found[:, 0, 0].tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
