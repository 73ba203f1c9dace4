"""The Triton scan, compared with stored results of the official reference and with the reference backend.

On a GPU the kernels are compiled; without one they run in Triton's interpreter (tests/conftest.py switches it on).
"""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from umamba.networks.mamba import Mamba, MambaLayer
from umamba.networks.scan import resolve_backend, select, selective_scan
from umamba.networks.scan.reference import scan as reference_scan

pytest.importorskip("triton", reason="Triton is not installed")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)
scan_module = pytest.importorskip("umamba.networks.scan.triton")
layer_module = pytest.importorskip("umamba.networks.scan.triton_layer")
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


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter scan whole slices in doubling steps, because its own scan visits the elements one by one."""
    if ON_GPU:
        return
    from triton.runtime import interpreter

    def scan_by_doubling(self: Any, inputs: Any) -> list[Any]:
        found = [np.moveaxis(tensor.handle.data, self.axis, 0) for tensor in inputs]

        def wrapped(arrays: list[np.ndarray]) -> list[Any]:
            return [self.to_tensor(array, tensor.dtype) for array, tensor in zip(arrays, inputs, strict=True)]

        step = 1
        while step < len(found[0]):
            joined = self.combine_fn.fn(*wrapped([np.roll(array, step, 0) for array in found]), *wrapped(found))
            found = [
                np.concatenate([old[:step], new.handle.data[step:]]) for old, new in zip(found, joined, strict=True)
            ]
            step *= 2
        return wrapped([np.ascontiguousarray(np.moveaxis(array, 0, self.axis)) for array in found])

    monkeypatch.setattr(interpreter.ScanOps, "generic_scan", scan_by_doubling)


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_official_results(reference_dir: Path, name: str, dtype: torch.dtype) -> None:
    check(reference_dir / "scan" / f"{name}.npz", dtype)


@pytest.mark.parametrize("name", REST)
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
        (1, 3, 129, 16, None),  # one token in the last chunk
        (2, 11, 17, 1, None),  # one state; channels that parts do not divide
        (1, 2, 45, 20, None),  # padded states
        (1, 1, 700, 33, None),  # more chunks than the scan over them takes at once
        (2, 6, 9, 5, 3),
    ],
)
def test_odd_sizes(batch: int, channels: int, length: int, states: int, groups: int | None) -> None:
    inputs = random_inputs(batch, channels, length, states, groups, torch.float64)
    found, expected = results(scan, inputs), results(reference_scan, inputs)
    errors = {name: relative(found[name], expected[name]) for name in expected}
    assert max(errors.values()) < 1e-10, errors


def test_optional_arguments_may_be_absent() -> None:
    inputs = random_inputs(1, 2, 20, 4, dtype=torch.float64)
    for absent in ("D", "z", "delta_bias"):
        some = {name: tensor for name, tensor in inputs.items() if name != absent}
        found, expected = results(scan, some), results(reference_scan, some)
        assert max(relative(found[name], expected[name]) for name in expected) < 1e-10, absent


def test_strides_do_not_matter() -> None:
    inputs = random_inputs(2, 3, 21, 4)
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
    halves = {name: tensor.to(dtype) for name, tensor in random_inputs(1, 3, 40, 16).items()}
    halves["A"] = halves["A"].float()
    found, exact = results(scan, halves), results(scan, {name: half.float() for name, half in halves.items()})
    assert torch.equal(found["last"], exact["last"])
    for name, half in {"out": halves["u"], **halves}.items():
        assert found[name].dtype == half.dtype
        assert relative(found[name], exact[name]) < 2e-2, name  # the interpreter cuts bfloat16 off, GPUs round


def test_results_repeat_bit_for_bit() -> None:
    inputs = random_inputs(1, 6, 150, 16)
    first, second = results(scan, inputs), results(scan, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_channels_are_divided_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs(1, 9, 20, 2, dtype=torch.float64)
    divided = results(scan, inputs)
    monkeypatch.setattr(scan_module, "_ENOUGH", 1)
    together = results(scan, inputs)
    assert max(relative(divided[name], together[name]) for name in together) < 1e-12


def test_the_operators_own_checks() -> None:
    leaves = [tensor.double().requires_grad_() for tensor in random_inputs(1, 3, 20, 4).values()]
    torch.library.opcheck(
        torch.ops.umamba.selective_scan_triton.default,
        (*leaves, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_nothing_of_the_size_of_all_states_is_kept() -> None:
    u, states = torch.empty(2, 64, 100_000, device="meta"), 16
    A, BC = torch.empty(64, states, device="meta"), torch.empty(2, states, 100_000, device="meta")
    out, carried = torch.ops.umamba.selective_scan_triton(u, u, A, BC, BC, None, None, None, True)
    assert out.shape == u.shape
    assert carried.numel() < 0.15 * u.numel()


def test_the_self_test_passes_and_finds_a_wrong_backend() -> None:
    assert select.disagreement(scan, DEVICE) is None

    def wrong(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, last = reference_scan(*arguments)
        return out * torch.where(torch.arange(out.shape[-1], device=out.device) == 128, 1.1, 1.0), last

    assert "differs from the reference" in str(select.disagreement(wrong, DEVICE))


def test_a_backend_that_disagrees_is_passed_over_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = {"triton": "the output differs from the reference.", "cuda": None}
    monkeypatch.setattr(select, "why_not", lambda backend, device: reasons[backend])
    resolve_backend.cache_clear()
    with caplog.at_level(logging.INFO, "umamba"):
        assert [resolve_backend("cuda", "auto") for _ in range(2)] == ["cuda", "cuda"]
    resolve_backend.cache_clear()
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
    resolve_backend.cache_clear()
    assert resolve_backend("cuda", "auto") == "triton"


@pytest.mark.parametrize("name", ["mamba_d8_L1_B2", "mamba_d8_L64_B2_defaultinit"])
def test_the_fused_layer_equals_the_official_one(
    reference_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umamba.networks.mamba.resolve_backend", lambda device, backend: "triton")
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


def test_the_fused_layer_keeps_little_for_the_backward_pass() -> None:
    torch.manual_seed(0)
    mamba = Mamba(4).to(DEVICE)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    xz = torch.randn(1, 16, 256, device=DEVICE, requires_grad=True)
    weights: list[Any] = [
        mamba.conv1d.weight,
        mamba.conv1d.bias,
        mamba.x_proj.weight,
        mamba.dt_proj.weight,
        mamba.dt_proj.bias,
    ]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer_module.mix(xz, *weights, mamba.A_log.detach(), mamba.D)
    own = xz.numel() + sum(tensor.numel() for tensor in (*weights, mamba.A_log, mamba.D))
    assert sum(kept.values()) <= own + 0.25 * xz.numel()


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
