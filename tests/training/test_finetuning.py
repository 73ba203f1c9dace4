"""Schedules of fine-tuning by hand, the frozen encoder, and weights of which a part fits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.networks.build import architecture_names
from umamba.records import RunFolder
from umamba.runs import PreparedDataset
from umamba.settings import FinetuneSettings, ScheduleSettings
from umamba.training.finetuning import encoder_names, finetuning_factor
from umamba.training.pretrained import load_pretrained
from umamba.training.schedules import learning_rate_factor

Fit = Callable[..., RunFolder]
TWO = LabelSet(("a", "b"), ((1,), (2,)))


def state(folder: RunFolder) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder.last, weights_only=True)["state_dict"])


def test_rates_of_ten_epochs() -> None:
    """Two epochs frozen, three of warm-up, and a line from 1 to 0 over the other five."""
    rate = finetuning_factor(FinetuneSettings(frozen=0.2, warm_up=0.3), ScheduleSettings(exponent=1.0), 10)
    expected = [1 / 2, 1, 1 / 3, 2 / 3, 1, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]
    assert [rate(epoch) for epoch in range(10)] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["poly", "cosine", "wsd"])
def test_without_phases_the_schedule_stays(name: str) -> None:
    schedule = ScheduleSettings(name=name)  # type: ignore[arg-type]
    ours, expected = finetuning_factor(FinetuneSettings(), schedule, 1000), learning_rate_factor(schedule, 1000)
    assert [ours(epoch) for epoch in range(1000)] == [expected(epoch) for epoch in range(1000)]


def test_the_warm_up_of_fine_tuning_is_the_only_one() -> None:
    """Two of ten epochs frozen, two of warm-up; of the other six the last half falls to 0."""
    schedule = ScheduleSettings(name="wsd", warm_up=0.1, decay=0.5)
    rate = finetuning_factor(FinetuneSettings(frozen=0.2, warm_up=0.2), schedule, 10)
    assert [rate(epoch) for epoch in range(11)] == pytest.approx([0.5, 1, 0.5, 1, 1, 1, 1, 1, 2 / 3, 1 / 3, 0])


def test_the_encoder_of_a_unet(prepared: PreparedDataset) -> None:
    network = build_network("unet", prepared.configuration, 1, 3)
    names = encoder_names("unet", prepared.configuration, 1, 3)
    assert set(names) == {name for name, _ in network.named_parameters() if name.startswith("encoder.")}


@pytest.mark.parametrize("architecture", architecture_names())
def test_every_network_has_an_encoder_and_more(architecture: str) -> None:
    from umamba.networks.from_patch import choose_configuration

    options = {"residual_encoder": architecture == "resenc_unet"}
    configuration = choose_configuration(None, (64, 32, 32), None, in_channels=1, **options)
    names = encoder_names(architecture, configuration, 1, 3)
    assert len(names) > 0
    assert not [name for name in names if ".seg_layers." in name or name.startswith("decoder.")]


def test_the_encoder_is_frozen_and_then_learns(small_fit: Fit, prepared: PreparedDataset, tmp_path: Path) -> None:
    official = build_network("unet", prepared.configuration, 1, prepared.labels.num_classes).state_dict()
    torch.save({"network_weights": official}, tmp_path / "first.pth")
    before = {f"network.{name}": tensor for name, tensor in official.items()}
    given = (f"pretrained={tmp_path / 'first.pth'}", "recipe.finetune.frozen=0.5", "seed=1")
    half = state(small_fit("trainer.max_epochs=1", *given, name="resumed"))  # half of one epoch: its rates are the same
    resumed = state(small_fit(*given, name="resumed"))
    straight = state(small_fit(*given, name="straight"))
    encoder = [name for name in before if name.startswith("network.encoder.")]
    decoder = [name for name in before if name.startswith("network.decoder.") and name.endswith("conv.weight")]
    assert encoder
    assert decoder
    assert all(torch.equal(half[name], before[name]) for name in encoder)
    assert not any(torch.equal(half[name], before[name]) for name in decoder)
    assert not all(torch.equal(straight[name], before[name]) for name in encoder)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_several_devices_do_not_freeze(make_settings: Callable[..., object], tmp_path: Path) -> None:
    from umamba.runs.trainer import check_trainer

    (tmp_path / "a.ckpt").write_bytes(b"")
    settings = make_settings(f"pretrained={tmp_path / 'a.ckpt'}", "recipe.finetune.frozen=0.5", "trainer.devices=2")
    with pytest.raises(UserError, match=r"recipe\.finetune\.frozen=0\.5: several devices"):
        check_trainer(settings)  # type: ignore[arg-type]


def test_a_part_of_nnssls_weights(prepared: PreparedDataset, tmp_path: Path) -> None:
    """nnssl's files: nnU-Net's names, some of them twice, a head that gives the image, and a plan of nnssl's own."""

    def build(classes: int, channels: int = 1) -> nn.Module:
        return build_network("resenc_unet", prepared.configuration, channels, classes)

    source = build(1).state_dict()
    twice = {f"decoder.{name}": tensor for name, tensor in source.items() if name.startswith("encoder.")}
    path = tmp_path / "checkpoint_final.pth"
    plan = {"architecture_plans": {"arch_class_name": "ResEncL"}, "key_to_encoder": "encoder.stages"}
    torch.save({"network_weights": {**source, **twice}, "nnssl_adaptation_plan": plan}, path)
    network = build(3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    said = load_pretrained(path, network, build, TWO)
    assert "it was pretrained to reconstruct images" in said
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if ".seg_layers." in name else source[name]), name

    other = build(3, channels=2)
    with pytest.raises(UserError, match="pretrained_parts=fitting"):
        load_pretrained(path, other, lambda classes: build(classes, 2), TWO)
    said = load_pretrained(path, other, lambda classes: build(classes, 2), TWO, "fitting")
    encoder = [name for name in source if name.startswith("encoder.")]
    fits = [name for name in encoder if source[name].shape == other.state_dict()[name].shape]
    assert 0 < len(encoder) - len(fits) <= 3  # what reads the image
    assert f"encoder {len(fits)} of {len(encoder)}" in said
    assert "These begin anew: encoder.stem" in said
    assert all(torch.equal(other.state_dict()[name], source[name]) for name in fits)

    torch.save({"network_weights": {"strange.weight": torch.zeros(3)}}, tmp_path / "strange.pth")
    with pytest.raises(UserError, match="no tensor of it fits"):
        load_pretrained(tmp_path / "strange.pth", network, build, TWO, "fitting")
