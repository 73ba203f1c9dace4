"""Intensity transforms and mirroring: results, frequencies and ranges over many small patches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchio as tio
from torch import Tensor

from umamba.patches.augmentation import training_transforms
from umamba.settings import AugmentationSettings
from umamba.settings.augmentation import LowResolution, Mirror, Rotation, Scaling

DRAWS = 1500
RAMP = torch.linspace(0, 1, 8 * 8 * 8).reshape(1, 8, 8, 8)[
    :, torch.randperm(8, generator=torch.Generator().manual_seed(0))
]


def many(augmentation: AugmentationSettings, image: Tensor, dim: int = 3, draws: int = DRAWS) -> list[Tensor]:
    """Return the results of many draws of an augmentation of one image."""
    chain = training_transforms(augmentation, tuple(image.shape[-dim:]), ())
    torch.manual_seed(0)
    label = torch.zeros(1, *image.shape[1:], dtype=torch.int16)
    results = []
    for _ in range(draws):
        subject = tio.Subject(image=tio.ScalarImage(tensor=image.clone()), label=tio.LabelMap(tensor=label.clone()))
        results.append(chain(subject).get_image("image").data)
    return results


def assert_share(count: int, p: float, draws: int = DRAWS) -> None:
    """Check that a count agrees with a probability within four standard deviations."""
    assert abs(count - p * draws) < 4 * np.sqrt(p * (1 - p) * draws), (count, p * draws)


def changed(results: list[Tensor], image: Tensor) -> list[Tensor]:
    """Return the results that differ from the image."""
    return [result for result in results if not torch.equal(result, image)]


def only(name: str) -> AugmentationSettings:
    """Return nnU-Net's augmentation with a single kind."""
    return replace(AugmentationSettings.off(), **{name: getattr(AugmentationSettings(), name)})


def test_noise() -> None:
    image = torch.zeros(2, 8, 8, 8)
    noisy = changed(many(only("noise"), image), image)
    assert_share(len(noisy), 0.1)
    stds = np.array([result.std().item() for result in noisy])
    assert stds.max() < 0.1 * 1.1
    assert stds.mean() == pytest.approx(0.05, abs=4 * 0.029 / np.sqrt(len(stds)))
    assert all(result[0].std() / result[1].std() == pytest.approx(1, abs=0.25) for result in noisy)
    assert not torch.equal(noisy[0][0], noisy[0][1])


def check_around_one(factors: np.ndarray, low: float, high: float) -> None:
    """Check that factors fill a range, half of them below 1."""
    assert low - 1e-3 <= factors.min() < low + 0.05
    assert high - 0.05 < factors.max() <= high + 1e-3
    assert_share(int((factors < 1).sum()), 0.5, len(factors))


def test_brightness() -> None:
    image = torch.full((2, 4, 4, 4), 3.0)
    bright = changed(many(only("brightness"), image), image)
    assert_share(len(bright), 0.15)
    factors = torch.stack([result[:, 0, 0, 0] / 3 for result in bright]).numpy()
    check_around_one(factors.ravel(), 0.75, 1.25)
    assert (factors[:, 0] != factors[:, 1]).all()


def test_contrast() -> None:
    """The steepness at the mean is the factor; the range stays."""
    contrasted = changed(many(only("contrast"), RAMP), RAMP)
    assert_share(len(contrasted), 0.15)
    middle = ((RAMP - 0.5).abs() < 0.3) & ((RAMP - 0.5).abs() > 0.1)
    factors = np.array([((r[middle] - 0.5) / (RAMP[middle] - 0.5)).median().item() for r in contrasted])
    check_around_one(factors, 0.75, 1.25)
    assert all(result.min() >= 0 and result.max() <= 1 for result in contrasted)


@pytest.mark.parametrize(("name", "p", "sign"), [("gamma", 0.3, 1), ("gamma_negated", 0.1, -1)])
def test_gamma(name: str, p: float, sign: int) -> None:
    """After scaling to 0..1 again, the exponent is the ratio of the logarithms; mean and deviation are as before."""
    curved = changed(many(only(name), RAMP), RAMP)
    assert_share(len(curved), p)
    base = RAMP if sign > 0 else 1 - RAMP
    part = (base > 0.2) & (base < 0.8)
    exponents = []
    for result in curved:
        torch.testing.assert_close(result.mean(), RAMP.mean(), atol=1e-4, rtol=0)
        torch.testing.assert_close(result.std(), RAMP.std(), atol=1e-4, rtol=0)
        signed = result * sign
        scaled = (signed - signed.min()) / (signed.max() - signed.min())
        exponents.append((scaled[part].log() / base[part].log()).median().item())
    check_around_one(np.array(exponents), 0.7, 1.5)


def test_blur() -> None:
    """A point spreads with the drawn sigmas; its sum is kept."""
    image = torch.zeros(2, 11, 11, 11)
    image[:, 5, 5, 5] = 1
    results = many(only("blur"), image)
    assert_share(sum(not torch.equal(r[0], image[0]) for r in results), 0.2 * 0.5)
    assert_share(len(changed(results, image)), 0.2 * 0.75)
    offsets = torch.arange(11.0) - 5
    sigmas = []
    for result in changed(results, image):
        for channel in result:
            assert channel.sum() == pytest.approx(1, abs=1e-3)
            if channel[5, 5, 5] < 1:
                sigmas += [(channel.sum(dim=(1, 2)) * offsets**2).sum().sqrt().item()]
    assert 0.45 < min(sigmas) < 0.55
    assert 0.95 < max(sigmas) < 1.02


def test_low_resolution() -> None:
    image = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    results = many(only("low_resolution"), image)
    # A factor that rounds to the full size, 0.9375 and more, changes nothing.
    assert_share(sum(not torch.equal(r[0], image[0]) for r in results), 0.25 * 0.5 * 0.875)
    assert all(result.min() >= image.min() and result.max() <= image.max() for result in results)


def test_low_resolution_leaves_the_first_axis_of_flat_patches() -> None:
    """Slices are constant in-plane, so that in-plane reduction changes nothing."""
    image = torch.randn(1, 4, 1, 1).expand(1, 4, 16, 16).clone()
    augmentation = replace(AugmentationSettings.off(), low_resolution=LowResolution(p=1, p_channel=1))
    assert all(torch.allclose(result, image) for result in many(augmentation, image, draws=20))


def test_mirror_moves_image_and_label_together() -> None:
    """The image is a copy of the label; each axis is mirrored in half of the patches."""
    original = torch.arange(24).reshape(1, 2, 3, 4)
    chain = training_transforms(only("mirror"), (2, 3, 4), ())
    torch.manual_seed(0)
    counts: dict[tuple[bool, ...], int] = {}
    for _ in range(DRAWS):
        subject = tio.Subject(
            image=tio.ScalarImage(tensor=original.float()), label=tio.LabelMap(tensor=original.short())
        )
        result = chain(subject)
        label = result.get_image("label").data
        assert torch.equal(result.get_image("image").data, label.float())
        flips = (bool(label[0, 0, 0, 0] % 24 >= 12), bool(label[0, 0, 0, 0] % 12 >= 4), bool(label[0, 0, 0, 0] % 4))
        assert torch.equal(label.long(), torch.flip(original, [axis + 1 for axis in range(3) if flips[axis]]))
        counts[flips] = counts.get(flips, 0) + 1
    assert len(counts) == 8
    for count in counts.values():
        assert_share(count, 1 / 8)


def test_mirror_axes_of_2d_patches() -> None:
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    augmentation = replace(AugmentationSettings.off(), mirror=Mirror(p=1, axes=(1,)))
    results = many(augmentation, image, dim=2, draws=3)
    assert all(torch.equal(result, image.flip(3)) for result in results)


def test_constant_images_stay_finite(often: AugmentationSettings) -> None:
    same_size = replace(often, rotation=Rotation(p=0), scaling=Scaling(p=0))
    for augmentation in (same_size, AugmentationSettings.off()):
        for result in many(augmentation, torch.full((1, 6, 6, 6), 2.0), draws=40):
            assert torch.isfinite(result).all()
