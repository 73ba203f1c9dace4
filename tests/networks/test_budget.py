"""Networks of more weights than memory or the checkpoint holds are refused before memory is taken for them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks import architecture_names, build_network, configuration_for_patch
from umamba.networks.budget import stored_numbers, weight_budget
from umamba.networks.cost import build_without_data
from umamba.runs.checks import check_network
from umamba.settings import DatasetSettings, TrainSettings, UNetSettings

CONFIGURATION = configuration_for_patch((64, 64, 64))


@pytest.mark.parametrize("name", architecture_names())
def test_the_weights_of_a_network_fit_into_twice_their_number_and_no_less_than_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("unetr", "swinunetr"):
        pytest.importorskip("monai")
    monkeypatch.setattr("umamba.networks.budget._SLACK", 0)
    small = {"unetr": {"hidden_size": 24, "mlp_dim": 24}, "swinunetr": {"feature_size": 24}}.get(name, {})
    narrow = replace(CONFIGURATION, features_per_stage=(8,) * CONFIGURATION.num_stages)
    shapes = build_without_data({"name": name, **small}, narrow, 1, 3).state_dict()
    numbers = sum(tensor.numel() for tensor in shapes.values())
    with weight_budget(2 * numbers + 2**16, "too many"):
        network = build_network({"name": name, **small}, narrow, 1, 3)
    assert {key: tensor.shape for key, tensor in network.state_dict().items()} == {
        key: tensor.shape for key, tensor in shapes.items()
    }
    with pytest.raises(UserError, match="too many"), weight_budget(numbers // 2, "too many"):
        build_network({"name": name, **small}, narrow, 1, 3)


def test_shapes_alone_are_no_weights() -> None:
    wide = torch.zeros(3).expand(1 << 40, 3)
    shared = torch.zeros(10)
    assert stored_numbers([wide, shared, shared[:5], shared.view(2, 5)]) == 13


def test_networks_that_no_machine_holds_are_refused() -> None:
    wide = replace(CONFIGURATION, features_per_stage=(10**10,) * CONFIGURATION.num_stages)
    with pytest.raises(UserError, match="no machine holds"):
        build_without_data("unet", wide, 1, 3)


def test_a_training_of_a_network_that_memory_cannot_hold_is_refused(tmp_path: Path) -> None:
    wide = replace(CONFIGURATION, features_per_stage=(16384,) * CONFIGURATION.num_stages)
    labels = LabelSet(("a",), ((1,),))
    planned: Any = SimpleNamespace(configuration=wide, num_channels=1, input_channels=1, labels=labels)
    settings = TrainSettings(dataset=DatasetSettings(root=tmp_path), architecture=UNetSettings())
    with pytest.raises(UserError, match=r"the network has \d+(\.\d)? GiB of weights, more than the"):
        check_network(settings, planned)
