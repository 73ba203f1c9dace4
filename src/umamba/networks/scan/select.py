"""The public scan, and the choice of the backend that computes it."""

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

_DEVICES = {"cpu": "cpu", "triton": "cuda", "cuda": "cuda"}  # backend -> device type, the faster backend first
BACKENDS = ("reference", *_DEVICES)  # the reference runs everywhere
_CONVERTING = ("triton",)  # convert half precision themselves; the others need float32
_TOLERANCE = 1e-3  # relative error in the self-test: far above float32's rounding, far below any mistake

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
    """Run a selective state space model over sequences, in float32 (float64 if u is float64) under any autocast.

    The first call with a backend compares it with the reference on a small input.

    Args:
        u: input (B, D, L): samples, channels, tokens.
        delta: step sizes (B, D, L).
        A: diagonal of the state matrix (D, N); N is the state size.
        B: input matrix (B, N, L); (B, G, N, L) for G groups of channels; or (D, N) if it is the same for all tokens.
        C: output matrix, in the shape of B.
        D: weight of the input in the output (D,); None: 0.
        z: gate (B, D, L); the output is multiplied by silu(z). None: no gate.
        delta_bias: is added to delta (D,); None: 0.
        delta_softplus: take the softplus of delta plus its bias.
        return_last_state: also return the last state (B, D, N), which carries no gradient.
        backend: "auto", the fastest backend that works on u's device, or a name out of `BACKENDS`.

    Returns:
        out (B, D, L) in u's dtype; with `return_last_state`, a pair of out and the last state.

    Raises:
        UserError: the backend is unknown or does not work here.

    >>> u, delta = torch.ones(1, 2, 3), torch.ones(1, 2, 3)  # two channels, three tokens
    >>> A, B, C = torch.zeros(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3)  # one state that never decays
    >>> selective_scan(u, delta, A, B, C, backend="reference")
    tensor([[[1., 2., 3.],
             [1., 2., 3.]]])
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
    """Return a context without autocast on a device type such as "cpu"; the device "meta" has no autocast."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


@functools.cache
def resolve_backend(device: str, backend: str) -> str:
    """Return the backend for a device type, and log once which one it is and why a faster one is not used.

    Args:
        device: device type of the tensors, such as "cuda".
        backend: "auto" or the name of a backend.

    Raises:
        UserError: the named backend is unknown or does not work here.
    """
    if device == "meta":  # tensors without data: only shapes are computed
        return "meta"
    if backend != "auto":
        if backend not in BACKENDS:
            raise UserError(f"architecture.scan_backend={backend}: must be one of auto, {', '.join(BACKENDS)}.")
        refusal = why_not(backend, device)
        if refusal:
            raise UserError(f"architecture.scan_backend={backend}: does not work here: {refusal} Use auto.")
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
    """Return the compiled backends of a device type such as "cuda", the fastest first."""
    return tuple(name for name, home in _DEVICES.items() if home == device)


@functools.cache
def why_not(backend: str, device: str) -> str | None:
    """Return why a backend does not work on a device type; None if it works. Compares it with the reference once.

    Args:
        backend: name of the backend.
        device: device type, such as "cuda".
    """
    home = _DEVICES.get(backend, device)
    if home != device:
        return f"it runs on {home} devices, not on {device}."
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            return disagreement(_backend(backend), device)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed."
    except Exception as error:  # a broken build can raise anything; its message is the reason
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}."


def disagreement(scan: Scan, device: str) -> str | None:
    """Return in which result a scan differs from the reference on a small input; None if all agree.

    Args:
        scan: the backend's function.
        device: device type, such as "cuda".
    """
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
