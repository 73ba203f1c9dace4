"""The Mamba block, compared with stored results of mamba_ssm, and the layer that applies it to feature maps."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from umamba.networks import build_network
from umamba.networks.mamba import Mamba, MambaLayer
from umamba.networks.scan import cpu_conv
from umamba.networks.scan.reference import scan as reference_scan
from umamba.planning import Configuration


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


def inner_by_definition(block: Mamba, xz: torch.Tensor) -> torch.Tensor:
    """Compute the block between in_proj and out_proj with PyTorch's convolution and the reference scan."""
    x, z = xz.transpose(1, 2).chunk(2, dim=1)
    u = torch.nn.functional.silu(block.conv1d(x)[..., : x.shape[2]])
    dt, B, C = block.x_proj(u.transpose(1, 2)).split([block.dt_rank, block.d_state, block.d_state], dim=-1)
    delta = (dt @ block.dt_proj.weight.T).transpose(1, 2)
    A, bias = -block.A_log.exp(), block.dt_proj.bias
    y, _ = reference_scan(u, delta, A, B.transpose(1, 2), C.transpose(1, 2), block.D, z, bias, True)
    return y.transpose(1, 2)


@pytest.mark.parametrize(("width", "taps", "length"), [(5, 4, 1), (8, 4, 2), (24, 3, 70)])
def test_the_fused_operation_and_its_gradients(width: int, taps: int, length: int) -> None:
    torch.manual_seed(0)
    block = Mamba(width, d_state=5, d_conv=taps).double()
    xz = torch.randn(2, length, 4 * width, dtype=torch.float64, requires_grad=True)
    inner = {name: p for name, p in block.named_parameters() if not name.startswith(("in_", "out_"))}
    weights = torch.randn(2, length, 2 * width, dtype=torch.float64)
    results = []
    for compute in (lambda: block._fused(xz, "cpu"), lambda: inner_by_definition(block, xz)):
        out = compute()
        results.append([out, *torch.autograd.grad((out * weights).sum(), [xz, *inner.values()])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_the_fused_operations_own_checks_and_any_number_of_threads() -> None:
    torch.manual_seed(0)
    block, xz = Mamba(24), torch.randn(1, 1500, 96, requires_grad=True)
    assert block.conv1d.bias is not None
    weights = (block.conv1d.weight, block.conv1d.bias, block.x_proj.weight, block.dt_proj.weight, block.dt_proj.bias)
    arguments = (xz[:, :40], *weights, -block.A_log.detach().exp(), block.D, True)
    utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.umamba.mamba_mix_cpu.default, arguments, test_utils=utilities)
    conv = (block.conv1d.weight[:, 0].detach().numpy(), block.conv1d.bias.detach().numpy())
    x, grad = (np.random.default_rng(0).standard_normal((2, 1500, 48)).astype(np.float32) for _ in range(2))
    results = []
    for threads in (1, 2, 3):
        out, grad_x = np.empty_like(x), np.empty_like(x)
        cpu_conv.conv_into(x, *conv, out, threads=threads)
        results.append([out, grad_x, *cpu_conv.conv_back_into(x, *conv, grad, grad_x, threads=threads)])
    assert all(np.array_equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_a_block_in_half_precision_still_runs() -> None:
    block, tokens = Mamba(8), torch.randn(1, 9, 8)
    expected = block(tokens)
    torch.testing.assert_close(block.bfloat16()(tokens.bfloat16()).float(), expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("channel_token", [False, True])
@pytest.mark.parametrize("axes", [2, 3])
def test_both_memory_formats_give_the_same_and_stay(axes: int, channel_token: bool) -> None:
    torch.manual_seed(0)
    size = (2, 3, 4)[-axes:]
    x = torch.randn(2, 6, *size)
    layer = MambaLayer(int(np.prod(size)) if channel_token else 6, channel_token=channel_token, num_axes=axes)
    last = torch.channels_last if axes == 2 else torch.channels_last_3d
    packed, apart = layer(x), layer(x.contiguous(memory_format=last))
    assert torch.equal(packed, apart)
    assert packed.is_contiguous()
    assert apart.is_contiguous(memory_format=last)


COPIES = ("aten::copy_", "aten::contiguous", "aten::clone", "aten::_to_copy")


@pytest.mark.parametrize("half", [False, True])
def test_a_training_step_on_a_channels_last_map_copies_nothing_but_the_cast(half: bool) -> None:
    torch.manual_seed(0)
    layer = MambaLayer(32)
    x = torch.randn(2, 32, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    x = (x.bfloat16() if half else x).requires_grad_()
    weights = torch.randn(2, 32, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        torch.autograd.grad(layer(x), [x, *layer.parameters()], weights)
    large = x.numel()
    copies = [
        event
        for event in profile.events()
        if event.name in COPIES and any(np.prod(shape or [0]) >= large for shape in event.input_shapes)
    ]
    casts = [event.name for event in copies]
    assert len([name for name in casts if name == "aten::copy_"]) == (2 if half else 0), casts  # to float32 and back
    assert not [name for name in casts if name in ("aten::contiguous", "aten::clone")]


def test_the_layer_compiles_to_one_graph() -> None:
    torch.manual_seed(0)
    layer, x = MambaLayer(8), torch.randn(1, 8, 3, 4, requires_grad=True)
    graphs = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected, found = layer(x), graphs(x)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in (found, expected))
    torch.testing.assert_close(ours, theirs)


@dataclass
class Graphs:
    """A compiler that counts the graphs of the forward and the backward pass and runs them as they are."""

    forward: int = 0
    backward: int = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def ahead(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
            self.forward += 1
            return make_boxed_func(graph.forward)

        def back(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
            self.backward += 1
            return make_boxed_func(graph.forward)

        compiled: Callable[..., Any] = aot_autograd(fw_compiler=ahead, bw_compiler=back)(graph, inputs)
        return compiled


def loss_and_gradients(network: torch.nn.Module, run: Callable[..., Any], x: torch.Tensor) -> list[torch.Tensor]:
    """Return the loss of a step and the gradients of the parameters that have one."""
    network.zero_grad(set_to_none=True)
    found = run(x)
    heads = [found] if isinstance(found, torch.Tensor) else found
    loss = torch.stack([head.square().mean() for head in heads]).sum()
    loss.backward()
    return [loss.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


NETWORKS = [("umamba_bot", 2), ("umamba_enc", 2), ("umamba_bot", 3), ("umamba_enc", 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dim"), NETWORKS)
def test_a_network_compiles_to_one_graph(make_configuration: Callable[..., Configuration], name: str, dim: int) -> None:
    torch.compiler.reset()
    configuration = make_configuration(dim)
    network = build_network(name, configuration, 1, 3).double()
    x, graphs = torch.randn(1, 1, *configuration.patch_size, dtype=torch.float64), Graphs()
    found = loss_and_gradients(network, torch.compile(network, fullgraph=True, backend=graphs), x)
    assert (graphs.forward, graphs.backward) == (1, 1)
    torch.testing.assert_close(found, loss_and_gradients(network, network, x))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_a_network_compiled_by_inductor_computes_the_same(make_configuration: Callable[..., Configuration]) -> None:
    torch.compiler.reset()
    configuration = make_configuration(2)
    network = build_network("umamba_bot", configuration, 1, 3)
    x = torch.randn(1, 1, *configuration.patch_size)
    found = loss_and_gradients(network, torch.compile(network, fullgraph=True), x)
    torch.testing.assert_close(found, loss_and_gradients(network, network, x), rtol=1e-3, atol=1e-4)
