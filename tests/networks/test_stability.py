"""U-Mamba stays finite in float16 on inputs beyond its range, because infinities are clamped (docs/nan.md)."""

import math

import pytest
import torch
from torch import Tensor

from umamba.labels import LabelSet
from umamba.networks import blocks, build_network, cpu_layers, mamba, unet
from umamba.planning import Configuration
from umamba.training.losses import DeepSupervisionLoss, DiceCrossEntropy

STEPS = 40


def losses(name: str) -> list[float]:
    """Train a small network with a large learning rate on inputs in the thousands; return the losses."""
    torch.manual_seed(0)
    configuration = Configuration(
        name="2d",
        spacing=(1.0, 1.0),
        median_shape=(32.0, 32.0),
        patch_size=(32, 32),
        batch_size=2,
        batch_dice=True,
        normalization=("NoNormalization",),
        use_mask_for_norm=(False,),
        strides=((1, 1), (2, 2), (2, 2)),
        kernel_sizes=((3, 3),) * 3,
        features_per_stage=(8, 16, 32),
        encoder_blocks=(2,) * 3,
        decoder_blocks=(2,) * 2,
        residual_encoder=False,
    )
    network = build_network({"name": name}, configuration, 1, 2, deep_supervision=True)
    loss_of = DeepSupervisionLoss(DiceCrossEntropy(LabelSet(("object",), ((1,),)), batch_dice=True))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.99, nesterov=True)
    scaler = torch.amp.GradScaler("cpu")
    found = []
    for step in range(STEPS):
        image = torch.randn(2, 1, 32, 32) * (3e3, 1.0)[step % 2]
        with torch.autocast("cpu", dtype=torch.float16):
            logits = network(image)
        loss = loss_of(logits, (image > 0).long())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        found.append(float(loss.detach()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("umamba_bot", marks=pytest.mark.nightly), "umamba_enc"])
def test_losses_stay_finite_in_float16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(math.isfinite(loss) for loss in losses(name))

    def as_it_is(x: Tensor) -> Tensor:
        return x

    monkeypatch.setattr(blocks, "saturated", as_it_is)
    monkeypatch.setattr(cpu_layers, "saturated", as_it_is)
    monkeypatch.setattr(unet, "saturated", as_it_is)
    monkeypatch.setattr(mamba, "LARGEST_HALF", math.inf)
    assert not all(math.isfinite(loss) for loss in losses(name)), "the inputs are no trial"


def test_saturation_is_of_float16_alone() -> None:
    values = torch.tensor([1e6, -1e6, 3.0])
    assert blocks.saturated(values) is values
    assert blocks.saturated(values.bfloat16()).dtype == torch.bfloat16
    assert blocks.saturated(values.half()).tolist() == [65504, -65504, 3]
