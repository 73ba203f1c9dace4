"""The public scan, and which backend computes it."""

import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

import torch
from torch import Tensor

from umamba.io import UserError
from umamba.networks.scan.reference import scan as reference_scan

log = logging.getLogger(__name__)

_DEVICES = {"cpu": "cpu", "triton": "cuda", "cuda": "cuda"}  # where each runs, the faster first
BACKENDS = ("reference", *_DEVICES)  # the reference runs everywhere
_CONVERTING = ("triton",)  # read half precision as it is; the others are given float32
_TOLERANCE = 1e-3  # of the self-test, relative: many times float32's rounding, far below any mistake

Scan = Callable[..., tuple[Tensor, Tensor]]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run a selective state space over sequences, in float32 (float64 if u is) whatever the autocast.

    Args:
        u: input (B, D, L).
        delta: step sizes (B, D, L).
        A: state matrix's diagonal (D, N).
        B: input matrix, (B, N, L), (B, G, N, L) for G groups of channels, or (D, N) if it does not change.
        C: output matrix, of the same shape.
        D: factor of the input that is added to the output (D,).
        z: gate (B, D, L): the output is multiplied by silu(z).
        delta_bias: added to delta (D,).
        delta_softplus: take softplus of delta, after its bias.
        return_last_state: also return the last state (B, D, N); it carries no gradient.
        backend: "auto", the fastest that works on u's device, or one of `BACKENDS`.

    Returns:
        out (B, D, L) in u's dtype, and the last state if asked for.

    Raises:
        UserError: the backend is unknown or does not work here.
    """
    name = resolve_backend(u.device.type, backend)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32

    def cast(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or name in _CONVERTING else tensor.to(dtype)

    with without_autocast(u.device.type):
        tensors = [cast(tensor) for tensor in (u, delta, A, B, C, D, z, delta_bias)]
        out, state = _backend(name)(*tensors, delta_softplus)
    out = out.to(u.dtype)
    return (out, state.detach()) if return_last_state else out


def without_autocast(device: str) -> AbstractContextManager:
    """Return a context without autocast on a device type; tensors without data ("meta") know no autocast."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


@functools.cache
def resolve_backend(device: str, backend: str) -> str:
    """Return the backend for a device type; says once which it is, and loudly why a faster one is not used.

    Raises:
        UserError: a backend that was asked for by name is unknown or does not work here.
    """
    if device == "meta":  # tensors without data: nothing is computed
        return "meta"
    if backend != "auto":
        if backend not in BACKENDS:
            raise UserError(
                f"architecture.scan_backend={backend} is unknown. Choose auto or one of {', '.join(BACKENDS)}."
            )
        refusal = why_not(backend, device)
        if refusal:
            raise UserError(f"architecture.scan_backend={backend} does not work here: {refusal} Use auto.")
        return backend
    refusals: dict[str, str] = {}
    for name in candidates(device):
        refusal = why_not(name, device)
        if refusal is None:
            for passed, reason in refusals.items():
                level = logging.INFO if reason.endswith("is not installed.") else logging.WARNING
                log.log(level, "Selective scan on %s: backend %s is not used: %s", device, passed, reason)
            log.info("Selective scan on %s: backend %s.", device, name)
            return name
        refusals[name] = refusal
    reasons = " ".join(f"{name}: {refusal}" for name, refusal in refusals.items()) or "there is no faster one."
    log.warning("Selective scan on %s: the slow reference backend, many times slower. %s", device, reasons)
    return "reference"


def candidates(device: str) -> tuple[str, ...]:
    """Return the compiled backends of a device type, the fastest first."""
    return tuple(name for name, home in _DEVICES.items() if home == device)


@functools.cache
def why_not(backend: str, device: str) -> str | None:
    """Return why a backend cannot be used on a device type, after a small comparison; None if it can."""
    home = _DEVICES.get(backend, device)
    if home != device:
        return f"it runs on {home} devices, not on {device}."
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            return disagreement(_backend(backend), device)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed."
    except Exception as error:  # whatever a foreign build does wrong, it is refused with its reason
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}."


def disagreement(scan: Scan, device: str) -> str | None:
    """Return where a scan differs from the reference on a small input, forward or backward; None if it does not."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"u": (1, 2, 150), "delta": (1, 2, 150), "A": (2, 16), "B": (1, 16, 150), "C": (1, 16, 150)}
    sizes |= {"D": (2,), "z": (1, 2, 150), "delta_bias": (2,)}
    inputs = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    inputs["A"] = -inputs["A"].exp()
    weights = torch.randn(sizes["u"], generator=generator).to(device)

    def results(scan: Scan) -> dict[str, Tensor]:
        leaves = {name: tensor.to(device, copy=True).requires_grad_() for name, tensor in inputs.items()}
        out, state = scan(*leaves.values(), True)
        gradients = torch.autograd.grad((out * weights).sum(), list(leaves.values()))
        named = {f"the gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
        return {"the output": out.detach(), "the last state": state.detach(), **named}

    found, expected = results(scan), results(reference_scan)
    for name, tensor in expected.items():
        error = float((found[name] - tensor).abs().max() / tensor.abs().max())
        if not error < _TOLERANCE:  # NaN too
            return f"{name} differs from the reference by {error:.1e} of its largest value."
    return None


def _backend(name: str) -> Scan:
    module: Scan = import_module(f"umamba.networks.scan.{name}").scan
    return module
