"""The layers of the CPU's fast path against PyTorch's own in float64, and where the path is not taken."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba.networks import build_network
from umamba.networks.blocks import NearestUpsample, ProjectionBlock, convolution, transposed_upsample
from umamba.networks.cpu_layers import on_fast_path, upsampled
from umamba.networks.fused_norm import channels_last, norm_activation
from umamba.networks.one_pass import HalfWeight

SHAPES = ((2, 5, 3, 4, 5), (1, 24, 9, 20, 30), (2, 3, 16, 24, 40), (2, 3, 7, 6), (1, 200, 2, 2, 2))


def half(*shape: int, seed: int, offset: float = 0.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + offset
    return values.bfloat16().contiguous(memory_format=channels_last(len(shape) - 2))


def far(found: Tensor, truth: Tensor) -> float:
    right = truth.detach().double()
    return float((found.detach().double() - right).norm() / right.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.parametrize("with_residual", [True, False])
def test_norm_sum_and_activation_are_those_of_float64(
    shape: tuple[int, ...], slope: float, with_residual: bool
) -> None:
    x = half(*shape, seed=1, offset=20.0).requires_grad_()  # far from zero: a plain sum of squares would be wrong
    residual = half(*shape, seed=2).requires_grad_() if with_residual else None
    weight = (torch.rand(shape[1]) + 0.5).requires_grad_()
    bias = torch.randn(shape[1]).requires_grad_()
    cotangent = half(*shape, seed=3)
    inputs = [each for each in (x, residual, weight, bias) if each is not None]
    found = norm_activation(x, residual, weight, bias, slope, 1e-5)
    gradients = torch.autograd.grad(found, inputs, cotangent)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    z = F.instance_norm(exact[0], None, None, exact[-2], exact[-1], eps=1e-5)
    truth = F.leaky_relu(z + exact[1] if with_residual else z, slope)
    expected = torch.autograd.grad(truth, exact, cotangent.double())
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=channels_last(len(shape) - 2))
    assert far(found, truth) < 3e-3
    for gradient, right in zip(gradients, expected, strict=True):
        assert far(gradient, right) < 3e-3


def test_norm_does_not_depend_on_the_number_of_threads() -> None:
    x, cotangent = half(2, 32, 12, 28, 30, seed=1).requires_grad_(), half(2, 32, 12, 28, 30, seed=2)
    weight, bias = torch.ones(32, requires_grad=True), torch.zeros(32, requires_grad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            y = norm_activation(x, None, weight, bias, 0.01, 1e-5)
            results.append([y, *torch.autograd.grad(y, (x, weight, bias), cotangent)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


def test_norm_passes_on_what_is_not_finite() -> None:
    x = half(1, 2, 4, 4, seed=1)
    x[0, 1, 0, 0] = float("nan")
    y = norm_activation(x, None, torch.ones(2), torch.zeros(2), 0.01, 1e-5)
    assert y[0, 0].isfinite().all()
    assert y[0, 1].isnan().all()


@pytest.mark.filterwarnings("ignore:Deterministic behavior")
def test_norm_is_a_proper_operator() -> None:
    arguments = (half(2, 3, 4, 5, seed=1), half(2, 3, 4, 5, seed=2), torch.ones(3), torch.zeros(3), 0.01, 1e-5)
    operator = torch.ops.umamba.norm_activation_cpu.default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "one input channel": (lambda: convolution(1, 8, (3, 3, 3), (1, 1, 1)), (2, 1, 6, 7, 8)),
    "one input channel in 2D, strided": (lambda: convolution(1, 8, (3, 3), (2, 2)), (2, 1, 6, 8)),
    "one voxel": (lambda: convolution(8, 5, (1, 1, 1), (1, 1, 1)), (2, 8, 3, 4, 5)),
    "one voxel without bias, strided": (lambda: convolution(8, 5, (1, 1, 1), (1, 2, 2), bias=False), (2, 8, 3, 4, 6)),
    "depth two": (lambda: convolution(16, 16, (3, 3, 3), (1, 1, 1)), (2, 16, 2, 5, 5)),
    "transposed": (lambda: transposed_upsample(8, 5, (1, 2, 3)), (2, 8, 3, 4, 5)),
    "transposed in 2D": (lambda: transposed_upsample(8, 5, (2, 2)), (2, 8, 3, 4)),
    "nearest": (lambda: NearestUpsample(8, 5, (1, 2, 2)), (2, 8, 3, 4, 5)),
    "block": (lambda: ProjectionBlock(4, 8, (3, 3, 3), (1, 2, 2)), (2, 4, 3, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_those_of_float64(name: str) -> None:
    torch.manual_seed(1)
    build, shape = LAYERS[name]
    layer, x = build(), half(*shape, seed=2)

    def run(network: nn.Module, image: Tensor, autocast: bool) -> list[Tensor]:
        network.zero_grad()
        image = image.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = network(image)
        y.backward(half(*y.shape, seed=3).to(y.dtype))
        kept = [p.grad for key, p in network.named_parameters() if p.grad is not None and not key.startswith("conv")]
        assert image.grad is not None
        return [y.detach(), image.grad, *(each.clone() for each in kept)]

    found = run(layer, x.detach().clone(), autocast=True)
    expected = run(layer.double(), x.detach().double(), autocast=False)
    assert found[0].is_contiguous(memory_format=channels_last(len(shape) - 2))
    # A block rounds between its layers; where LeakyReLU's slope changes with the rounding, gradients differ more.
    assert all(far(one, right) < (0.1 if name == "block" else 0.01) for one, right in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("shape", "stride"), [((2, 8, 3, 4, 5), (1, 2, 3)), ((2, 8, 3, 4), (2, 3)), ((2, 32, 4, 20, 16), (2, 2, 2))]
)
@pytest.mark.parametrize("channels", [0, 7])
def test_upsampled_and_joined_has_the_bits_of_pytorchs_operators(
    shape: tuple[int, ...], stride: tuple[int, ...], channels: int
) -> None:
    """Weights, image and skip are small whole numbers, and so are all sums: bfloat16 holds them exactly."""
    torch.manual_seed(1)
    layer: Any = transposed_upsample(shape[1], 5, stride)
    x = half(*shape, seed=2).mul(2).round().requires_grad_()
    size = [length * step for length, step in zip(shape[2:], stride, strict=True)]
    skip = half(shape[0], channels, *size, seed=3).requires_grad_() if channels else None
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape))
    with torch.autocast("cpu", torch.bfloat16):
        found = upsampled(layer, x, skip)
    cotangent = half(*found.shape, seed=4).round()
    inputs = [x, *([] if skip is None else [skip])]
    plain = (F.conv_transpose2d if len(stride) == 2 else F.conv_transpose3d)(
        x.double(), layer.weight.double(), layer.bias.double(), stride
    )
    expected = plain if skip is None else torch.cat((plain, skip.double()), dim=1)
    assert found.is_contiguous(memory_format=channels_last(len(stride)))
    assert torch.equal(found.double(), expected)
    gradients = torch.autograd.grad(found, inputs, cotangent)
    right = torch.autograd.grad(expected, inputs, cotangent.double())
    assert torch.equal(gradients[0], right[0])
    assert skip is None or torch.equal(gradients[1], right[1])


@pytest.mark.parametrize("shape", [(8, 16, 3, 3, 3), (8, 16, 3, 5)])
def test_a_weight_changes_type_and_layout_in_one_copy(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.profiler.profile() as profiler:
        found: Tensor = HalfWeight.apply(weight)
    gradient = half(*shape, seed=2)
    (given,) = torch.autograd.grad(found, weight, gradient)
    assert sum(each.count for each in profiler.key_averages() if each.key == "aten::copy_") == 1
    assert torch.equal(found, weight.bfloat16())
    assert found.is_contiguous(memory_format=channels_last(len(shape) - 2))
    assert torch.equal(given, gradient.float())
    assert given.is_contiguous()


@pytest.mark.parametrize("architecture", ["unet", "umamba_bot", "resenc_unet"])
def test_networks_keep_one_layout_and_bfloat16(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(architecture, patch_size=(8, 16, 16), num_classes=3)
    seen: list[tuple[str, bool]] = []

    def look(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        last = output.is_contiguous(memory_format=torch.channels_last_3d)
        seen.append((type(layer).__name__, last and output.dtype == torch.bfloat16))

    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d | nn.InstanceNorm3d):
            layer.register_forward_hook(look)
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 1, 8, 16, 16))
    assert len(seen) > 10
    assert [name for name, right in seen if not right] == []


def test_only_bfloat16_autocast_on_a_cpu_takes_the_path() -> None:
    x = torch.zeros(1, 1, 4, 4)
    assert not on_fast_path(x)
    with torch.autocast("cpu", torch.float16):
        assert not on_fast_path(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert on_fast_path(x)
        assert not on_fast_path(x.double())
        assert not on_fast_path(x.to("meta"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore:Converting a tensor to a Python")
def test_a_traced_or_exported_network_has_pytorchs_operators_only() -> None:
    network = build_network("unet", patch_size=(16, 16), deep_supervision=False).eval()
    image = torch.randn(1, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        traced = torch.jit.trace(network, image, check_trace=False)
        exported = torch.export.export(network, (image,))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert "aten::instance_norm" in kinds
    assert any(target.startswith("aten.") for target in targets)
    assert not any(name.startswith(("umamba::", "umamba.")) for name in kinds | targets)
