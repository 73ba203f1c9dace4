"""The chain of transforms: order, base classes, the shipped settings, and mistakes in them."""

from typing import Any

import pytest
import torchio as tio

from umamba.cli.compose import settings_of
from umamba.io import UserError
from umamba.patches.augmentation import training_transforms
from umamba.patches.intensity import ApplyGamma, ClearOutside
from umamba.settings import AugmentationSettings, TrainSettings, parse

EVERY_KIND = [
    "RotateScaleCrop",
    "AddNoise",
    "BlurChannels",
    "ScaleBrightness",
    "ScaleContrast",
    "LowerResolution",
    "ApplyGamma",
    "ApplyGamma",
    "MirrorPatch",
    "ClearOutside",
]


def test_order_is_that_of_nnunet() -> None:
    chain = training_transforms(AugmentationSettings(), (8, 8, 8), (False,))
    assert [type(transform).__name__ for transform in chain.transforms] == EVERY_KIND
    assert [transform.sign for transform in chain.transforms if isinstance(transform, ApplyGamma)] == [-1.0, 1.0]


def test_kinds_that_are_off_are_left_out() -> None:
    (only,) = training_transforms(AugmentationSettings.off(), (8, 8, 8), (True, False, True)).transforms
    assert isinstance(only, ClearOutside)
    assert only.channels == (0, 2)


def test_base_classes_are_those_that_torchio_keeps(often: AugmentationSettings) -> None:
    """TorchIO 2 removes RandomTransform and its subclasses."""
    chain = training_transforms(often, (8, 8), (True,))
    assert len(chain.transforms) == len(EVERY_KIND) + 1  # and the random convolution, which nnU-Net does not have
    for transform in chain.transforms:
        assert isinstance(transform, tio.Transform)
        assert not any(base.__name__.startswith("Random") for base in type(transform).__mro__)


def test_shipped_settings() -> None:
    """`nnunet` is the default, `strong` adds two kinds, `light` keeps four, `spatial` three and `none` no kind."""

    def read(*overrides: str) -> AugmentationSettings:
        return settings_of(TrainSettings, ["dataset.root=x", *overrides]).augmentation

    def on(settings: AugmentationSettings) -> set[str]:
        return {name for name, options in vars(settings).items() if hasattr(options, "p") and options.p > 0}

    assert read("augmentation=nnunet") == AugmentationSettings()
    assert len(on(AugmentationSettings())) == 10
    assert on(read("augmentation=light")) == {"mirror", "noise", "brightness", "gamma"}
    assert on(read("augmentation=strong")) - on(AugmentationSettings()) == {"cutmix", "convolution"}
    assert on(read("augmentation=spatial")) == {"rotation", "scaling", "mirror"}
    assert on(read("augmentation=none")) == on(AugmentationSettings.off()) == set()
    assert on(read("augmentation=none", "augmentation.mirror.p=0.5")) == {"mirror"}
    assert read("augmentation.mirror.p=0").mirror.p == 0


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"elastic": {"p": 1}}, r"augmentation\.elastic"),
        ({"device": "tpu"}, r"augmentation\.device=tpu: must be one of cpu, gpu"),
        ({"mirror": 0.5}, r"augmentation\.mirror=0\.5"),
        ({"mirror": {"q": 0.5}}, r"augmentation\.mirror\.q"),
        ({"mirror": {"p": 1.5}}, r"augmentation\.mirror\.p=1\.5"),
        ({"mirror": {"p": "often"}}, r"augmentation\.mirror\.p"),
        ({"mirror": {"axes": [3]}}, r"augmentation\.mirror\.axes"),
        ({"blur": {"sigma": [1.0, 0.5]}}, r"augmentation\.blur\.sigma"),
        ({"gamma": {"exponent": 0.7}}, r"augmentation\.gamma\.exponent"),
        ({"scaling": {"factor": [0, 1]}}, r"augmentation\.scaling\.factor"),
        ({"low_resolution": {"factor": [0.5, 2]}}, r"augmentation\.low_resolution\.factor"),
        ({"rotation": {"degrees_3d": 200}}, r"augmentation\.rotation\.degrees_3d"),
    ],
)
def test_mistakes_name_the_key(group: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(AugmentationSettings, group)


def test_null_turns_a_kind_off() -> None:
    assert parse(AugmentationSettings, {"mirror": None}).mirror.p == 0
    assert AugmentationSettings.off().mirrored_axes(3) == ()
    assert AugmentationSettings().mirrored_axes(3) == (0, 1, 2)
