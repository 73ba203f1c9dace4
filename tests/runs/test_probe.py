"""`umamba probe`: numbers that can be worked out by hand, and a whole probe of an untrained checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from umamba.cli.main import main
from umamba.io import read_json
from umamba.networks import build_network, probes
from umamba.networks.conformance import small_configuration
from umamba.networks.mamba import MambaLayer
from umamba.networks.mixers import ConvolutionLayer
from umamba.planning import Plan
from umamba.runs.probe import middle_patch

Make = Callable[..., Path]


def test_the_gradient_of_a_convolution_is_its_kernel() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 2, (3, 5), padding=(1, 2), bias=False)
    found = probes.gradient_map(layer, torch.randn(1, 1, 8, 10), torch.tensor([1.0, -2.0]))
    kernel = (layer.weight[0, 0] - 2 * layer.weight[1, 0]).abs().detach().numpy()
    expected = np.zeros((8, 10))
    expected[3:6, 3:8] = kernel  # around the centre (4, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_radii_by_hand() -> None:
    weights = np.zeros((9, 9))
    weights[4, 4], weights[4, 6], weights[1, 4], weights[0, 0] = 50, 40, 9, 1
    ones, mm = (1.0, 1.0), (2.0, 0.5)
    assert [probes.radius_holding(s, weights, ones) for s in (0.5, 0.9, 0.99, 1)] == [0, 2, 3, pytest.approx(32**0.5)]
    assert [probes.radius_holding(s, weights, mm) for s in (0.5, 0.9, 0.99)] == [0, 1, 6]
    assert probes.share_beyond(weights, (3, 2)) == pytest.approx(0.01)
    assert probes.share_beyond(weights, (2, 2)) == pytest.approx(0.10)
    assert probes.share_beyond(weights, (20, 1)) == pytest.approx(0.41)


def test_a_hidden_cube_matters_where_the_function_looks() -> None:
    def looks_up(x: Tensor) -> Tensor:
        return torch.roll(x, 4, dims=2)  # the centre shows what is four voxels before it

    x = torch.randn(1, 1, 32, 16)
    found = probes.hide_cubes(looks_up, x, (3.0, 1.0), steps=11)
    # Along the first axis: 4 to 14 voxels of 3 mm. The centre shows row 12; it is within the cubes of 4 voxels whose
    # centres are the rows 12 and 11.
    assert {each.distance for each in found} >= {3.0 * step for step in range(4, 15)}
    assert [each.distance for each in found if each.change > 0] == [12.0, 15.0]
    by_hand = float((x[0, 0, 12, 8] - x.mean()).abs() / x.std())
    assert max(each.change for each in found) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("channel_token", [False, True])
def test_shuffling_matters_only_to_a_layer_that_looks_at_other_tokens(channel_token: bool) -> None:
    class Pointwise(nn.Module):
        """A block that maps each token by itself."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = nn.Linear(width, width)

        def forward(self, tokens: Tensor) -> Tensor:
            """Map (B, L, C) to (B, L, C)."""
            mapped: Tensor = self.layer(tokens)
            return mapped

    torch.manual_seed(0)
    width = 20 if channel_token else 6
    x = torch.randn(1, 6, 4, 5)
    alone = MambaLayer(width, channel_token=channel_token, num_axes=2, block=Pointwise)
    mixing = MambaLayer(width, channel_token=channel_token, num_axes=2)
    wide, point = (ConvolutionLayer(6, 6, (size, size)) for size in (3, 1))
    changes = [probes.change_by_shuffling(each, x, [each], 3) for each in (alone, mixing, wide, point)]
    assert max(changes[0], changes[3]) < 1e-5
    assert min(changes[1:3]) > 0.01


def test_the_middle_of_an_image_is_taken_or_filled_up() -> None:
    image = torch.arange(6 * 8.0).reshape(1, 1, 6, 8).repeat(1, 5, 1, 1)
    configuration = small_configuration(2, patch_size=(4, 12))
    patch = middle_patch(image, configuration)
    assert torch.equal(patch[0, :, 2:10], image[0, 2, 1:5])
    assert not patch[0, :, :2].any()
    assert not patch[0, :, 10:].any()


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Make:
    """Return a function that writes the checkpoint of an untrained network."""

    def make(architecture: dict[str, Any], dim: int, **changes: Any) -> Path:
        configuration = small_configuration(dim, **changes)
        axes, name = (0, 1, 2), configuration.name
        plan = Plan("Dataset001_Test", "nnunet", axes, axes, (1.0,) * 3, (9.0, 14.0, 12.0), (), {name: configuration})
        torch.manual_seed(0)
        network = build_network(architecture, configuration, 1, 3)
        record = {
            "format": 1,
            "plan": plan.to_json(),
            "configuration": name,
            "architecture": architecture,
            "labels": {"labels": {"background": 0, "a": 1, "b": 2}},
            "channel_names": ["MRI"],
            "file_ending": ".nii.gz",
            "recipe": {},
        }
        weights = {f"network.{key}": value for key, value in network.state_dict().items()}
        torch.save({"umamba": record, "state_dict": weights}, tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return make


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        array = np.random.default_rng(index).normal(size=(9, 20, 24)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"case{index}_0000.nii.gz"))
    return folder


@pytest.mark.parametrize(
    ("architecture", "dim"),
    [
        ({"name": "umamba_enc", "mixer": "mamba2", "d_state": 4}, 2),
        ({"name": "umamba_enc", "mixer": "convolution", "mixer_kernel": 3}, 3),
        ({"name": "umamba_bot", "mixer": "identity"}, 2),
    ],
)
def test_a_checkpoint_is_probed(
    architecture: dict[str, Any], dim: int, make_checkpoint: Make, images: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"patch_size": (16, 24) if dim == 2 else (4, 16, 24)}
    checkpoint, output = make_checkpoint(architecture, dim, **changes), tmp_path / "out"
    assert (
        main(["probe", f"checkpoint={checkpoint}", f"images={images}", f"output={output}", "steps=3", "device=cpu"])
        == 0
    )
    content = read_json(output / "probe.json")
    assert content["patches"] == ["case0", "case1"]
    layered = architecture["mixer"] != "identity"
    parts = content["parts"]
    assert [name for name in parts if name != "network"] == [
        f"encoder.mamba_layers.{stage}" for stage in ((0, 1, 2) if dim == 3 else (0, 2)) if layered
    ]
    for part in parts.values():
        radii = [part["radius_vox"][share] for share in ("50", "90", "99")]
        assert radii == sorted(radii)
        assert part["change_by_hiding"]
        assert (part["change_by_shuffling"] is not None) == layered
    assert parts["network"]["radius_mm"] == parts["network"]["radius_vox"]  # the spacing is 1 mm
    assert 0 <= content["gradient_beyond_convolutions"] < 1
    table = pandas.read_csv(output / "radii.csv")
    assert list(table["part"]) == list(parts)
    assert table["radius_90_mm"].tolist() == pytest.approx([part["radius_mm"]["90"] for part in parts.values()])
    hidden = pandas.read_csv(output / "hidden.csv")
    assert len(hidden) == sum(len(part["change_by_hiding"]) for part in parts.values())
    pictures = {path.name for path in output.glob("*.png")}
    assert pictures == ({"network.png", "hidden.png", "layers.png"} if layered else {"network.png", "hidden.png"})
