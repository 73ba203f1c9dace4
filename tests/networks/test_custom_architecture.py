"""Backbones in a module that a user adds: their record checks the options, with and without a network."""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from umamba.io import UserError
from umamba.networks import build_network, custom_settings
from umamba.planning import Configuration
from umamba.settings import ArchitectureSettings, CustomArchitectureSettings, Settings, plain, read_architecture
from umamba.settings.fields import key

NAME = "umamba.networks.plain_net:build"


@dataclass(frozen=True)
class PlainNetSettings(ArchitectureSettings):
    """Options of the test's backbone."""

    width: int = key(8, "Channels of each layer.", low=1)


@dataclass(frozen=True)
class NamelessSettings(Settings):
    """Options without a name."""

    width: int = 8


class PlainNet(nn.Module):
    """One 3D convolution to the logits."""

    supports_deep_supervision = False

    def __init__(self, width: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.deep_supervision = False
        self.fixed_patch_size = None
        self.layers = nn.Sequential(nn.Conv3d(in_channels, width, 3, padding=1), nn.Conv3d(width, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def build(settings: PlainNetSettings, configuration: Configuration, in_channels: int, num_classes: int) -> nn.Module:
    return PlainNet(settings.width, in_channels, num_classes)


def build_nameless(settings: NamelessSettings, configuration: Configuration, channels: int, classes: int) -> nn.Module:
    return PlainNet(settings.width, channels, classes)


def build_untyped(settings, configuration, channels, classes):  # type: ignore[no-untyped-def]
    return PlainNet(1, channels, classes)


@pytest.fixture(autouse=True)
def user_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the functions above importable as a user's module in umamba.networks."""
    module = ModuleType("umamba.networks.plain_net")
    module.build, module.build_nameless, module.build_untyped = build, build_nameless, build_untyped  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def custom(**options: object) -> CustomArchitectureSettings:
    """Return the settings of the backbone as the command line reads them."""
    settings = read_architecture({"name": NAME, **options})
    assert isinstance(settings, CustomArchitectureSettings)
    return settings


def test_the_record_is_made_without_a_network() -> None:
    found = custom_settings(custom(width=3))
    assert found == PlainNetSettings(name=NAME, width=3)
    assert plain(found) == plain(custom(width=3)) == {"name": NAME, "width": 3}


def test_an_unknown_option_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(UserError, match=r"Unknown key 'architecture\.widht'. Did you mean 'architecture\.width'\?"):
        custom_settings(custom(widht=3))
    with pytest.raises(UserError, match=r"architecture\.width=0: must be a whole number from 1"):
        custom_settings(custom(width=0))
    with pytest.raises(UserError, match="Did you mean"):
        build_network(custom(widht=3), patch_size=(8, 16, 16))


def test_the_network_is_built_and_protected() -> None:
    network: Any = build_network({"name": NAME, "width": 3}, patch_size=(8, 16, 16), num_classes=4)
    assert network(torch.zeros(1, 1, 8, 16, 16)).shape == (1, 4, 8, 16, 16)
    assert {type(layer).__name__ for layer in network.layers} == {"DepthTwoConv3d"}
    assert not network.deep_supervision
    direct: Any = build_network(PlainNetSettings(name=NAME, width=5), patch_size=(8, 16, 16))
    assert direct.layers[0].out_channels == 5


def test_a_record_needs_no_name() -> None:
    settings = CustomArchitectureSettings("umamba.networks.plain_net:build_nameless", {"width": 2})
    assert custom_settings(settings) == NamelessSettings(width=2)
    with pytest.raises(UserError, match=r"Unknown key 'architecture\.depth'"):
        custom_settings(CustomArchitectureSettings("umamba.networks.plain_net:build_nameless", {"depth": 2}))


def test_a_function_without_a_record_is_refused() -> None:
    with pytest.raises(UserError, match="must be annotated with its settings"):
        custom_settings(CustomArchitectureSettings("umamba.networks.plain_net:build_untyped"))
