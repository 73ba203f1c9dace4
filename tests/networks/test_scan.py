"""The CPU backends of the selective scan, compared with stored results of the official reference; backend choice."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from umamba.io import UserError
from umamba.networks.scan import cpu, resolve_backend, selective_scan
from umamba.networks.scan.select import _resolve, why_not

INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
FILES = (
    "scan_L1_D8_B2",
    "scan_L7_D2_B1_nozD_nosoftplus",
    "scan_L7_D8_B2_groups2",
    "scan_L64_D2_B1_constBC",
    "scan_L64_D8_B1_large_delta",
)
BACKENDS = ("reference", "cpu")


def relative(found: torch.Tensor | None, expected: np.ndarray) -> float:
    """Return the largest difference as a share of the largest expected value."""
    assert found is not None
    return float(np.abs(found.detach().double().numpy() - expected).max() / max(np.abs(expected).max(), 1e-30))


def check(path: Path, backend: str, dtype: torch.dtype) -> None:
    """Compare outputs, last state and all gradients with the stored float64 ones."""
    stored = np.load(path)
    tensors = {name: torch.tensor(stored[name]).to(dtype).requires_grad_() for name in INPUTS if name in stored}
    softplus = bool(stored["delta_softplus"])
    result = selective_scan(**tensors, delta_softplus=softplus, return_last_state=True, backend=backend)
    out, last = result
    (out * torch.tensor(stored["grad_out"]).to(dtype)).sum().backward()
    assert out.dtype == last.dtype == dtype
    forward, backward = (1e-9, 1e-9) if dtype == torch.float64 else (1e-4, 1e-3)
    assert relative(out, stored["out64"]) < forward
    assert relative(last, stored["last_state64"]) < forward
    errors = {name: relative(tensor.grad, stored[f"grad_{name}64"]) for name, tensor in tensors.items()}
    assert max(errors.values()) < backward, errors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FILES)
def test_official_results(reference_dir: Path, name: str, backend: str, dtype: torch.dtype) -> None:
    check(reference_dir / "scan" / f"{name}.npz", backend, dtype)


def test_all_official_results(shared_dir: Path) -> None:
    files = sorted((shared_dir / "reference" / "scan").glob("scan_*.npz"))
    assert len(files) >= 13
    for path in files:
        for backend in BACKENDS:
            for dtype in (torch.float64, torch.float32):
                check(path, backend, dtype)


def scan_on_cpu(inputs: dict[str, torch.Tensor], backend: str = "cpu") -> torch.Tensor:
    """Scan with softplus and without the last state."""
    arguments: dict[str, Any] = {**inputs}
    out = selective_scan(**arguments, delta_softplus=True, backend=backend)
    assert isinstance(out, torch.Tensor)
    return out


def random_inputs(batch: int, channels: int, length: int, states: int) -> dict[str, torch.Tensor]:
    """Return inputs of a scan; B and C are stored token by token, as the output of a linear layer is."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "u": draw(batch, channels, length),
        "delta": draw(batch, channels, length),
        "A": -draw(channels, states).exp(),
        "B": draw(batch, length, states).transpose(1, 2),
        "C": draw(batch, length, states).transpose(1, 2),
        "D": draw(channels),
        "z": draw(batch, channels, length),
        "delta_bias": draw(channels),
    }


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 5, 300, 16), (3, 4, 130, 20), (2, 3, 128, 1), (1, 1, 129, 33), (1, 37, 33, 16)])
def test_cpu_equals_the_reference_for_odd_sizes(shape: tuple[int, int, int, int], threads: int) -> None:
    inputs = random_inputs(*shape)
    before = torch.get_num_threads()
    found = {}
    try:
        torch.set_num_threads(threads)
        for backend in BACKENDS:
            leaves = {name: tensor.double().requires_grad_() for name, tensor in inputs.items()}
            out = scan_on_cpu(leaves, backend)
            out.square().sum().backward()
            found[backend] = [out, *(leaf.grad for leaf in leaves.values())]
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(found["cpu"], found["reference"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_half_precision_inputs_are_scanned_in_float32() -> None:
    inputs = random_inputs(1, 4, 50, 16)
    expected = scan_on_cpu(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = scan_on_cpu(inputs)
    assert torch.equal(found, expected)
    halves = {name: tensor.bfloat16() for name, tensor in inputs.items()}
    out = scan_on_cpu(halves)
    exact = scan_on_cpu({name: half.float() for name, half in halves.items()})
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())


def test_results_are_the_same_bit_for_bit_for_any_number_of_threads() -> None:
    def results(threads: int) -> list[torch.Tensor]:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in random_inputs(1, 70, 700, 16).items()}
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            out = scan_on_cpu(leaves)
            (out.square() * out.detach().cos()).sum().backward()
        finally:
            torch.set_num_threads(before)
        return [out.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]

    first, *others = (results(threads) for threads in (1, 1, 2, 3))
    assert len(first) == 1 + len(INPUTS)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_arrays_are_scanned_into_the_callers_buffer() -> None:
    inputs = {name: tensor.numpy() for name, tensor in random_inputs(2, 40, 70, 16).items()}
    expected = scan_on_cpu(random_inputs(2, 40, 70, 16), "reference").transpose(1, 2).numpy()
    rows: dict[str, Any] = {name: np.swapaxes(each, 1, 2) if each.ndim == 3 else each for name, each in inputs.items()}
    rows["delta"] = np.ascontiguousarray(rows["delta"])
    wide = np.concatenate([np.zeros_like(rows["z"]), rows["z"]], axis=2)
    rows["z"] = wide[:, :, 40:]
    room = np.full((2, 70, 100), 7, np.float32)
    for threads in (1, 2):
        cpu.scan_into(**rows, out=room[:, :, :40], threads=threads)
        assert np.abs(room[:, :, :40] - expected).max() < 1e-5 * np.abs(expected).max()
    assert (room[:, :, 40:] == 7).all()


def test_a_long_memory_keeps_its_accuracy_in_float32() -> None:
    inputs = random_inputs(1, 16, 3000, 4)
    inputs["A"] = -torch.linspace(1e-3, 1, 64).reshape(16, 4)  # states that last for thousands of tokens
    exact = scan_on_cpu({name: tensor.double() for name, tensor in inputs.items()}, "reference")
    assert relative(scan_on_cpu(inputs), exact.numpy()) < 1e-5


def test_large_small_and_undefined_numbers() -> None:
    inputs = random_inputs(1, 16, 40, 2)
    inputs["delta"][0, 0, 3], inputs["delta"][0, 1, 3], inputs["z"][0, 2, 3] = 1e4, -1e4, -1e4
    inputs["u"][0, 3, 5], inputs["z"][0, 4, 5], inputs["delta"][0, 5, 5] = np.nan, np.inf, np.nan
    found, expected = scan_on_cpu(inputs), scan_on_cpu(inputs, "reference")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_gradient_checkpointing_and_the_operators_own_checks() -> None:
    leaves = {name: tensor.double().requires_grad_() for name, tensor in random_inputs(1, 3, 20, 4).items()}

    def scan(*tensors: torch.Tensor) -> torch.Tensor:
        return scan_on_cpu(dict(zip(INPUTS, tensors, strict=True)))

    plain = scan(*leaves.values())
    kept = torch.utils.checkpoint.checkpoint(scan, *leaves.values(), use_reentrant=False)
    first = torch.autograd.grad(plain.sum(), list(leaves.values()))
    second = torch.autograd.grad(kept.sum(), list(leaves.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    rows = {name: tensor.transpose(1, 2) if tensor.ndim == 3 else tensor for name, tensor in leaves.items()}
    rows |= {name: rows[name].unsqueeze(2) for name in "BC"}
    torch.library.opcheck(
        torch.ops.umamba.selective_scan_cpu.default,
        (*rows.values(), True, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    assert torch.autograd.gradcheck(scan, tuple(leaves.values()))


def test_the_backend_is_named_once_and_a_slow_one_loudly(caplog: pytest.LogCaptureFixture) -> None:
    _resolve.cache_clear()
    with caplog.at_level(logging.INFO, "umamba"):
        assert resolve_backend("cpu", "auto") == "cpu"
        assert resolve_backend("cpu", "auto") == "cpu"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    caplog.clear()
    with caplog.at_level(logging.INFO, "umamba"):
        assert resolve_backend("mps", "auto") == "reference"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_probe_in_inference_mode_does_not_refuse_the_backend() -> None:
    why_not.cache_clear()
    with torch.inference_mode():
        assert why_not("cpu", "cpu") is None


def test_a_first_use_within_activation_checkpointing_does_not_refuse_the_backend() -> None:
    """The gradients of the test must not run the checkpointed stage again in the middle of its first pass."""
    _resolve.cache_clear()
    why_not.cache_clear()
    u = torch.randn(1, 2, 5, requires_grad=True)
    delta, A, B = torch.rand(1, 2, 5), -torch.rand(2, 3), torch.randn(1, 3, 5)
    passes = []

    def stage(u: torch.Tensor) -> torch.Tensor:
        passes.append(u)
        out = selective_scan(u, delta, A, B, B)
        assert isinstance(out, torch.Tensor)
        return out.square()

    checkpoint(stage, u, use_reentrant=False).sum().backward()
    assert resolve_backend("cpu", "auto") == "cpu"
    assert len(passes) == 2, "once forward, once for the gradients"
    (expected,) = torch.autograd.grad(stage(u).sum(), u)
    assert u.grad is not None
    assert torch.equal(u.grad, expected)


def test_backends_that_cannot_be_are_refused_with_a_reason() -> None:
    with pytest.raises(UserError, match=r"scan_backend=fast: must be one of auto.*reference"):
        resolve_backend("cpu", "fast")
    with pytest.raises(UserError, match=r"scan_backend=cuda: does not work here"):
        resolve_backend("cpu", "cuda")


GRADIENTS = """
import hashlib, torch
from umamba.networks.scan import selective_scan
random = torch.Generator().manual_seed(1)
B, D, N, L = 1, 16, 16, 300
u, delta, z = (torch.randn(B, D, L, generator=random).requires_grad_() for _ in range(3))
A = (-torch.rand(D, N, generator=random)).requires_grad_()
b, c = (torch.randn(B, N, L, generator=random).requires_grad_() for _ in range(2))
skip, bias = (torch.randn(D, generator=random).requires_grad_() for _ in range(2))
y = selective_scan(u, delta, A, b, c, skip, z=z, delta_bias=bias, delta_softplus=True, backend="cpu")
y.square().sum().backward()
for tensor in (y, *(each.grad for each in (u, delta, A, b, c, skip, z, bias))):
    print(hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_compiled_code_computes_the_same_as_cached_code(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", GRADIENTS]
    cold, warm = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert len(cold.splitlines()) == 9
    assert cold == warm
    assert list((tmp_path / "cache").rglob("*.nbc")), "the second process had a cache"
