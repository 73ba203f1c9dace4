"""The contract that every backbone fulfils in 2D and 3D; a new backbone is one line in `BACKBONES`."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from umamba.io import UserError
from umamba.networks import architecture_names, build_network
from umamba.planning import Configuration
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
# Odd plans: axes of different length, a stride of three, a kernel of one voxel, and channel tokens in the last stage of
# U-Mamba Enc.
ODD: dict[int, dict[str, Any]] = {
    2: {
        "patch_size": (12, 40),
        "strides": ((1, 1), (2, 2), (3, 2)),
        "kernel_sizes": ((3, 3), (3, 1), (1, 3)),
        "features_per_stage": (4, 6, 20),
    },
    3: {
        "patch_size": (4, 6, 40),
        "strides": ((1, 1, 1), (1, 1, 2), (2, 3, 4)),
        "kernel_sizes": ((1, 3, 3), (3, 1, 3), (3, 3, 3)),
        "features_per_stage": (4, 6, 20),
    },
}
CHANNELS, CLASSES = 2, 3

every_backbone = pytest.mark.parametrize("name", BACKBONES)
both_dimensions = pytest.mark.parametrize("dim", [2, 3])
Maker = Callable[..., Configuration]


def build(name: str, configuration: Configuration, **options: Any) -> Any:
    """Build a small network of a backbone after setting the seed; Any, because `deep_supervision` is set on it."""
    if name in ("segresnet", "unetr", "swinunetr"):
        pytest.importorskip("monai")
    torch.manual_seed(7)
    return build_network({"name": name, **BACKBONES[name], **options}, configuration, CHANNELS, CLASSES)


def images(configuration: Configuration, batch: int = 2) -> Tensor:
    """Return random images of the plan's patch size."""
    return torch.randn(batch, CHANNELS, *configuration.patch_size, generator=torch.Generator().manual_seed(1))


def as_list(outputs: Tensor | list[Tensor]) -> list[Tensor]:
    """Return the outputs as a list."""
    return [outputs] if isinstance(outputs, Tensor) else outputs


def test_every_architecture_is_listed() -> None:
    assert set(BACKBONES) == set(architecture_names()) == {name for name in ARCHITECTURES if name}


@every_backbone
@both_dimensions
@pytest.mark.parametrize("odd", [False, True])
def test_outputs_have_the_plans_sizes(name: str, dim: int, odd: bool, make_configuration: Maker) -> None:
    configuration = make_configuration(dim, **(ODD[dim] if odd else {}))
    network = build(name, configuration).eval()
    size = list(configuration.patch_size)
    with torch.no_grad():
        x = images(configuration, batch=1)
        outputs = network(x)
        assert network.deep_supervision == network.supports_deep_supervision
        network.deep_supervision = False
        alone = network(x)
    assert isinstance(alone, Tensor)
    assert list(alone.shape) == [1, CLASSES, *size]
    assert torch.equal(alone, as_list(outputs)[0])
    if network.supports_deep_supervision:
        assert isinstance(outputs, list)
        expected = [size, [s // t for s, t in zip(size, configuration.strides[1], strict=True)]]
        assert [list(output.shape[2:]) for output in outputs] == expected
        assert all(output.shape[1] == CLASSES for output in outputs)
    else:
        assert isinstance(outputs, Tensor)


@every_backbone
@both_dimensions
def test_gradients_reach_every_parameter_in_a_batch_of_one(name: str, dim: int, make_configuration: Maker) -> None:
    configuration = make_configuration(dim)
    network = build(name, configuration).train()
    outputs = as_list(network(images(configuration, 1)))
    torch.stack([(output * torch.randn_like(output)).sum() for output in outputs]).sum().backward()
    without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


@every_backbone
@both_dimensions
def test_bfloat16_autocast_trains_without_overflow(name: str, dim: int, make_configuration: Maker) -> None:
    configuration = make_configuration(dim)
    network = build(name, configuration).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = as_list(network(images(configuration)))
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    assert all(output.isfinite().all() for output in outputs)
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@every_backbone
@both_dimensions
def test_same_seed_same_network_and_checkpoints_round_trip(name: str, dim: int, make_configuration: Maker) -> None:
    configuration = make_configuration(dim)
    network, twin = build(name, configuration).eval(), build(name, configuration).eval()
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(torch.equal(tensor, state[key]) for key, tensor in twin.state_dict().items())
    torch.manual_seed(8)
    other = build_network({"name": name, **BACKBONES[name]}, configuration, CHANNELS, CLASSES).eval()
    other.load_state_dict(state, strict=True)
    x = images(configuration)
    with torch.no_grad():
        first, second, third = (as_list(net(x))[0] for net in (network, network, other))
    assert torch.equal(first, second)
    assert torch.equal(first, third)


@every_backbone
@both_dimensions
def test_images_of_a_batch_do_not_mix(name: str, dim: int, make_configuration: Maker) -> None:
    configuration = make_configuration(dim)
    network = build(name, configuration).eval()
    network.deep_supervision = False
    x = images(configuration)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(x[:1]), network(x[1:])])
    # not equality: kernels differ by batch size, and a Mamba layer without residual amplifies float32 noise
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3 * together.abs().max().item())


@every_backbone
def test_unknown_options_are_refused(name: str, make_configuration: Maker) -> None:
    with pytest.raises(UserError, match=r"Unknown key 'architecture\.d_stat'"):
        build(name, make_configuration(2), d_stat=3)


@every_backbone
@both_dimensions
def test_other_sizes_run_or_are_refused_by_name(name: str, dim: int, make_configuration: Maker) -> None:
    """A tile of another size gives logits of that size, or a message that names the patch size."""
    configuration = make_configuration(dim, **ODD[dim])
    network = build(name, configuration).eval()
    network.deep_supervision = False
    size = tuple(2 * axis for axis in configuration.patch_size)
    with torch.no_grad():
        if network.fixed_patch_size is None:
            assert network(torch.randn(1, CHANNELS, *size)).shape[2:] == size
        else:
            assert network.fixed_patch_size == configuration.patch_size
            with pytest.raises(UserError, match="patch size"):
                network(torch.randn(1, CHANNELS, *size))
    assert (network.fixed_patch_size is not None) == (name in ("umamba_enc", "unetr"))


@pytest.mark.slow
@every_backbone
@both_dimensions
def test_compiled_networks_compute_the_same(name: str, dim: int, make_configuration: Maker) -> None:
    configuration = make_configuration(dim)
    network = build(name, configuration).double()  # rounding must not be mistaken for a difference
    x = torch.randn(1, CHANNELS, *configuration.patch_size, dtype=torch.float64)
    torch.compiler.reset()  # what earlier tests compiled counts towards the limit after which nothing is compiled
    results = []
    for forward in (network, torch.compile(network, backend="aot_eager")):
        network.zero_grad()
        outputs = forward(x)
        sum(output.square().mean() for output in (outputs if isinstance(outputs, list) else [outputs])).backward()
        results.append((outputs, [parameter.grad for parameter in network.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-9)
