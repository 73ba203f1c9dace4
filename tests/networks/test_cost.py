"""The cost of a network, compared with hand arithmetic and with the activations of a real training step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from umamba.io import UserError
from umamba.networks import build_network
from umamba.networks.cost import NetworkCost, StageCost, network_cost, scan_flops
from umamba.networks.cost_table import cost_table, disagreements
from umamba.planning import Configuration
from umamba.settings import UMambaBotSettings, UMambaEncSettings

Maker = Callable[..., Configuration]
SMALL: dict[str, dict[str, Any]] = {
    "umamba_bot": {},
    "umamba_enc": {},
    "unet": {},
    "resenc_unet": {},
    "segresnet": {"init_filters": 8},
    "unetr": {"feature_size": 8, "hidden_size": 24, "mlp_dim": 48, "num_heads": 4},
    "swinunetr": {"feature_size": 12},
}


def by_name(cost: NetworkCost) -> dict[str, StageCost]:
    """Return the parts by their names."""
    return {stage.name: stage for stage in cost.stages}


def test_convolutions_by_hand(make_configuration: Maker) -> None:
    cost = network_cost("unet", make_configuration(2), in_channels=1, num_classes=3)  # patch 40 x 24
    stages = by_name(cost)
    first, second = 40 * 24, 20 * 12
    assert stages["encoder.stages.0"].flops == 2 * 9 * first * (1 * 4 + 4 * 4)
    assert stages["encoder.stages.1"].flops == 2 * 9 * second * (4 * 6 + 6 * 6)
    assert stages["encoder.stages.0"].parameters == (9 * 1 * 4 + 4 + 8) + (9 * 4 * 4 + 4 + 8)  # conv, bias, norm
    up, up_flops = stages["decoder.transpconvs.1"], 2 * 4 * second * 6 * 4  # 2 x 2 kernel from 6 to 4 features
    assert (up.features, up.size, up.flops) == (4 + 4, (40, 24), up_flops)  # it is joined with the skip at once
    assert stages["decoder.stages.1"].flops == 2 * 9 * first * (8 * 4 + 4 * 4)  # the skip doubles the input
    assert stages["decoder.seg_layers.1"].flops == 2 * first * 4 * 3
    assert cost.flops == sum(stage.flops for stage in cost.stages)
    assert cost.parameters == sum(stage.parameters for stage in cost.stages)


def test_mamba_layers_by_hand(make_configuration: Maker) -> None:
    configuration = make_configuration(3, patch_size=(4, 8, 8))  # maps 4x8x8, 4x4x4, 2x2x2
    stages = by_name(network_cost("umamba_enc", configuration, 1, 2))
    first, last = stages["encoder.mamba_layers.0"], stages["encoder.mamba_layers.2"]
    assert (first.scan, first.tokens, first.width) == ("patch", 256, 4)
    assert (last.scan, last.tokens, last.width) == ("channel", 8, 8)  # as many voxels as features: channels
    length, d, inner, rank, n = 256, 4, 8, 1, 16
    projections = d * 2 * inner + inner * (rank + 2 * n) + rank * inner + inner * d
    convolution = 4 * inner * (length + 3)  # its causal padding on both sides is computed before the cut
    assert first.flops == 2 * length * projections + 2 * convolution + inner * length * (7 * n + 4)
    norm, conv = 2 * d, 4 * inner + inner
    scan = inner * n + inner + rank * inner + inner
    assert first.parameters == norm + d * 2 * inner + conv + inner * (rank + 2 * n) + scan + inner * d
    assert scan_flops(2, 3, 5, 16) == 2 * 3 * 5 * 116


@pytest.mark.parametrize("name", ["unet", "resenc_unet", "segresnet"])
def test_activations_are_those_of_a_real_step(make_configuration: Maker, name: str) -> None:
    if name == "segresnet":
        pytest.importorskip("monai")
    architecture, configuration = {"name": name, **SMALL[name]}, make_configuration(2)
    network = build_network(architecture, configuration, 1, 3).train()
    own = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(1, 1, *configuration.patch_size))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert network_cost(architecture, configuration, 1, 3).activation_bytes == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", SMALL)
def test_every_architecture_is_described(make_configuration: Maker, name: str, dim: int) -> None:
    if name in ("segresnet", "unetr", "swinunetr"):
        pytest.importorskip("monai")
    architecture, configuration = {"name": name, **SMALL[name]}, make_configuration(dim)
    cost = network_cost(architecture, configuration, 2, 3)
    network = build_network(architecture, configuration, 2, 3)
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.stages[-1].features == 3
    assert min(cost.flops, cost.activation_bytes) > 0
    assert cost.flops == sum(stage.flops for stage in cost.stages)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(cost_table(cost, name, 2))
    assert f"{cost.parameters:,}" in console.export_text()


def test_a_paper_plan_takes_no_memory(make_configuration: Maker) -> None:
    configuration = make_configuration(
        3,
        patch_size=(40, 224, 192),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
        kernel_sizes=((1, 3, 3), *((3, 3, 3),) * 5),
        features_per_stage=(32, 64, 128, 256, 320, 320),
        encoder_blocks=(2,) * 6,
        decoder_blocks=(2,) * 5,
    )
    cost = network_cost(UMambaEncSettings(), configuration, 1, 14)
    stages = by_name(cost)
    assert cost.parameters == 42_842_798  # the official network's
    assert (stages["encoder.mamba_layers.0"].tokens, stages["encoder.mamba_layers.0"].width) == (1_720_320, 32)
    assert stages["encoder.mamba_layers.5"].scan == "channel"
    # the stem: three convolutions of the first block (1, 9 and 1 taps of one plane), two of the second
    assert stages["encoder.stem"].flops == 2 * 1_720_320 * (9 * 32 + 9 * 32 * 32 + 32 + 2 * 9 * 32 * 32)


def test_disagreements_follow_the_options(make_configuration: Maker) -> None:
    flat, deep = make_configuration(2), make_configuration(3)
    assert disagreements("unet", flat) == []
    official = "\n".join(disagreements(UMambaEncSettings(), flat))
    assert "code, stages 0 2. Here: 0 2." in official
    assert "left out in 2D. Here: left out." in official
    assert "code, 2 2 1 in the encoder and 2 2 in the decoder" in official
    paper = UMambaEncSettings(
        mamba_stages="all",
        blocks="paper",
        decoder_upsampling="transposed",
        full_resolution_skip="always",
        residual=True,
    )
    changed = "\n".join(disagreements(paper, flat))
    for said in ("Here: 0 1 2.", "Here: 2 2 2 and 2 2.", "Here: transposed.", "Here: taken.", "Here: a residual."):
        assert said in changed
    assert "left out" in "\n".join(disagreements(UMambaBotSettings(mamba="identity"), deep))
    assert "as MONAI 1.6" in "\n".join(disagreements({"name": "swinunetr", "monai_compat": "1.6"}, deep))


def test_a_wrong_plan_is_a_message(make_configuration: Maker) -> None:
    with pytest.raises(UserError, match="not divisible"):
        network_cost({"name": "unet"}, make_configuration(2, patch_size=(41, 24)), 1, 2)
