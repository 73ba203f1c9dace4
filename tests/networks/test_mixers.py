"""The mixers that take the place of the Mamba layers: options, parameters, cost, and the reach of convolutions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from umamba.io import UserError
from umamba.networks import build_network, configuration_for_patch, cpu_layers
from umamba.networks.cost import network_cost
from umamba.networks.cost_table import beside_mamba, disagreements
from umamba.networks.mamba import Mamba, MambaLayer
from umamba.networks.mamba2 import Mamba2
from umamba.networks.mixers import ConvolutionLayer, mamba_parameters, mixer_layer
from umamba.networks.mlstm import MLSTM
from umamba.networks.receptive_field import convolutional_reach
from umamba.planning import Configuration
from umamba.settings import UMambaBotSettings, UMambaEncSettings, plain, read_architecture

Maker = Callable[..., Configuration]
BLOCKS: dict[str, type[nn.Module]] = {"mamba": Mamba, "mamba2": Mamba2, "mlstm": MLSTM}
CONTROLS = ("mamba2", "mlstm", "convolution")


def count(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("mixer", BLOCKS)
@pytest.mark.parametrize("voxels", [None, 12])
def test_a_sequence_mixer_is_a_layer_around_its_block(mixer: str, voxels: int | None) -> None:
    torch.manual_seed(0)
    layer: Any = mixer_layer(UMambaBotSettings(mixer=mixer, scan_directions="bidirectional"), 2, 20, voxels)  # type: ignore[arg-type]
    assert isinstance(layer, MambaLayer)
    assert {type(block) for block in (layer.mamba, *layer.other_mambas)} == {BLOCKS[mixer]}
    x = torch.randn(2, 20, 3, 4)
    tokens = x.flatten(2) if voxels else x.flatten(2).transpose(1, 2)
    normed = layer.norm(tokens)
    y = (layer.mamba(normed) + layer.other_mambas[0](normed.flip(1)).flip(1)) / 2
    torch.testing.assert_close(layer(x).flatten(2), y if voxels else y.transpose(1, 2))


@pytest.mark.parametrize("dim", [2, 3])
def test_the_convolution_by_its_definition(dim: int) -> None:
    torch.manual_seed(0)
    options = UMambaBotSettings(mixer="convolution", mixer_kernel=3, residual=True)
    layer: Any = mixer_layer(options, dim, 4)
    x = torch.randn(2, 4, *(3, 5, 4)[:dim], dtype=torch.float64)
    layer.double()
    normed = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    inner = torch.einsum("oc...,bc->bo", layer.in_proj.weight.flatten(1), normed.flatten(2)[..., 0])
    projected, gate = (
        torch.einsum("oc,bc...->bo...", each.weight.flatten(1), normed) for each in (layer.in_proj, layer.gate_proj)
    )
    torch.testing.assert_close(projected.flatten(2)[..., 0], inner)
    padded = torch.nn.functional.pad(projected, (1, 1) * dim)
    mixed = torch.zeros_like(projected) + layer.conv.bias.reshape(1, -1, *(1,) * dim)
    for tap in torch.cartesian_prod(*(torch.arange(3) for _ in range(dim))).tolist():
        window: Any = (..., *(slice(k, k + n) for k, n in zip(tap, x.shape[2:], strict=True)))
        mixed += padded[window] * layer.conv.weight[(slice(None), 0, *tap)].reshape(1, -1, *(1,) * dim)
    gated = mixed * torch.sigmoid(mixed) * gate * torch.sigmoid(gate)
    expected = x + torch.einsum("oc,bc...->bo...", layer.out_proj.weight.flatten(1), gated)
    torch.testing.assert_close(layer(x), expected)


def test_the_default_is_the_network_of_before(make_configuration: Maker) -> None:
    torch.manual_seed(5)
    network: Any = build_network("umamba_bot", make_configuration(2), 1, 2)
    layer = network.mamba_layer
    assert [name for name, _ in layer.named_children()] == ["norm", "mamba", "other_mambas"]
    assert type(layer.mamba) is Mamba
    torch.manual_seed(5)
    expected: Any = MambaLayer(8, num_axes=2)  # built first, so that its weights have the same random numbers
    assert torch.equal(layer.mamba.in_proj.weight, expected.mamba.in_proj.weight)


def test_the_older_name_says_the_same() -> None:
    older, newer = (read_architecture({"name": "umamba_enc", key: "identity"}) for key in ("mamba", "mixer"))
    assert plain(older) == plain(newer)
    assert (plain(older)["mixer"], plain(older)["mamba"]) == ("identity", "identity")
    assert read_architecture(plain(older)) == older
    earlier = {"name": "umamba_enc", "mamba": "identity", "d_state": 8, "scan_directions": "axes"}
    assert read_architecture(earlier).mixer == "identity"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mixer": "mlstm", "mamba": "identity"}, "contradicts architecture.mixer=mlstm"),
        ({"mixer": "identity", "match": "parameters"}, "has no parameters"),
        ({"mixer": "convolution", "scan_directions": "axes"}, "scan_directions=axes: mixer=convolution does not have"),
        ({"mixer": "convolution", "mixer_kernel": 6}, "must be odd"),
        ({"mixer": "mlstm", "d_state": 4}, "d_state=4: mixer=mlstm"),
        ({"mixer": "mamba2", "scan_backend": "reference"}, "scan_backend=reference: mixer=mamba2"),
        ({"head_width": 8}, "head_width=8: mixer=mamba does"),
        ({"mixer": "hyena"}, "mamba2"),
    ],
)
def test_options_that_a_mixer_does_not_have_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_architecture({"name": "umamba_bot", **options})


@pytest.mark.parametrize("mixer", CONTROLS)
@pytest.mark.parametrize(("features", "voxels"), [(32, None), (320, None), (320, 210)])
def test_a_control_can_have_as_many_parameters_as_mamba(mixer: str, features: int, voxels: int | None) -> None:
    with torch.device("meta"):
        original = mixer_layer(UMambaBotSettings(), 3, features, voxels)
        matched = mixer_layer(UMambaBotSettings(mixer=mixer, match="parameters"), 3, features, voxels)  # type: ignore[arg-type]
        plain_one = mixer_layer(UMambaBotSettings(mixer=mixer), 3, features, voxels)  # type: ignore[arg-type]
    assert count(original) == mamba_parameters(voxels or features, 16, 4, 2) + 2 * (voxels or features)
    # Heads of equal width, in mlstm a multiple of 4, leave a rest.
    assert abs(count(matched) - count(original)) / count(original) < 0.04
    assert abs(count(matched) - count(original)) <= abs(count(plain_one) - count(original))


def test_the_parameters_are_told_beside_mambas(make_configuration: Maker) -> None:
    configuration = make_configuration(3)
    sizes = {
        mixer: count(build_network({"name": "umamba_bot", "mixer": mixer}, configuration, 1, 2))
        for mixer in ("mamba", "mlstm", "identity")
    }
    said = beside_mamba({"name": "umamba_bot", "mixer": "mlstm"}, configuration, 1, 2)
    assert said is not None
    assert f"{sizes['mlstm']:,} with mixer=mlstm" in said
    assert f"{sizes['mamba']:,} with mixer=mamba ({sizes['mlstm'] - sizes['mamba']:+,}" in said
    assert f"({sizes['identity'] - sizes['mamba']:,}" in str(
        beside_mamba(UMambaBotSettings(mixer="identity"), configuration, 1, 2)
    )
    assert beside_mamba("umamba_bot", configuration, 1, 2) is None
    assert beside_mamba("unet", configuration, 1, 2) is None
    assert "mixer=mlstm" in "\n".join(disagreements({"name": "umamba_bot", "mixer": "mlstm"}, configuration))


def test_the_cost_of_each_mixer_by_hand(make_configuration: Maker) -> None:
    """One chunk of 16 tokens of 8 channels; twice the multiply-accumulates, norms and products of elements left out."""
    configuration = make_configuration(2, patch_size=(16, 16), features_per_stage=(4, 6, 8))

    def flops(**options: Any) -> int:
        stages = network_cost({"name": "umamba_bot", **options}, configuration, 1, 2).stages
        (found,) = [stage for stage in stages if stage.name == "mamba_layer"]
        return found.flops

    length, d, inner, n = 16, 8, 16, 4
    mixed = inner + 2 * n
    projections = d * (inner + mixed + 1) + inner * d
    conv = mixed * 4 * (length + 3)
    # scores C B^T, then times x; the state of the chunk, and what C reads of the state before; group sums of one state
    ssd = length * length * (n + inner) + 2 * length * n * inner + n * inner
    assert flops(mixer="mamba2", d_state=n) == 2 * (length * projections + conv + ssd)
    gates, blocks = 3 * inner * 2, 3 * inner * 4
    memory = length * length * (inner + inner + 1) + 2 * length * inner * (inner + 1) + inner * (inner + 1)
    projections = d * 2 * inner + inner * d
    conv = inner * 4 * (length + 3)
    assert flops(mixer="mlstm") == 2 * (length * (projections + gates + blocks) + conv + memory)
    assert flops(mixer="convolution", mixer_kernel=5) == 2 * length * inner * (3 * d + 25)


def test_convolutions_run_over_voxels_so_that_every_size_fits(make_configuration: Maker) -> None:
    configuration = make_configuration(2, patch_size=(16, 16), features_per_stage=(4, 6, 40))  # channel tokens last
    kernel = {"mixer": "convolution", "mixer_kernel": 3}
    network: Any = build_network({"name": "umamba_enc", **kernel}, configuration, 1, 2, deep_supervision=False)
    assert network.fixed_patch_size is None
    assert [type(layer) for layer in network.encoder.mamba_layers[::2]] == [ConvolutionLayer] * 2
    assert network(torch.zeros(1, 1, 32, 16)).shape == (1, 2, 32, 16)
    assert build_network({"name": "umamba_enc", "mixer": "mlstm"}, configuration).fixed_patch_size == (16, 16)


REACHES: dict[str, dict[str, Any]] = {
    "unet": {"name": "unet"},
    "resenc_unet": {"name": "resenc_unet"},
    "bot": {"name": "umamba_bot", "mixer": "identity"},
    "bot-transposed": {"name": "umamba_bot", "mixer": "identity", "decoder_upsampling": "transposed"},
    "bot-convolution": {"name": "umamba_bot", "mixer": "convolution", "mixer_kernel": 5},
    "enc-convolution": {
        "name": "umamba_enc",
        "mixer": "convolution",
        "mixer_kernel": 3,
        "full_resolution_skip": "always",
    },
}


@pytest.mark.parametrize("name", REACHES)
@pytest.mark.parametrize("anisotropic", [False, True])
def test_the_reach_is_the_support_of_the_gradient(
    name: str, anisotropic: bool, make_configuration: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without norms, whose statistics are those of the whole map, a voxel's gradient ends where the reach ends."""
    monkeypatch.setattr(
        cpu_layers, "_normalised", lambda layer, x, residual, slope: x if residual is None else x + residual
    )
    configuration = make_configuration(
        2,
        patch_size=(96, 144),
        features_per_stage=(3, 3, 3),
        strides=((1, 1), (2, 2), (1, 3)) if anisotropic else ((1, 1), (2, 2), (2, 2)),
        kernel_sizes=((1, 3), (3, 3), (3, 3)) if anisotropic else ((3, 3),) * 3,
    )
    reach = convolutional_reach(REACHES[name], configuration)
    assert reach is not None
    torch.manual_seed(0)
    network: Any = build_network(REACHES[name], configuration, 1, 2, deep_supervision=False).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5)  # positive, so that no path cancels another
    x = torch.rand(1, 1, 96, 144, dtype=torch.float64, requires_grad=True)
    y = network(x)
    farthest = [0, 0]
    for row in range(48, 52):
        for column in range(72, 72 + 6):
            (gradient,) = torch.autograd.grad(y[0, 0, row, column], x, retain_graph=True)
            for axis, (place, support) in enumerate(zip((row, column), gradient[0, 0].nonzero().T, strict=True)):
                farthest[axis] = max(farthest[axis], int((support - place).abs().max()))
    assert tuple(farthest) == reach


def test_the_reach_of_other_networks_is_not_known() -> None:
    assert convolutional_reach("segresnet", configuration_for_patch((32, 32))) is None
    bot = configuration_for_patch((32, 32))
    assert convolutional_reach("umamba_bot", bot) == convolutional_reach(UMambaBotSettings(mixer="identity"), bot)
    assert convolutional_reach(UMambaEncSettings(), bot) == convolutional_reach("umamba_bot", bot)
