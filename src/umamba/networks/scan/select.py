"""The public scan, and which backend computes it."""

import functools
import logging
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from umamba.io import UserError

log = logging.getLogger(__name__)

BACKENDS = ("reference", "cpu", "cuda")
_FASTEST = {"cpu": ("cpu",), "cuda": ("cuda",)}  # by device; the reference runs everywhere

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
    chosen = _backend(resolve_backend(u.device.type, backend))
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    with torch.autocast(u.device.type, enabled=False):
        tensors = [cast(tensor) for tensor in (u, delta, A, B, C, D, z, delta_bias)]
        out, state = chosen(*tensors, delta_softplus)
    out = out.to(u.dtype)
    return (out, state.detach()) if return_last_state else out


@functools.cache
def resolve_backend(device: str, backend: str) -> str:
    """Return the backend for a device type; says once which it is, and loudly why a faster one is not used.

    Raises:
        UserError: a backend that was asked for by name is unknown or does not work here.
    """
    if backend != "auto":
        if backend not in BACKENDS:
            raise UserError(
                f"architecture.scan_backend={backend} is unknown. Choose auto or one of {', '.join(BACKENDS)}."
            )
        refusal = why_not(backend, device)
        if refusal:
            raise UserError(f"architecture.scan_backend={backend} does not work here: {refusal} Use auto.")
        return backend
    refusals = {}
    for name in _FASTEST.get(device, ()):
        refusal = why_not(name, device)
        if refusal is None:
            log.info("Selective scan on %s: backend %s.", device, name)
            return name
        refusals[name] = refusal
    reasons = " ".join(f"{name}: {refusal}" for name, refusal in refusals.items()) or "there is no faster one."
    log.warning("Selective scan on %s: the slow reference backend, many times slower. %s", device, reasons)
    return "reference"


@functools.cache
def why_not(backend: str, device: str) -> str | None:
    """Return why a backend cannot be used on a device type, after a small forward and backward; None if it can."""
    if backend != "reference" and backend != device:
        return f"it runs on {backend} devices, not on {device}."
    try:
        scan = _backend(backend)
        with torch.inference_mode(False), torch.enable_grad():
            u, delta, z = (torch.full((1, 2, 3), 0.5, device=device, requires_grad=True) for _ in range(3))
            A = torch.full((2, 4), -1.0, device=device)
            BC = torch.ones((1, 4, 3), device=device)
            out, _ = scan(u, delta, A, BC, BC, None, z, None, True)
            out.sum().backward()
        finite = all(bool(t.grad is not None and t.grad.isfinite().all()) for t in (u, delta, z))
        return None if finite else "its gradients are not finite."
    except Exception as error:  # whatever a foreign build does wrong, it is refused with its reason
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}."


def _backend(name: str) -> Scan:
    module: Scan = import_module(f"umamba.networks.scan.{name}").scan
    return module
