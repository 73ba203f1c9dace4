"""The networks, compared with the official ones: weights, outputs, gradients, parameters (tests/reference/networks).

Reference files: official code (bowang-lab/U-Mamba, dynamic-network-architectures 0.4.4, MONAI 1.3.0) run on the CPU
with synthetic weights; `output64` is the output in double precision. Files that are not in the checkout are read from
the shared folder.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from umamba.networks import build_network, official_state_dict
from umamba.planning import Configuration

NAMES = {
    "UMambaBot": "umamba_bot",
    "UMambaEnc": "umamba_enc",
    "PlainConvUNet": "unet",
    "ResidualEncoderUNet": "resenc_unet",
    "SegResNet": "segresnet",
    "UNETR": "unetr",
    "SwinUNETR": "swinunetr",
}
PAIRS = (
    "plainunet2d_a",
    "plainunet3d_a",
    "resenc2d_a",
    "resenc3d_a",
    "umambabot2d_a",
    "umambabot2d_b_aniso",
    "umambabot3d_a",
    "umambaenc2d_a_notoken",
    "umambaenc2d_b_channeltoken",
    "umambaenc3d_a_notoken",
    "umambaenc3d_b_channeltoken",
)
Maker = Callable[..., Configuration]


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, reference_dir: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a description and its arrays, from the checkout or else from the shared folder."""
    folder = reference_dir / "networks"
    if not (folder / f"{request.param}.json").exists():
        folder = request.getfixturevalue("shared_dir") / "reference" / "networks"
    description = json.loads((folder / f"{request.param}.json").read_text())
    with np.load(folder / f"{request.param}.npz") as arrays:
        return description, dict(arrays)


def configured(make: Maker, record: Mapping[str, Any], patch: list[int], **blocks: Any) -> Configuration:
    """Return the configuration that a description's network was built from."""
    stages = len(record["strides"])
    return make(
        len(patch),
        patch_size=tuple(patch),
        strides=tuple(map(tuple, record["strides"])),
        kernel_sizes=tuple(map(tuple, record["conv_kernel_sizes"])),
        features_per_stage=tuple(record["features_per_stage"]),
        encoder_blocks=tuple(blocks.get("encoder", (2,) * stages)),
        decoder_blocks=tuple(blocks.get("decoder", (2,) * (stages - 1))),
    )


def official_weights(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the whole official state dict; a tensor under two names is stored under one."""
    stored = {
        key: key if f"weight/{key}" in arrays else description["aliases"][key] for key in description["state_dict_keys"]
    }
    return {key: torch.from_numpy(arrays[f"weight/{source}"]) for key, source in stored.items()}


@pytest.fixture
def loaded(pair: tuple[dict[str, Any], dict[str, np.ndarray]], make_configuration: Maker) -> nn.Module:
    """Return our network with a pair's official weights."""
    description, arrays = pair
    configuration = configured(
        make_configuration,
        description,
        description["patch_size"],
        encoder=description["n_conv_per_stage_encoder_in_plan"],
        decoder=description["n_conv_per_stage_decoder_in_plan"],
    )
    network = build_network(
        {"name": NAMES[description["network"]]},
        configuration,
        description["input_channels"],
        description["num_classes"],
    )
    network.load_state_dict(official_state_dict(official_weights(description, arrays)), strict=True)
    return network


def relative_error(outputs: list[Tensor], arrays: Mapping[str, np.ndarray], key: str) -> float:
    """Return the largest error of any output, relative to that output's largest value."""
    assert f"{key}/{len(outputs)}" not in arrays
    expected = [arrays[f"{key}/{index}"] for index in range(len(outputs))]
    return max(
        float(np.abs(output.numpy() - truth).max() / np.abs(truth).max())
        for output, truth in zip(outputs, expected, strict=True)
    )


def test_outputs_equal_the_official_ones(pair: tuple[dict[str, Any], dict[str, np.ndarray]], loaded: nn.Module) -> None:
    description, arrays = pair
    x = torch.from_numpy(arrays["input"])
    with torch.no_grad():
        single = loaded.eval()(x)
        double = loaded.double()(x.double())
    assert [list(output.shape) for output in single] == description["output_shapes"]
    assert relative_error(double, arrays, "output64") < 1e-9
    assert relative_error(single, arrays, "output") < 1e-4


def test_loss_and_gradients_equal_the_official_ones(
    pair: tuple[dict[str, Any], dict[str, np.ndarray]], loaded: nn.Module
) -> None:
    description, arrays = pair
    loss = sum(output.square().mean() for output in loaded.train()(torch.from_numpy(arrays["input"])))
    assert isinstance(loss, Tensor)
    loss.backward()
    assert loss.item() == pytest.approx(description["loss_value"], rel=1e-4)
    norms = {
        key: parameter.grad.norm().item() for key, parameter in loaded.named_parameters() if parameter.grad is not None
    }
    official = description["gradient_norms"]
    assert norms.keys() == official.keys()
    # a bias in front of a norm has a gradient of rounding noise only, hence the absolute part
    assert norms == pytest.approx(official, rel=1e-3, abs=1e-5 * max(official.values()))


def test_parameter_counts_equal_the_official_ones(
    pair: tuple[dict[str, Any], dict[str, np.ndarray]], loaded: nn.Module
) -> None:
    assert sum(parameter.numel() for parameter in loaded.parameters()) == pair[0]["num_parameters"]


@pytest.mark.parametrize("network", [name for name in NAMES if name != "ResidualEncoderUNet"])
@pytest.mark.parametrize("dataset", ["abdomen_ct", "abdomen_mr_2d", "microscopy"])
def test_full_width_parameters_equal_table_2(
    dataset: str, network: str, shared_dir: Path, make_configuration: Maker
) -> None:
    description = json.loads((shared_dir / "reference/networks/full" / f"{dataset}__{network}.json").read_text())
    if network in ("SegResNet", "UNETR", "SwinUNETR"):
        pytest.importorskip("monai")
    configuration = configured(make_configuration, description, description["plan_patch_size"])
    # MONAI's SwinUNETR reads numbers back while it is built, which tensors without data cannot give
    with torch.device("cpu" if network == "SwinUNETR" else "meta"):
        ours = build_network(
            {"name": NAMES[network]}, configuration, description["input_channels"], description["num_heads"]
        )
    assert {key: list(parameter.shape) for key, parameter in ours.named_parameters()} == description["parameters"]
    assert sum(parameter.numel() for parameter in ours.parameters()) == description["num_parameters"]
    assert ours.supports_deep_supervision == description["deep_supervision"]


@pytest.mark.parametrize(
    ("folder", "fold"),
    [
        ("nnUNetTrainerUMambaBot__nnUNetPlans__2d", "fold_all"),
        ("nnUNetTrainerUMambaEnc__nnUNetPlans__3d_fullres", "fold_0"),
    ],
)
def test_official_checkpoints_predict_as_they_did(
    folder: str, fold: str, shared_dir: Path, make_configuration: Maker
) -> None:
    root = shared_dir / "reference/networks/checkpoints/Dataset999_Reference" / folder
    core: Any = np._core  # type: ignore[attr-defined]  # private, but what the pickles name
    numpy_pickles: list[Any] = [
        (core.multiarray.scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        np.dtypes.Float64DType,
    ]
    numpy_pickles.append(np.dtypes.Float32DType)
    with torch.serialization.safe_globals(numpy_pickles):
        checkpoint = torch.load(root / fold / "checkpoint_final.pth", weights_only=True, map_location="cpu")
    plans = json.loads((root / "plans.json").read_text())["configurations"][folder.rsplit("__", 1)[1]]
    stages = len(plans["pool_op_kernel_sizes"])
    base, most = plans["UNet_base_num_features"], plans["unet_max_num_features"]
    record = {
        "strides": plans["pool_op_kernel_sizes"],
        "conv_kernel_sizes": plans["conv_kernel_sizes"],
        "features_per_stage": [min(base * 2**s, most) for s in range(stages)],
    }
    with np.load(root / "expected.npz") as file:
        arrays = dict(file)
    dataset = json.loads((root / "dataset.json").read_text())
    network = build_network(
        {"name": "umamba_bot" if "Bot" in folder else "umamba_enc"},
        configured(make_configuration, record, plans["patch_size"]),
        len(dataset["channel_names"]),
        len(dataset["labels"]),
        deep_supervision=False,
    )
    network.load_state_dict(official_state_dict(checkpoint["network_weights"]), strict=True)
    with torch.no_grad():
        output = network.double().eval()(torch.from_numpy(arrays["input"]).double()).numpy()
    assert np.abs(output - arrays["output64"]).max() < 1e-9 * np.abs(arrays["output64"]).max()


def test_patch_merging_of_monai_13(reference_dir: Path) -> None:
    monai_nets = pytest.importorskip("umamba.networks.monai_nets", exc_type=ImportError)
    with np.load(reference_dir / "networks" / "monai130_swinunetr_patchmerging3d.npz") as file:
        arrays = {key: torch.from_numpy(value) for key, value in file.items()}
    weights = {key.removeprefix("weight/"): value for key, value in arrays.items() if key.startswith("weight/")}
    old, new = monai_nets.PatchMerging13(6), monai_nets.PatchMerging16(6)
    for merging in (old, new):
        merging.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(old(arrays["input"]), arrays["output"], rtol=1e-5, atol=1e-6)
        assert (new(arrays["input"]) - arrays["output"]).abs().max() > 0.01
