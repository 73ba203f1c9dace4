"""The Triton kernels of norm, sum and LeakyReLU against PyTorch in float64; in the interpreter without a GPU."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umamba.networks import build_network, cpu_layers, fused_norm_gpu
from umamba.networks.blocks import ProjectionBlock
from umamba.networks.fused_norm import channels_last

pytest.importorskip("triton", reason="Triton is not installed")
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)
kernels = pytest.importorskip("umamba.networks.fused_norm_triton")
norm_activation = kernels.norm_activation

# (B, C, *S), channels last, slope, residual: unequal parts; 2D, a part and a rest; more channels than a tile
CASES = [
    ((2, 3, 3, 5, 9), False, 0.01, True),
    ((2, 3, 3, 5, 9), True, 0.01, True),
    ((2, 3, 3, 5, 9), False, 1.0, False),
    ((2, 3, 3, 5, 9), True, 1.0, False),
    ((1, 2, 9, 8), False, 0.01, False),
    ((1, 2, 9, 8), True, 1.0, True),
    ((1, 70, 2, 3), True, 0.01, True),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide small maps as large ones are divided."""
    monkeypatch.setattr(kernels, "_TILE", 64)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def far(found: Tensor, truth: Tensor) -> float:
    right = truth.detach().double()
    return float((found.detach().double() - right).norm() / right.norm())


def exact(values: list[Tensor], slope: float, cotangent: Tensor) -> list[Tensor]:
    """Return PyTorch's output and gradients in float64; values are x, the residual if there is one, weight and bias."""
    leaves = [value.detach().double().requires_grad_() for value in values]
    z = F.instance_norm(leaves[0], None, None, leaves[-2], leaves[-1], eps=1e-5)
    y = F.leaky_relu(z + leaves[1] if len(leaves) == 4 else z, slope)
    return [y, *torch.autograd.grad(y, leaves, cotangent.double())]


def fused(values: list[Tensor], slope: float, cotangent: Tensor) -> list[Tensor]:
    leaves = [value.detach().requires_grad_() for value in values]
    residual = leaves[1] if len(leaves) == 4 else None
    y = norm_activation(leaves[0], residual, leaves[-2], leaves[-1], slope, 1e-5)
    return [y, *torch.autograd.grad(y, leaves, cotangent)]


@pytest.mark.parametrize(("shape", "last", "slope", "with_residual"), CASES, ids=str)
def test_float32_is_that_of_float64(shape: tuple[int, ...], last: bool, slope: float, with_residual: bool) -> None:
    layout = channels_last(len(shape) - 2) if last else torch.contiguous_format
    x = draw(*shape, seed=1).contiguous(memory_format=layout)
    values = [x, *([draw(*shape, seed=2)] if with_residual else []), draw(shape[1], seed=3), draw(shape[1], seed=4)]
    cotangent = draw(*shape, seed=5)
    found, expected = fused(values, slope, cotangent), exact(values, slope, cotangent)
    assert found[0].dtype == torch.float32
    assert found[0].is_contiguous(memory_format=layout)
    assert max(far(one, right) for one, right in zip(found, expected, strict=True)) < 1e-6


@pytest.mark.parametrize("last", [False, True])
def test_nothing_cancels_far_from_zero(last: bool) -> None:
    # Sums of squares of the values themselves would leave no digit of the variance. A mean of 3000 has steps of 2.4e-4.
    x = draw(1, 2, 3, 5, 9, seed=1) + 3000.0
    values = [x.contiguous(memory_format=channels_last(3)) if last else x, draw(2, seed=3), draw(2, seed=4)]
    cotangent = draw(*x.shape, seed=5)
    found, expected = fused(values, 0.01, cotangent), exact(values, 0.01, cotangent)
    assert max(far(one, right) for one, right in zip(found, expected, strict=True)) < 5e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_half_precision_has_float32_statistics(dtype: torch.dtype, last: bool) -> None:
    shape = (2, 3, 3, 5, 9)
    layout = channels_last(3) if last else torch.contiguous_format
    x = (draw(*shape, seed=1) + 20.0).to(dtype).contiguous(memory_format=layout)
    values = [x, draw(*shape, seed=2).to(dtype), draw(3, seed=3), draw(3, seed=4)]
    cotangent = draw(*shape, seed=5).to(dtype)
    found, expected = fused(values, 0.01, cotangent), exact(values, 0.01, cotangent)
    assert [each.dtype for each in found] == [dtype, dtype, dtype, torch.float32, torch.float32]
    # The interpreter cuts bfloat16 off, GPUs round.
    assert max(far(one, right) for one, right in zip(found, expected, strict=True)) < 8e-3


def test_the_sum_keeps_the_dtype_of_the_map() -> None:
    values = [draw(1, 2, 3, 4, seed=1).half(), draw(1, 2, 3, 4, seed=2), torch.ones(2), torch.zeros(2)]
    values = [value.to(DEVICE) for value in values]
    y, *gradients = fused(values, 0.01, draw(1, 2, 3, 4, seed=3).half())
    assert y.dtype == torch.float16
    assert [each.dtype for each in gradients] == [value.dtype for value in values]


def test_other_strides_and_layouts_are_arranged() -> None:
    x, residual, cotangent = (draw(2, 3, 4, 5, 6, seed=k) for k in range(3))
    weight, bias = draw(3, seed=3), draw(3, seed=4)
    plain = fused([x, residual, weight, bias], 0.01, cotangent)
    swapped = x.transpose(0, 1).contiguous().transpose(0, 1)
    last = channels_last(3)
    other = fused(
        [swapped, residual.contiguous(memory_format=last), weight, bias], 0.01, cotangent.contiguous(memory_format=last)
    )
    assert all(torch.equal(one, two) for one, two in zip(plain, other, strict=True))


def test_results_repeat_bit_for_bit() -> None:
    values = [draw(2, 3, 4, 5, 6, seed=1), draw(2, 3, 4, 5, 6, seed=2), draw(3, seed=3), draw(3, seed=4)]
    first, second = (fused(values, 0.01, draw(2, 3, 4, 5, 6, seed=5)) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_not_finite_stays_in_its_instance() -> None:
    for value in (float("nan"), float("inf")):
        x = draw(1, 2, 4, 4, seed=1)
        x[0, 1, 0, 0] = value
        y = norm_activation(x, None, torch.ones(2).to(x), torch.zeros(2).to(x), 0.01, 1e-5)
        assert y[0, 0].isfinite().all()
        assert y[0, 1].isnan().any()


def test_float16_is_clamped_as_without_the_kernels() -> None:
    x = draw(1, 2, 6, 6, seed=1).half()
    x[0, 0, 0, 0], x[0, 0, 1, 1] = torch.inf, -torch.inf
    values = [x, draw(1, 2, 6, 6, seed=2).half(), torch.tensor([3e4, 1.0]).to(DEVICE), torch.zeros(2).to(DEVICE)]
    cotangent = draw(1, 2, 6, 6, seed=3).half()
    found = fused(values, 0.01, cotangent)
    leaves = [value.detach().double().requires_grad_() for value in values]
    limit = cpu_layers.LARGEST_HALF
    z = F.instance_norm(leaves[0].clamp(-limit, limit), None, None, leaves[2], leaves[3], eps=1e-5) + leaves[1]
    y = F.leaky_relu(z.clamp(-limit, limit), 0.01)
    expected = [y, *torch.autograd.grad(y, leaves, cotangent.double())]
    assert all(each.isfinite().all() for each in found)
    assert max(far(one, right) for one, right in zip(found, expected, strict=True)) < 3e-3


@pytest.mark.filterwarnings("ignore:Deterministic behavior")
def test_the_operators_own_checks() -> None:
    x = draw(2, 3, 4, 5, seed=1).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.ones(3).to(x).requires_grad_(), torch.zeros(3).to(x).requires_grad_()
    for residual in (None, draw(2, 3, 4, 5, seed=2).requires_grad_()):
        torch.library.opcheck(
            torch.ops.umamba.norm_activation_triton.default,
            (x, residual, weight, bias, 0.01, 1e-5),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


def test_without_an_activation_the_output_is_not_kept() -> None:
    x = draw(1, 2, 4, 4, seed=1).requires_grad_()
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = norm_activation(x, None, torch.ones(2).to(x), torch.zeros(2).to(x), 1.0, 1e-5)
    assert x.data_ptr() in kept
    assert y.data_ptr() not in kept


def test_many_instances_and_few_both_fill_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_TILE", 2048)
    for shape, last in (((2, 32, 128, 128, 128), False), ((2, 32, 128, 128, 128), True), ((2, 320, 4, 4, 4), False)):
        x = torch.empty(shape, device="meta")
        call = kernels._Call(x, last)
        programs = call.grid[0] * call.grid[1] * call.grid[2]
        assert 132 * 3 < programs < 10_000
        assert (call.parts - 1) * call.span < call.voxels <= call.parts * call.span


def test_the_check_passes_and_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_TILE", 2048)
    state = torch.get_rng_state()
    assert fused_norm_gpu.disagreement(DEVICE) is None
    assert torch.equal(torch.get_rng_state(), state), "the check changed the run's random numbers"

    def wrong(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, slope: float, eps: float) -> Tensor:
        return (x + residual) * weight.view(-1, 1, 1, 1) + 0 * bias.sum()

    monkeypatch.setattr(kernels, "norm_activation", wrong)
    assert "the output in torch.float32 differs" in str(fused_norm_gpu.disagreement(DEVICE))


def test_a_device_where_the_kernels_fail_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused_norm_gpu, "disagreement", lambda device: "the output differs.")
    fused_norm_gpu._works.cache_clear()
    with caplog.at_level(logging.INFO, "umamba"):
        assert [fused_norm_gpu._works(torch.device("cuda:1")) for _ in range(2)] == [False, False]
    fused_norm_gpu._works.cache_clear()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "on cuda:1: PyTorch's separate operators" in record.getMessage()


def test_only_maps_on_a_gpu_take_the_kernels() -> None:
    x = torch.zeros(1, 1, 4, 4)
    assert not fused_norm_gpu.fused_on_gpu(x)
    assert not fused_norm_gpu.fused_on_gpu(x.to("meta"))


def test_layers_use_the_kernels_and_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block, x = ProjectionBlock(3, 4, (3, 3), (1, 2)).to(DEVICE), draw(2, 3, 5, 6, seed=1)
    used: list[float] = []
    original = kernels.norm_activation

    def counted(*arguments: object) -> Tensor:
        used.append(float(str(arguments[4])))
        return original(*arguments)

    monkeypatch.setattr(kernels, "norm_activation", counted)
    results = []
    for choice in (True, False):
        monkeypatch.setattr(cpu_layers, "fused_on_gpu", lambda x, choice=choice: choice)
        block.zero_grad()
        y = block(x)
        y.square().sum().backward()
        results.append([y, *(p.grad.clone() for p in block.parameters() if p.grad is not None)])
    assert used == [0.01, 0.01]
    # A bias before a norm has no gradient but rounding.
    kept = [k for k, right in enumerate(results[1]) if right.abs().max() > 1e-3]
    assert len(kept) > 6
    assert max(far(results[0][k], results[1][k]) for k in kept) < 1e-5


COMPILE = """
import re, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from umamba.networks import fused_norm_triton as kernels
from umamba.networks.fused_norm_triton_kernels import differentiate, gradient_sums, normalise, statistics

POINTERS = {"x", "y", "grad", "residual", "grad_x", "grad_residual"}
FLOATS = {"eps", "slope"}
for target in [int(sys.argv[1])]:
    for dtype in sys.argv[2:]:
        for last in (False, True):
            call = kernels._Call(torch.empty(2, 32, 64, 96, 96, dtype={"fp32": torch.float32, "bf16": torch.bfloat16,
                "fp16": torch.float16}[dtype], device="meta"), last)
            blocks = dict(call.blocks)
            warps = blocks.pop("num_warps")
            for kernel in (statistics, normalise, gradient_sums, differentiate):
                flags = {name: True for name in ("RESIDUAL", "ACTIVATION")} | blocks
                constants = {name: flags[name] for name in kernel.arg_names if name in flags}
                constants["by_channel" if last else "by_voxel"] = 1
                signature = {}
                for name in kernel.arg_names:
                    if name in constants:
                        signature[name] = "constexpr"
                    elif name in POINTERS:
                        signature[name] = "*" + dtype
                    elif name in FLOATS:
                        signature[name] = "fp32"
                    else:
                        whole = ("channels", "voxels", "span", "by_channel", "by_voxel")
                        signature[name] = "i32" if name in whole else "*fp32"
                aligned = {(k,): [["tt.divisibility", 16]] for k, name in enumerate(kernel.arg_names)
                           if signature[name] not in ("constexpr", "fp32")}
                source = ASTSource(kernel, signature, constants, aligned)
                found = triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps})
                with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
                    file.write(found.asm["ptx"])
                    file.flush()
                    arch = re.search(r"[.]target (sm_[0-9]+a?)", found.asm["ptx"]).group(1)
                    said = subprocess.run([get_ptxas(target).path, "-v", "--gpu-name=" + arch, file.name, "-o",
                        "/dev/null"], capture_output=True, text=True, check=True).stderr
                registers = re.search(r"Used ([0-9]+) registers", said).group(1)
                spilled = re.search(r"([0-9]+) bytes spill stores", said).group(1)
                wide = len(re.findall(r"ld[.]global[^;]*[.]v4", found.asm["ptx"]))
                print(target, dtype, "last" if last else "first", kernel.__name__, registers, spilled, wide)
"""


def compiled(target: int, dtypes: tuple[str, ...]) -> list[list[str]]:
    """Return of every kernel, dtype and layout: target, dtype, layout, name, registers, bytes spilled, wide loads."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(target), *dtypes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


ALL = ("fp32", "bf16", "fp16")


@pytest.mark.parametrize(
    ("target", "dtypes"),
    [(90, ("bf16",)), *(pytest.param(target, ALL, marks=pytest.mark.slow) for target in (80, 90, 120))],
)
def test_the_kernels_compile_without_spilled_registers(
    target: int, dtypes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rows = compiled(target, dtypes)
    assert len(rows) == 8 * len(dtypes)
    assert [row for row in rows if row[5] != "0"] == []
    assert max(int(row[4]) for row in rows) <= 128, "fewer than four programs of four warps would fit on a processor"
    assert [row for row in rows if row[6] == "0"] == [], "loads of single values"


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU")
def test_the_network_on_a_gpu_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    network = build_network("umamba_bot", patch_size=(16, 16), num_classes=3, deep_supervision=False)
    image = torch.randn(2, 1, 16, 16)
    expected = network.double()(image.double())
    found = network.float().cuda()(image.cuda())
    assert fused_norm_gpu.fused_on_gpu(image.cuda())
    assert far(found.cpu(), expected) < 1e-3
