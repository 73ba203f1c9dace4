"""A classification head on every backbone: the bottleneck of one pass, in 2D and 3D, and nothing else changes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from umamba.io import UserError
from umamba.networks import build_network
from umamba.networks.conformance import CHANNELS, CLASSES, small_configuration
from umamba.networks.heads import CaseHead, build_case_head, pooled

BACKBONES: dict[str, dict[str, Any]] = {
    "umamba_bot": {"d_state": 4},
    "umamba_enc": {"d_state": 4},
    "unet": {},
    "resenc_unet": {},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "unetr": {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2},
    "swinunetr": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("dim", [2, 3])
def test_the_bottleneck_of_every_backbone(name: str, dim: int) -> None:
    if name in ("segresnet", "unetr", "swinunetr"):
        pytest.importorskip("monai")
    configuration = small_configuration(dim)
    torch.manual_seed(0)
    network: Any = build_network({"name": name, **BACKBONES[name]}, configuration, CHANNELS, CLASSES).eval()
    head = build_case_head(network, name, (2, 3))
    image = torch.randn(2, CHANNELS, *configuration.patch_size)
    outputs, deepest = network.segment_with_bottleneck(image)
    plain = network(image)
    for ours, expected in zip(listed(outputs), listed(plain), strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(deepest, network.bottleneck(image))
    assert deepest.shape[:2] == (2, network.bottleneck_channels)
    assert not any(module._forward_hooks for module in network.modules())
    logits = head(deepest)
    assert [tuple(task.shape) for task in logits] == [(2, 2), (2, 3)]
    torch.stack([task.square().sum() for task in logits]).sum().backward()
    first = next(parameter for parameter in network.parameters() if parameter.ndim > 2)
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


def listed(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def test_pooling_is_the_mean_and_the_maximum_in_float32() -> None:
    features = torch.randn(2, 5, 3, 4, 6).bfloat16()
    found = pooled(features)
    assert found.dtype == torch.float32
    for channel in range(5):
        voxels = features[:, channel].float().reshape(2, -1)
        assert torch.allclose(found[:, channel], voxels.sum(1) / 72)
        assert torch.equal(found[:, 5 + channel], voxels.max(1).values)


def test_the_length_of_the_features_does_not_grow_with_the_channels() -> None:
    lengths = []
    for channels in (8, 512):
        head = CaseHead(channels, (2,))
        features = torch.randn(4, channels, 6, 6, generator=torch.Generator().manual_seed(0))
        tasks: Any = head.tasks
        weight, bias = tasks[0].weight, tasks[0].bias
        by_hand = 4 * pooled(features) / (2 * channels) ** 0.5 @ weight.T + bias
        assert torch.allclose(head(features)[0], by_hand, atol=1e-5)
        (gradient,) = torch.autograd.grad(head(features)[0][:, 0].sum(), weight)
        lengths.append(float(gradient.norm()))
    assert lengths[1] == pytest.approx(lengths[0], rel=0.25)


def test_a_backbone_without_a_bottleneck_is_refused() -> None:
    with pytest.raises(UserError, match=r"architecture\.name=mine has no bottleneck_channels, no bottleneck"):
        build_case_head(nn.Conv3d(1, 1, 1), "mine", (2,))
