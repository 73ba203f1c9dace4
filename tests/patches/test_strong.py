"""CutMix and random convolutions: what is pasted, what is filtered, and the same patches for any number of workers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from umamba.io import UserError
from umamba.patches.convolution import ConvolveRandomly
from umamba.patches.cutmix import draw_box
from umamba.settings import AugmentationSettings
from umamba.settings.augmentation import Convolution, CutMix

Make = Callable[..., Any]
PATCH = (8, 10, 6)
OFF = AugmentationSettings.off()


@pytest.fixture
def telling(make_cases: Make) -> Any:
    """Return cases whose voxels are label + 10 * (number of the case + 1)."""
    store = make_cases([(20, 22, 24), (14, 30, 16), (12, 12, 12)])
    for number, case in enumerate(store.cases.values()):
        case.label[case.label < 0] = 0
        case.image[:] = case.label + 10 * (number + 1)
    return store


def batches(module: Any, count: int = 4) -> list[dict[str, Any]]:
    return [batch for batch, _ in zip(module.train_dataloader(), range(count), strict=False)]


def test_the_label_moves_with_the_image(make_module: Make, telling: Any) -> None:
    mixed = make_module(telling, PATCH, augmentation=replace(OFF, cutmix=CutMix(p=1.0, edge=(0.3, 0.6))), batch_size=6)
    plain = make_module(telling, PATCH, augmentation=OFF, batch_size=6)
    boxes = 0
    for batch, before in zip(batches(mixed), batches(plain), strict=True):
        image, label = batch["image"], batch["label"]
        inside = image > 0  # beyond the image there are zeros
        assert torch.equal((image % 10)[inside], label[inside].float())
        for own, old in zip(image[:, 0], before["image"][:, 0], strict=True):
            changed = np.argwhere((own != old).numpy())
            if len(changed):
                extent = changed.max(0) - changed.min(0) + 1
                assert (extent <= np.round(0.6 * np.array(PATCH))).all()
                boxes += 1
    assert boxes > 6


def test_a_share_of_the_patches_is_mixed(make_module: Make, telling: Any) -> None:
    module = make_module(telling, PATCH, augmentation=replace(OFF, cutmix=CutMix(p=0.3)), batch_size=50, iterations=8)
    paste = module.train_patches.paste
    found = [module.train_patches.partner_of(number, paste) for number in range(400)]
    share = sum(partner is not None for partner in found) / 400
    assert share == pytest.approx(0.3, abs=0.07)  # three standard deviations
    partners = [partner for partner in found if partner is not None]
    assert all(partner.image.shape == (1, *PATCH) and partner.label.shape == (1, *PATCH) for partner in partners)
    assert all((partner.label > 0).any() for partner in partners)  # foreground, which is rare


def test_boxes_lie_in_the_patch() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        box = draw_box((1, 20, 9), (0.25, 0.6), generator)
        assert box[0] == slice(0, 1)
        assert all(0 <= part.start < part.stop <= size for part, size in zip(box, (1, 20, 9), strict=True))
        assert 5 <= box[1].stop - box[1].start <= 12
        assert 2 <= box[2].stop - box[2].start <= 5


@pytest.mark.parametrize("patch", [PATCH, (16, 12)], ids=str)
def test_workers_make_no_difference(make_module: Make, make_cases: Make, often: Any, patch: tuple[int, ...]) -> None:
    store = make_cases([(20, 22, 24), (14, 30, 16)])
    strong = replace(often, cutmix=CutMix(p=0.5))
    expected, *others = (
        batches(make_module(store, patch, augmentation=strong, num_workers=workers), 3) for workers in (0, 1, 2)
    )
    for found in others:
        for one, other in zip(found, expected, strict=True):
            assert one["case_id"] == other["case_id"]
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["label"], other["label"])


@pytest.mark.parametrize("in_plane", [False, True])
def test_the_filter_equals_scipys(in_plane: bool) -> None:
    channel = torch.from_numpy(np.random.default_rng(0).normal(2, 3, (4, 7, 6)).astype(np.float32))
    step = ConvolveRandomly(Convolution(p=1.0, share=(0.25, 0.25)), in_plane)
    weights, share = step.draw_channel()
    assert weights.shape == ((1, 3, 3) if in_plane else (3, 3, 3))
    filtered = correlate(channel.double().numpy(), weights.double().numpy(), mode="nearest")
    filtered = (filtered - filtered.mean()) / filtered.std() * channel.numpy().std() + channel.numpy().mean()
    expected = 0.75 * channel.numpy() + 0.25 * filtered
    assert share == 0.25
    np.testing.assert_allclose(step.change(channel, (weights, share)).numpy(), expected, atol=2e-5)


def test_a_constant_channel_stays() -> None:
    step = ConvolveRandomly(Convolution(p=1.0), in_plane=False)
    channel = torch.full((3, 4, 5), 2.5)
    torch.testing.assert_close(step.change(channel, step.draw_channel()), channel)


def test_where_cases_cannot_be_mixed(make_module: Make, store: Any) -> None:
    strong = AugmentationSettings(cutmix=CutMix(p=0.5))
    assert not make_module(store, augmentation=replace(strong, device="auto")).automatic
    with pytest.raises(UserError, match=r"cutmix\.p=0\.5: mixes cases.*annotated_labels"):
        make_module(store, augmentation=strong, annotated={"case_0": ("one",)})
