"""The Triton scan, compared with stored results of the official reference and with the reference backend.

On a GPU the kernels are compiled; without one they run in Triton's interpreter (tests/conftest.py switches it on).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from umamba.networks.mamba import Mamba, MambaLayer
from umamba.networks.scan import choice, resolve_backend, select, selective_scan
from umamba.networks.scan.reference import scan as reference_scan

pytest.importorskip("triton", reason="Triton is not installed")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)
scan_module = pytest.importorskip("umamba.networks.scan.triton")
layer_module = pytest.importorskip("umamba.networks.scan.triton_layer")
kernels_module = pytest.importorskip("umamba.networks.scan.triton_kernels")
scan = scan_module.scan

INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
SMALL = (
    "scan_L1_D8_B2",
    "scan_L7_D2_B1_nozD_nosoftplus",
    "scan_L7_D8_B2_groups2",
    "scan_L64_D2_B1_constBC",
    "scan_L64_D8_B1_large_delta",
)
REST = (
    "scan_L1000_D2_B1_mixed_delta",
    "scan_L1000_D8_B1",
    "scan_L257_D8_B1_tiny_delta",
    "scan_L257_D8_B2",
    "scan_L64_D33_B2",
    "scan_L64_D8_B1_noD_nobias",
    "scan_L64_D8_B2_noz",
    "scan_L7_D33_B1",
)


pytestmark = pytest.mark.usefixtures("quick_interpreter")


def relative(found: torch.Tensor | None, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest expected value."""
    assert found is not None
    expected = expected.detach().double().cpu()
    return float((found.detach().double().cpu() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def check(path: Path, dtype: torch.dtype) -> None:
    """Compare outputs, last state and all gradients with the stored float64 ones."""
    stored = {name: torch.tensor(array) for name, array in np.load(path).items()}
    leaves = {name: stored[name].to(DEVICE, dtype).requires_grad_() for name in INPUTS if name in stored}
    out, last = scan(*(leaves.get(name) for name in INPUTS), bool(stored["delta_softplus"]))
    (out * stored["grad_out"].to(DEVICE, dtype)).sum().backward()
    assert out.dtype == last.dtype == dtype
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    errors = {name: relative(leaf.grad, stored[f"grad_{name}64"]) for name, leaf in leaves.items()}
    errors |= {"out": relative(out, stored["out64"]), "last": relative(last, stored["last_state64"])}
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("name", SMALL)
def test_official_results(reference_dir: Path, name: str) -> None:
    check(reference_dir / "scan" / f"{name}.npz", torch.float32 if "L64" in name else torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly if "L1000" in name else ()) for name in REST]
)
def test_all_official_results(shared_dir: Path, name: str) -> None:
    check(shared_dir / "reference" / "scan" / f"{name}.npz", torch.float32)


def test_no_official_result_is_left_out(shared_dir: Path) -> None:
    assert {path.stem for path in (shared_dir / "reference" / "scan").glob("scan_*.npz")} == {*SMALL, *REST}


def random_inputs(
    batch: int, channels: int, length: int, states: int, groups: int | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Return inputs of a scan; B and C are stored token by token, as the output of a linear layer is."""
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    grouped = (batch, length, states) if groups is None else (batch, groups, length, states)
    inputs = {
        "u": draw(batch, channels, length),
        "delta": draw(batch, channels, length) - 1,
        "A": -draw(channels, states).exp(),
        "B": draw(*grouped).transpose(-1, -2),
        "C": draw(*grouped).transpose(-1, -2),
        "D": draw(channels),
        "z": draw(batch, channels, length),
        "delta_bias": draw(channels),
    }
    return {name: tensor.to(DEVICE, dtype) for name, tensor in inputs.items()}


def results(function: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return output, last state and all gradients of a weighted sum of the output."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    out, last = function(*(leaves.get(name) for name in INPUTS), True)
    weights = torch.linspace(-1, 1, out.shape[-1], device=out.device, dtype=out.dtype)
    gradients = torch.autograd.grad((out * weights).sum(), list(leaves.values()))
    return {"out": out.detach(), "last": last, **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize(
    ("batch", "channels", "length", "states", "groups"),
    [
        (1, 3, 49, 16, None),  # three chunks, the last one of one token
        (2, 11, 5, 1, None),  # one state
        (1, 2, 26, 20, None),  # padded states
        (1, 1, 7, 33, None),  # more states than lanes
        (1, 33, 4, 16, None),  # a block of one lane
        (2, 6, 9, 5, 3),
    ],
)
def test_odd_sizes(batch: int, channels: int, length: int, states: int, groups: int | None) -> None:
    inputs = random_inputs(batch, channels, length, states, groups, torch.float64)
    found, expected = results(scan, inputs), results(reference_scan, inputs)
    errors = {name: relative(found[name], expected[name]) for name in expected}
    assert max(errors.values()) < 1e-10, errors


def test_optional_arguments_may_be_absent() -> None:
    inputs = random_inputs(1, 2, 4, 4, dtype=torch.float64)
    for absent in ("D", "z", "delta_bias"):
        some = {name: tensor for name, tensor in inputs.items() if name != absent}
        found, expected = results(scan, some), results(reference_scan, some)
        assert max(relative(found[name], expected[name]) for name in expected) < 1e-10, absent


def test_strides_do_not_matter() -> None:
    inputs = random_inputs(2, 3, 6, 4)
    packed = {name: tensor.contiguous() for name, tensor in inputs.items()}
    views = dict(inputs)
    views["z"] = torch.cat([inputs["u"], inputs["z"]], dim=1)[:, 3:]  # half of a wider tensor
    views["u"] = inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)  # tokens apart
    views["delta"] = inputs["delta"].transpose(0, 1).contiguous().transpose(0, 1)
    views["A"] = inputs["A"].T.contiguous().T
    found, expected = results(scan, views), results(scan, packed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_scanned_in_float32(dtype: torch.dtype) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in random_inputs(1, 3, 9, 16).items()}
    halves["A"] = halves["A"].float()
    found, exact = results(scan, halves), results(scan, {name: half.float() for name, half in halves.items()})
    assert torch.equal(found["last"], exact["last"])
    for name, half in {"out": halves["u"], **halves}.items():
        assert found[name].dtype == half.dtype
        assert relative(found[name], exact[name]) < 2e-2, name  # the interpreter cuts bfloat16 off, GPUs round


def test_results_repeat_bit_for_bit() -> None:
    inputs = random_inputs(1, 6, 30, 16)
    first, second = results(scan, inputs), results(scan, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_chunks_and_rounds_are_divided_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs(1, 2, 70, 2, dtype=torch.float64)
    monkeypatch.setattr(scan_module, "_STEP", 96)
    together = results(scan, inputs)
    monkeypatch.setattr(scan_module, "_STEP", 24)
    monkeypatch.setattr(scan_module, "_ROWS", 2)  # carry_over needs two rounds for three chunks
    monkeypatch.setattr(scan_module, "_programs", lambda device: 2)  # gradients needs two launches
    divided = results(scan, inputs)
    assert max(relative(divided[name], together[name]) for name in together) < 1e-12


def test_large_small_and_undefined_numbers() -> None:
    inputs = random_inputs(1, 6, 9, 2)
    inputs["delta"][0, 0, 3], inputs["delta"][0, 1, 3], inputs["z"][0, 2, 3] = 1e4, -1e4, -1e4
    inputs["u"][0, 3, 5], inputs["z"][0, 4, 5] = np.nan, np.inf
    arguments: list[Any] = [*(inputs[name] for name in INPUTS), True]
    found, expected = (run(*arguments)[0] for run in (scan, reference_scan))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("raw", [-80.0, -17.0, -5.0, -0.5, 0.0, 0.5, 5.0, 19.9, 20.1, 90.0])
def test_the_step_size_is_accurate_to_its_last_digits(raw: float) -> None:
    one = torch.ones(1, 1, 1, device=DEVICE)
    out, _ = scan(one, one * raw, -torch.zeros(1, 1, device=DEVICE), one, one, None, None, None, True)
    exact = float(torch.nn.functional.softplus(torch.tensor(raw, dtype=torch.float64)))
    assert abs(float(out) - exact) <= 4e-7 * exact


def test_every_launch_is_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    if ON_GPU:
        pytest.skip("the interpreter shows it")
    from triton.runtime import interpreter

    conv = pytest.importorskip("umamba.networks.scan.triton_conv")
    entered: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device", entered.append)
    kernels_module.on_device(SimpleNamespace(is_cuda=True, device="cuda:1"))
    assert entered == ["cuda:1"]

    inside: list[bool] = []
    launched: list[str] = []
    plain = interpreter.GridExecutor.__call__

    @contextmanager
    def on_device(tensor: torch.Tensor) -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    def launch(self: Any, *arguments: Any, **named: Any) -> Any:
        assert inside, self.fn.__name__
        launched.append(self.fn.__name__)
        return plain(self, *arguments, **named)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    for module in (scan_module, conv):
        monkeypatch.setattr(module, "on_device", on_device)
    monkeypatch.setattr("umamba.networks.mamba.resolve_backend", lambda *_: "triton")
    Mamba(4, d_state=2)(torch.randn(1, 3, 4)).sum().backward()
    forward = ["_forward", "chunk_totals", "carry_over", "outputs"]
    assert launched == [*forward, "_forward", "chunk_totals_back", "carry_over", "gradients", "_backward"]


def test_the_operators_own_checks() -> None:
    inputs = {name: t.transpose(1, 2) if t.ndim == 3 else t for name, t in random_inputs(1, 3, 5, 4).items()}
    inputs |= {name: inputs[name].unsqueeze(2) for name in "BC"}
    utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
    leaves = [tensor.double().requires_grad_() for tensor in inputs.values()]
    torch.library.opcheck(torch.ops.umamba.selective_scan_triton.default, (*leaves, True), test_utils=utilities)
    mamba, xz = Mamba(3, d_state=4).to(DEVICE), torch.randn(1, 5, 12, device=DEVICE, requires_grad=True)
    operator = torch.ops.umamba.mamba_mix_triton.default
    torch.library.opcheck(operator, (xz, *weights_of(mamba)), test_utils=utilities)


def test_nothing_of_the_size_of_all_states_is_kept() -> None:
    u, states = torch.empty(2, 100_000, 64, device="meta"), 16
    A, BC = torch.empty(64, states, device="meta"), torch.empty(2, 100_000, 1, states, device="meta")
    out, carried = torch.ops.umamba.selective_scan_triton(u, u, A, BC, BC, None, None, None, True)
    assert out.shape == u.shape
    assert carried.numel() < 0.15 * u.numel()


def test_the_self_test_passes_and_finds_a_wrong_backend() -> None:
    small = (select.Case(2, 27), select.Case(3, 16, rows=True))
    assert select.disagreement(scan, DEVICE, small) is None

    def wrong(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, last = reference_scan(*arguments)
        return out * torch.where(torch.arange(out.shape[-1], device=out.device) == 20, 1.1, 1.0), last

    assert "differs from the reference" in str(select.disagreement(wrong, DEVICE, small))


@pytest.mark.slow
def test_the_whole_self_test_passes() -> None:
    kinds = {(case.length % 16 == 0, case.dtype) for case in select._CASES}
    assert kinds >= {(True, torch.float32), (False, torch.float32), (False, torch.bfloat16)}
    # A GPU takes the cases as they are; the interpreter, where each token costs milliseconds, takes a quarter of the
    # tokens: still several chunks, the last one shorter, and lengths that 16 divides or not.
    cases = select._CASES if ON_GPU else [replace(case, length=case.length // 4) for case in select._CASES]
    assert {(case.length % 16 == 0, case.dtype) for case in cases} == kinds
    assert select.disagreement(scan, DEVICE, cases) is None


def test_auto_takes_the_faster_backend_of_each_shape(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[Any, ...]] = []

    def seconds(scan: Any, device: str, shape: tuple[int, int, int]) -> float:
        asked.append(shape)
        few = shape[0] * shape[1] < 1000
        return 0.002 if (scan == "triton") != few else 0.001

    monkeypatch.setattr(select, "why_not", lambda backend, device: None)
    monkeypatch.setattr(choice, "import_module", lambda name: SimpleNamespace(scan=name.rpartition(".")[2]))
    monkeypatch.setattr(choice, "seconds", seconds)
    for function in (select._resolve, choice._measured):
        function.cache_clear()
    with caplog.at_level(logging.INFO, "umamba"):
        for _ in range(2):
            assert resolve_backend("cuda:1", "auto", (2, 64, 1_720_320)) == "triton"
            assert resolve_backend("cuda:1", "auto", (30, 64, 102_400)) == "cuda"
            assert resolve_backend("cuda:1", "triton", (30, 64, 102_400)) == "triton"
    assert asked == [(2, 64, 131_072)] * 2 + [(30, 64, 16_384)] * 2
    assert [text for text in caplog.messages if "30 x 64" in text] == [
        "Selective scan on cuda:1, 30 x 64 channels, 16384 tokens: backend cuda (triton 2.000 ms, cuda 1.000 ms)."
    ]
    torch.use_deterministic_algorithms(True)
    try:
        assert resolve_backend("cuda:1", "auto", (30, 64, 102_400)) == "triton"
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(
        select, "why_not", lambda name, device: "mamba_ssm is not installed." if name == "cuda" else None
    )
    assert resolve_backend("cuda:1", "auto", (30, 64, 102_400)) == "triton"
    for function in (select._resolve, choice._measured):
        function.cache_clear()


def test_a_backend_that_disagrees_is_passed_over_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = {"triton": "the output differs from the reference.", "cuda": None}
    monkeypatch.setattr(select, "why_not", lambda backend, device: reasons[backend])
    select._resolve.cache_clear()
    with caplog.at_level(logging.INFO, "umamba"):
        assert [resolve_backend("cuda", "auto") for _ in range(2)] == ["cuda", "cuda"]
    select._resolve.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "triton is not used: the output differs" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 4097, 60_000, 1_720_320])
def test_the_gpu_equals_the_cpu(length: int, dtype: torch.dtype) -> None:
    inputs = random_inputs(1, 4 if length > 100_000 else 40, length, 16, dtype=dtype)
    inputs["A"] = inputs["A"].float()
    found = results(scan, inputs)

    def on_cpu(*arguments: Any) -> Any:
        names = (*INPUTS, "delta_softplus")
        return selective_scan(**dict(zip(names, arguments, strict=True)), return_last_state=True, backend="cpu")

    expected = results(on_cpu, {name: tensor.cpu().double() for name, tensor in inputs.items()})
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    errors = {name: relative(found[name], expected[name]) for name in expected}
    assert max(errors.values()) < tolerance, errors


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU")
def test_auto_takes_triton_on_a_gpu() -> None:
    select._resolve.cache_clear()
    assert resolve_backend("cuda", "auto") == "triton"


@pytest.mark.parametrize(
    "name", ["mamba_d8_L1_B2", pytest.param("mamba_d8_L64_B2_defaultinit", marks=pytest.mark.slow)]
)
def test_the_fused_layer_equals_the_official_one(
    reference_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umamba.networks.mamba.resolve_backend", lambda *_: "triton")
    stored = {key: torch.tensor(array) for key, array in np.load(reference_dir / "scan" / f"{name}.npz").items()}
    mamba = Mamba(*(int(stored[key]) for key in ("d_model", "d_state", "d_conv", "expand")))
    mamba.load_state_dict({key[6:]: value for key, value in stored.items() if key.startswith("param/")})
    mamba.to(DEVICE, torch.float64)
    tokens = stored["input"].to(DEVICE, torch.float64).requires_grad_()
    out = mamba(tokens)
    (out * stored["grad_out"].to(DEVICE, torch.float64)).sum().backward()
    errors = {"out": relative(out, stored["out64"]), "tokens": relative(tokens.grad, stored["grad_input64"])}
    for key, parameter in mamba.named_parameters():
        errors[key] = relative(parameter.grad, stored[f"grad_param64/{key}"])
    assert max(errors.values()) < 1e-9, errors


def weights_of(mamba: Mamba) -> list[torch.Tensor]:
    """Return the weights in the order of `mix`."""
    assert mamba.conv1d.bias is not None
    convolution, projections = (mamba.conv1d.weight, mamba.conv1d.bias), (mamba.x_proj.weight, mamba.dt_proj.weight)
    return [*convolution, *projections, mamba.dt_proj.bias, -mamba.A_log.detach().exp(), mamba.D]


def test_the_fused_layer_keeps_little_for_the_backward_pass() -> None:
    mamba = Mamba(64).to("meta")
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    xz = torch.empty(1, 100_000, 256, device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer_module.mix(xz, *weights_of(mamba))
    assert y.shape == (1, 100_000, 128)
    weights = sum(tensor.numel() for tensor in weights_of(mamba))
    assert xz.numel() < sum(kept) <= 1.1 * xz.numel() + weights


@pytest.mark.parametrize(("width", "taps", "length"), [(3, 4, 1), (17, 3, 10), (2, 1, 27)])
def test_the_fused_operation_and_its_gradients(width: int, taps: int, length: int) -> None:
    mamba = Mamba(width, d_state=3, d_conv=taps).to(DEVICE, torch.float64)
    xz = torch.randn(1, length, 4 * width, dtype=torch.float64, device=DEVICE, requires_grad=True)
    inner = [p for name, p in mamba.named_parameters() if not name.startswith(("in_", "out_"))]
    x, z = xz.transpose(1, 2).chunk(2, dim=1)
    u = torch.nn.functional.silu(mamba.conv1d(x)[..., :length])
    dt, B, C = mamba.x_proj(u.transpose(1, 2)).split([mamba.dt_rank, 3, 3], dim=-1)
    delta = (dt @ mamba.dt_proj.weight.T).transpose(1, 2)
    A, BC = -mamba.A_log.exp(), (B.transpose(1, 2), C.transpose(1, 2))
    y, _ = reference_scan(u, delta, A, *BC, mamba.D, z, mamba.dt_proj.bias, True)
    found, expected = mamba._fused(xz, "triton"), y.transpose(1, 2)
    weights = torch.randn_like(found)
    pairs = [(found, expected)]
    pairs += zip(*(torch.autograd.grad((out * weights).sum(), [xz, *inner]) for out in (found, expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_a_long_convolution_runs_beside_the_fused_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    mamba, tokens = Mamba(2, d_state=2, d_conv=9).to(DEVICE), torch.randn(1, 4, 2, device=DEVICE)
    found = []
    for backend in ("triton", "reference"):
        for module in ("mamba", "scan.select"):
            monkeypatch.setattr(f"umamba.networks.{module}.resolve_backend", lambda *_, name=backend: name)
        found.append(mamba(tokens))
    torch.testing.assert_close(*found)


COPIES = ("aten::copy_", "aten::contiguous", "aten::clone", "aten::_to_copy")


def test_a_layer_copies_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umamba.networks.mamba.resolve_backend", lambda *_: "triton")
    layer, x = MambaLayer(8, d_state=2).to(DEVICE), torch.randn(1, 8, 1, 3, 4, device=DEVICE)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        torch.autograd.grad(layer(x), [x, *layer.parameters()], x.detach())
    # The interpreter's own copies, of storages, have one axis.
    copies = [
        (event.name, event.input_shapes)
        for event in profile.events()
        if event.name in COPIES
        and any(len(shape or []) > 1 and np.prod(shape) >= x.numel() for shape in event.input_shapes)
    ]
    assert copies == []


def test_the_layer_compiles_to_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umamba.networks.mamba.resolve_backend", lambda *_: "triton")
    layer, x = MambaLayer(4, d_state=2).to(DEVICE), torch.randn(1, 4, 2, 2, device=DEVICE, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    pairs = zip(
        *([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])] for y in (compiled(x), layer(x))),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("channel_token", [False, True])
def test_the_layer_on_the_gpu_equals_the_cpu(channel_token: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 5, 6, 7)
    layer = MambaLayer(210 if channel_token else 32, channel_token=channel_token)
    found = {}
    for device in ("cpu", "cuda"):
        leaf = x.to(device, copy=True).requires_grad_()
        layer.to(device).zero_grad()
        out = layer(leaf)
        out.square().sum().backward()
        gradients = [leaf.grad, *(parameter.grad for parameter in layer.parameters())]
        found[device] = [out, *(gradient.clone() for gradient in gradients if gradient is not None)]
        assert len(found[device]) == 2 + len(list(layer.parameters()))
    assert max(relative(ours, theirs) for ours, theirs in zip(found["cuda"], found["cpu"], strict=True)) < 1e-3
