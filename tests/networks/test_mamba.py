"""The Mamba block, compared with stored results of mamba_ssm, and the layer that applies it to feature maps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from umamba.networks.mamba import Mamba, MambaLayer


def check(path: Path, dtype: torch.dtype) -> None:
    """Compare output and all gradients with the stored float64 ones."""
    stored = np.load(path)
    mamba = Mamba(*(int(stored[name]) for name in ("d_model", "d_state", "d_conv", "expand")))
    weights = {key.removeprefix("param/"): torch.tensor(stored[key]) for key in stored if key.startswith("param/")}
    mamba.load_state_dict(weights, strict=True)
    mamba.to(dtype)
    tokens = torch.tensor(stored["input"]).to(dtype).requires_grad_()
    out = mamba(tokens)
    (out * torch.tensor(stored["grad_out"]).to(dtype)).sum().backward()
    forward, backward = (1e-9, 1e-9) if dtype == torch.float64 else (1e-4, 1e-3)
    pairs = [(out, "out64", forward), (tokens.grad, "grad_input64", backward)]
    pairs += [(parameter.grad, f"grad_param64/{name}", backward) for name, parameter in mamba.named_parameters()]
    for found, key, tolerance in pairs:
        error = np.abs(found.detach().double().numpy() - stored[key]).max() / max(np.abs(stored[key]).max(), 1e-30)
        assert error < tolerance, key


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["mamba_d8_L1_B2", "mamba_d8_L64_B2_defaultinit"])
def test_official_results(reference_dir: Path, name: str, dtype: torch.dtype) -> None:
    check(reference_dir / "scan" / f"{name}.npz", dtype)


def test_all_official_results(shared_dir: Path) -> None:
    files = sorted((shared_dir / "reference" / "scan").glob("mamba_*.npz"))
    assert len(files) == 4
    for path in files:
        check(path, torch.float64)
        check(path, torch.float32)


@pytest.mark.parametrize("channel_token", [False, True])
def test_tokens_are_voxels_in_c_order_or_channels(channel_token: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 2, 4)
    layer = MambaLayer(24 if channel_token else 6, channel_token=channel_token)
    found = layer(x)
    assert found.shape == x.shape
    for sample, y in zip(x, found, strict=True):
        rows = sample.reshape(6, 24) if channel_token else sample.reshape(6, 24).T
        expected = layer.mamba(layer.norm(rows)[None])[0]
        torch.testing.assert_close(y.reshape(6, 24), expected if channel_token else expected.T)


def test_the_layer_computes_in_float32_whatever_the_autocast() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(1, 8, 5, 5), MambaLayer(8)
    expected = layer(x.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.bfloat16())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_residual_adds_the_input() -> None:
    torch.manual_seed(0)
    x, plain = torch.randn(1, 8, 5, 5), MambaLayer(8)
    added = MambaLayer(8, residual=True)
    added.load_state_dict(plain.state_dict())
    torch.testing.assert_close(added(x), x + plain(x))


def test_bidirectional_averages_a_scan_from_either_end() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(1, 6, 3, 4), MambaLayer(6, scan_directions="bidirectional", num_axes=2)
    tokens = layer.norm(x[0].reshape(6, 12).T)[None]
    from_end = layer.other_mambas[0](tokens[:, torch.arange(11, -1, -1)])[:, torch.arange(11, -1, -1)]
    expected = (layer.mamba(tokens) + from_end) / 2
    torch.testing.assert_close(layer(x)[0].reshape(6, 12), expected[0].T)


def test_each_axis_runs_fastest_once() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(1, 6, 3, 2, 4), MambaLayer(6, scan_directions="axes", num_axes=3)
    orders = {-1: "b c z y x", -2: "b c z x y", -3: "b c y x z"}
    blocks = [layer.mamba, *layer.other_mambas]
    expected = torch.zeros_like(x)
    for block, (axis, order) in zip(blocks, orders.items(), strict=True):
        places = [["b", "c", "z", "y", "x"].index(name) for name in order.split()]
        assert places[-1] == 5 + axis
        permuted = x.permute(places)
        tokens = layer.norm(permuted.reshape(1, 6, 24).transpose(1, 2))
        mixed = block(tokens).transpose(1, 2).reshape(permuted.shape)
        back = [places.index(place) for place in range(5)]
        expected += mixed.permute(back) / 3
    torch.testing.assert_close(layer(x), expected)
    channels = MambaLayer(24, channel_token=True, scan_directions="axes", num_axes=3)
    assert len(channels.other_mambas) == 0
