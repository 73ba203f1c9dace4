"""The contract that every backbone fulfils in 2D and 3D; a new backbone is one line in `BACKBONES`."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from umamba.io import UserError
from umamba.networks import architecture_names, build_network, conformance
from umamba.networks.conformance import CHANNELS, CHECKS, CLASSES, Check, Nonconforming, run_checks, small_configuration
from umamba.settings import ARCHITECTURES

# name -> options that make it small
BACKBONES: dict[str, dict[str, Any]] = {
    "umamba_bot": {"d_state": 4},
    "umamba_enc": {"d_state": 4},
    "unet": {},
    "resenc_unet": {},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "unetr": {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2},
    "swinunetr": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
}
# mixer -> options that make it small
MIXERS: dict[str, dict[str, Any]] = {
    "mamba2": {"d_state": 4, "head_width": 8},
    "mlstm": {"head_width": 8},
    "convolution": {"mixer_kernel": 3},
    "identity": {},
}
SLOW = ("torch.compile",)

every_backbone = pytest.mark.parametrize("name", BACKBONES)
both_dimensions = pytest.mark.parametrize("dim", [2, 3])


def needs_monai(name: str) -> None:
    """Skip a test of a network of MONAI where MONAI is not installed."""
    if name in ("segresnet", "unetr", "swinunetr"):
        pytest.importorskip("monai")


def test_every_architecture_is_listed() -> None:
    assert set(BACKBONES) == set(architecture_names()) == {name for name in ARCHITECTURES if name}


@every_backbone
@both_dimensions
@pytest.mark.parametrize(
    "check",
    [pytest.param(each, id=each.name, marks=pytest.mark.slow if each.name in SLOW else ()) for each in CHECKS],
)
def test_backbones_fulfil_the_contract(name: str, dim: int, check: Check) -> None:
    needs_monai(name)
    check.run({"name": name, **BACKBONES[name]}, small_configuration(dim, check.odd))


@pytest.mark.parametrize("mixer", MIXERS)
@both_dimensions
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(each, id=each.name, marks=(pytest.mark.slow, pytest.mark.nightly) if each.name in SLOW else ())
        for each in CHECKS
    ],
)
def test_mixers_fulfil_the_contract(mixer: str, dim: int, check: Check) -> None:
    architecture = {"name": "umamba_enc", "mixer": mixer, **MIXERS[mixer]}
    check.run(architecture, small_configuration(dim, check.odd))


@every_backbone
@both_dimensions
@pytest.mark.parametrize("odd", [False, True])
def test_deep_supervision_has_the_plans_sizes(name: str, dim: int, odd: bool) -> None:
    needs_monai(name)
    configuration = small_configuration(dim, odd)
    network: Any = build_network({"name": name, **BACKBONES[name]}, configuration, CHANNELS, CLASSES)
    size, strides = configuration.patch_size, configuration.strides
    with torch.no_grad():
        outputs = network(torch.zeros(1, CHANNELS, *size))
    expected = [size, tuple(whole // stride for whole, stride in zip(size, strides[1], strict=True))]
    if network.supports_deep_supervision:
        assert [tuple(output.shape[2:]) for output in outputs] == expected
    assert (network.fixed_patch_size is not None) == ((odd and name == "umamba_enc") or name == "unetr")


@every_backbone
def test_unknown_options_are_refused(name: str) -> None:
    needs_monai(name)
    with pytest.raises(UserError, match=r"Unknown key 'architecture\.d_stat'"):
        build_network({"name": name, **BACKBONES[name], "d_stat": 3}, small_configuration(2))


NUMBERS = count()  # another one for each network


class Faulty(nn.Module):
    """A convolution with one fault."""

    supports_deep_supervision = False
    fixed_patch_size: tuple[int, ...] | None = None

    def __init__(self, dim: int, fault: str) -> None:
        super().__init__()
        self.deep_supervision = False
        self.fault = fault
        self.kept: Tensor | None = None
        convolution = nn.Conv2d if dim == 2 else nn.Conv3d
        self.layer = convolution(CHANNELS, CLASSES, 3, padding=1)
        self.unused = nn.Parameter(torch.ones(1), requires_grad=fault == "unused")
        if fault == "fixed":
            self.fixed_patch_size = (8,) * dim
        if fault == "random":
            nn.init.constant_(self.layer.bias, next(NUMBERS))  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits, with the fault."""
        logits: Tensor = self.layer(image)
        if self.fault == "keeps":
            self.kept = logits
        if self.fault == "mixes":
            logits = logits + image.mean()
        if self.fault == "overflows":
            logits = logits.float() + torch.finfo(torch.float32).max * 2
        if self.fault == "size":
            logits = logits[..., 1:]
        if self.fault == "python":
            logits = logits * (2 if torch.compiler.is_compiling() else 1)
        return logits


FAULTS = {
    "size": ("output sizes", "the logits are"),
    "unused": ("gradients", "no gradient reaches unused"),
    "overflows": ("bfloat16 autocast", "not finite"),
    "mixes": ("images of a batch", "when it is alone"),
    "fixed": ("tiles of another size", "not the plan's patch"),
    "keeps": ("memory", "keeps an image or an output"),
    "random": ("weights saved and loaded", "the same seed gives other weights"),
    "python": ("torch.compile", "compiled, values differ"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_check_finds_its_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that never fails would check nothing."""

    def faulty(architecture: Any, configuration: Any) -> Faulty:
        return Faulty(configuration.dim, fault)

    monkeypatch.setattr(conformance, "_built", faulty)
    name, said = FAULTS[fault]
    (check,) = [each for each in CHECKS if each.name == name]
    with pytest.raises(Nonconforming, match=said):
        check.run("faulty", small_configuration(2, check.odd))


def test_what_a_network_raises_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Iterator[Any]:
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr(conformance, "_built", broken)
    monkeypatch.setattr(conformance, "CHECKS", CHECKS[:2])
    outcomes = list(run_checks("broken", [3]))
    assert [(each.passed, each.remark, each.dim) for each in outcomes] == [(False, "ZeroDivisionError: by zero", 3)] * 2
