"""Options of the architectures, their initial weights, official parameter names, messages."""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from umamba.io import UserError
from umamba.networks import build_network, official_state_dict
from umamba.networks.umamba import block_counts, mamba_stages
from umamba.planning import Configuration
from umamba.settings import read_architecture

Maker = Callable[..., Configuration]


def build(configuration: Configuration, name: str, **options: Any) -> Any:
    """Build a network for one channel and two classes; Any, because nn.Module hides what its layers are."""
    return build_network(read_architecture({"name": name, **options}), configuration, 1, 2)


def deep(make: Maker, dim: int, stages: int) -> Configuration:
    """Return a configuration of so many stages with two blocks each."""
    return make(
        dim,
        patch_size=(2**stages,) * dim,
        strides=((1,) * dim, *((2,) * dim,) * (stages - 1)),
        kernel_sizes=((3,) * dim,) * stages,
        features_per_stage=(4,) * stages,
        encoder_blocks=(2,) * stages,
        decoder_blocks=(2,) * (stages - 1),
    )


# By hand from the official constructor's rule; n = 6 and n = 7 are also the effective lists of Table 2's CT and MR.
@pytest.mark.parametrize(
    ("stages", "encoder", "decoder"),
    [
        (4, (2, 2, 1, 1), (2, 2, 1)),
        (5, (2, 2, 2, 1, 1), (2, 2, 2, 1)),
        (6, (2, 2, 2, 1, 1, 1), (2, 2, 2, 1, 1)),
        (7, (2, 2, 2, 2, 1, 1, 1), (2, 2, 2, 2, 1, 1)),
    ],
)
def test_block_counts(
    stages: int, encoder: tuple[int, ...], decoder: tuple[int, ...], make_configuration: Maker
) -> None:
    configuration = deep(make_configuration, 2, stages)
    assert block_counts("official", configuration) == (encoder, decoder)
    assert block_counts("paper", configuration) == ((2,) * stages, (2,) * (stages - 1))


def test_mamba_stages(make_configuration: Maker) -> None:
    assert mamba_stages("official", deep(make_configuration, 2, 7)) == (0, 2, 4, 6)
    assert mamba_stages("official", deep(make_configuration, 2, 8)) == (1, 3, 5, 7)
    assert mamba_stages("official", deep(make_configuration, 3, 4)) == (0, 1, 2, 3)
    assert mamba_stages("all", deep(make_configuration, 2, 4)) == (0, 1, 2, 3)
    assert mamba_stages((0, 2), deep(make_configuration, 2, 4)) == (0, 2)
    network = build(deep(make_configuration, 2, 4), "umamba_enc", mamba_stages=[0, 2])
    assert [isinstance(layer, nn.Identity) for layer in network.encoder.mamba_layers] == [False, True, False, True]


def test_full_resolution_skip_changes_the_last_decoder_stage_in_2d_only(make_configuration: Maker) -> None:
    widths = {}
    for dim in (2, 3):
        for choice in ("official", "always"):
            network = build(make_configuration(dim), "umamba_bot", full_resolution_skip=choice)
            widths[dim, choice] = [stage[0].conv1.in_channels for stage in network.decoder.stages]
    assert widths == {
        (2, "official"): [12, 4],
        (2, "always"): [12, 8],
        (3, "official"): [12, 8],
        (3, "always"): [12, 8],
    }


def test_transposed_upsampling(make_configuration: Maker) -> None:
    network = build(make_configuration(3), "umamba_bot", decoder_upsampling="transposed")
    layers = list(network.decoder.upsample_layers)
    assert all(isinstance(layer, nn.ConvTranspose3d) for layer in layers)
    assert [(layer.kernel_size, layer.stride) for layer in layers] == [((2, 2, 2),) * 2, ((1, 2, 2),) * 2]
    assert network(torch.randn(1, 1, 4, 40, 8))[0].shape == (1, 2, 4, 40, 8)


@pytest.mark.parametrize("name", ["umamba_bot", "umamba_enc"])
def test_a_residual_layer_that_adds_nothing_is_the_network_without_mamba(name: str, make_configuration: Maker) -> None:
    configuration = make_configuration(2)
    residual = build(configuration, name, residual=True).eval()
    without = build(configuration, name, mamba="identity").eval()
    assert not any("mamba" in key for key in without.state_dict())
    without.load_state_dict({key: value for key, value in residual.state_dict().items() if "mamba" not in key})
    x = torch.randn(1, 1, 40, 24)
    with torch.no_grad():
        assert not torch.allclose(residual(x)[0], without(x)[0])
        for key, parameter in residual.named_parameters():
            if key.endswith("mamba.out_proj.weight"):
                parameter.zero_()
        torch.testing.assert_close(residual(x)[0], without(x)[0], rtol=1e-5, atol=1e-6)


def test_sizes_of_the_mamba_layer(make_configuration: Maker) -> None:
    network = build(make_configuration(2), "umamba_bot", d_state=5, d_conv=3, expand=3)
    mamba = network.mamba_layer.mamba
    assert mamba.A_log.shape == (24, 5)
    assert mamba.conv1d.weight.shape == (24, 1, 3)


def convolutions(network: nn.Module) -> dict[str, Any]:
    """Return the 2D and 3D convolutions by name."""
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("name", ["umamba_enc", "unet", "resenc_unet"])
def test_initial_weights(name: str, make_configuration: Maker) -> None:
    network = build(make_configuration(3, features_per_stage=(16, 24, 32)), name)
    large = 0
    for module in convolutions(network).values():
        if module.bias is not None:
            assert module.bias.abs().max() == 0
        if module.weight.numel() > 5000:
            large += 1
            fan_in = module.weight[0].numel()  # also of transposed ones: torch counts their outputs as inputs
            expected = math.sqrt(2 / (1 + 0.01**2) / fan_in)
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert large > 5
    norms = {key: module for key, module in network.named_modules() if isinstance(module, nn.InstanceNorm3d)}
    for key, module in norms.items():
        starts_at_zero = name == "resenc_unet" and key.endswith("conv2.norm")
        assert (module.weight == (0 if starts_at_zero else 1)).all()
        assert (module.bias == 0).all()


def test_initial_weights_of_mamba_are_not_touched(make_configuration: Maker) -> None:
    configuration = make_configuration(3, features_per_stage=(4, 6, 200))
    mamba = build(configuration, "umamba_bot").mamba_layer.mamba
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 17).expand(400, 16), rtol=1e-5, atol=0)
    assert mamba.in_proj.weight.abs().max() <= 1 / math.sqrt(200)  # uniform, torch's default
    assert mamba.conv1d.bias.abs().max() > 0
    delta = nn.functional.softplus(mamba.dt_proj.bias)
    assert delta.min() >= 0.9e-3
    assert delta.max() <= 0.11


def test_official_names() -> None:
    tensors = {
        "module.encoder.stages.0.0.conv1.weight": torch.zeros(1),
        "encoder.stages.0.1.conv1.all_modules.0.weight": torch.zeros(2),
        "encoder.stages.0.1.conv1.conv.weight": torch.zeros(2),
        "module.decoder.encoder.stages.0.0.conv1.weight": torch.zeros(1),
        "_orig_mod.decoder.seg_layers.0.bias": torch.zeros(3),
        "vit.blocks.3.norm_cross_attn.weight": torch.zeros(4),
    }
    assert {key: len(tensor) for key, tensor in official_state_dict(tensors).items()} == {
        "encoder.stages.0.0.conv1.weight": 1,
        "encoder.stages.0.1.conv1.conv.weight": 2,
        "decoder.seg_layers.0.bias": 3,
    }


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "vnet"}, "architecture.name=vnet: must be one of umamba_bot.*Did you mean unet"),
        ({}, "architecture.name"),
        ({"name": "umamba_bot", "mamba_stages": "all"}, "Unknown key 'architecture.mamba_stages'.*blocks"),
        ({"name": "umamba_bot", "blocks": "two"}, "architecture.blocks=two: must be one of official, paper"),
        ({"name": "umamba_bot", "d_state": 0}, "architecture.d_state=0: must be a whole number from 1"),
        ({"name": "umamba_enc", "mamba_stages": [1, 3]}, r"architecture.mamba_stages=\[1, 3\]: 3 does.*0 to 2"),
        ({"name": "segresnet", "init_filters": 12}, "architecture.init_filters=12: must be a multiple of 8"),
        ({"name": "umamba.training.module:build"}, "inside this project only umamba.networks.MODULE:FUNCTION"),
        ({"name": "umamba.networks.unet:nothing"}, "the module umamba.networks.unet has no function nothing"),
        ({"name": "umamba.networks.absent:build"}, "there is no module umamba.networks.absent"),
    ],
)
def test_mistakes_name_the_key(architecture: dict[str, Any], message: str, make_configuration: Maker) -> None:
    with pytest.raises(UserError, match=message):
        build_network(architecture, make_configuration(2), 1, 2)


def test_a_missing_monai_is_named(monkeypatch: pytest.MonkeyPatch, make_configuration: Maker) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "monai" or name.endswith("monai_nets")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(UserError, match="segresnet: needs MONAI"):
        build(make_configuration(2), "segresnet")


@pytest.mark.parametrize("name", ["unet", "umamba_enc"])
def test_plans_that_make_no_u_are_refused(name: str, make_configuration: Maker) -> None:
    with pytest.raises(UserError, match="single voxel"):
        build(make_configuration(2, patch_size=(4, 4)), name)
    with pytest.raises(UserError, match="not divisible"):
        build(make_configuration(2, patch_size=(40, 26)), name)
    one = {"strides": ((1, 1),), "kernel_sizes": ((3, 3),), "features_per_stage": (4,), "encoder_blocks": (2,)}
    with pytest.raises(UserError, match="one stage"):
        build(make_configuration(2, decoder_blocks=(), **one), name)


def test_images_that_do_not_fit_the_strides_are_refused(make_configuration: Maker) -> None:
    network = build(make_configuration(2), "unet")
    with pytest.raises(UserError, match=r"\(40, 26\).*\(4, 4\)"):
        network(torch.randn(1, 1, 40, 26))


@pytest.mark.parametrize("name", ["segresnet", "unetr", "swinunetr"])
@pytest.mark.parametrize("dim", [2, 3])
def test_monai_networks_are_padded_evenly_and_cropped_back(name: str, dim: int, make_configuration: Maker) -> None:
    """On an odd patch, the logits are those of MONAI's own forward for the image in the middle of zeros."""
    pytest.importorskip("monai")
    small: dict[str, dict[str, Any]] = {
        "segresnet": {"init_filters": 8, "blocks_down": [1, 1, 1, 1]},
        "unetr": {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2},
        "swinunetr": {"feature_size": 12, "depths": [1] * 4, "num_heads": [1] * 4, "monai_compat": "1.6"},
    }
    size = (41, 20, 11)[:dim]
    inner = {"segresnet": (48, 24, 16), "unetr": (48, 32, 16), "swinunetr": (64, 32, 32)}[name][:dim]
    before = {"segresnet": (3, 2, 2), "unetr": (3, 6, 2), "swinunetr": (11, 6, 10)}[name][:dim]
    network = build(make_configuration(dim, patch_size=size), name, **small[name]).eval()
    monai_class: Any = type(network).__mro__[2]
    monai_forward = monai_class.forward
    x = torch.randn(1, 1, *size)
    middle: Any = (..., *(slice(start, start + extent) for start, extent in zip(before, size, strict=True)))
    padded = torch.zeros(1, 1, *inner)
    padded[middle] = x
    with torch.no_grad():
        assert torch.equal(network(x), monai_forward(network, padded)[middle])


@pytest.mark.parametrize("dim", [2, 3])
def test_swinunetr_16_is_that_of_monai(dim: int, make_configuration: Maker) -> None:
    monai = pytest.importorskip("monai")
    if tuple(map(int, monai.__version__.split(".")[:2])) < (1, 6):
        pytest.skip("needs the corrected patch merging")
    from monai.networks.nets import SwinUNETR

    small: dict[str, Any] = {"feature_size": 12, "depths": [1] * 4, "num_heads": [1] * 4}
    configuration = make_configuration(dim, patch_size=(64, 32, 32)[:dim])
    corrected = build(configuration, "swinunetr", **small, monai_compat="1.6").eval()
    older = build(configuration, "swinunetr", **small, monai_compat="1.3").eval()
    theirs = SwinUNETR(in_channels=1, out_channels=2, spatial_dims=dim, **small).eval()
    for network in (older, theirs):
        network.load_state_dict(corrected.state_dict(), strict=True)
    x = torch.randn(1, 1, *configuration.patch_size)
    with torch.no_grad():
        assert torch.equal(corrected(x), theirs(x))
        assert torch.equal(older(x), theirs(x)) == (dim == 2)
