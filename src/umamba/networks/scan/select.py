"""The public scan, and the choice of the backend that computes it."""

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from umamba.io import UserError
from umamba.networks.own_autograd import own_autograd
from umamba.networks.scan.reference import scan as reference_scan

log = logging.getLogger(__name__)

_DEVICES = {"cpu": "cpu", "triton": "cuda", "cuda": "cuda"}  # backend -> device type, the faster backend first
BACKENDS = ("reference", *_DEVICES)  # the reference runs everywhere
_CONVERTING = ("triton",)  # convert half precision themselves; the others need float32
# Relative errors in the self-test: far above the rounding of float32 and bfloat16, far below any mistake.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 2e-2

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
    name = resolve_backend(str(u.device), backend, None if torch.compiler.is_compiling() else tuple(u.shape))
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


def resolve_backend(device: str, backend: str, shape: tuple[int, ...] | None = None) -> str:
    """Return the backend for a device, and log once which one it is and why a faster one is not used.

    Where both triton and cuda (mamba_ssm) work, `auto` takes the one that is faster for the shape; see choice.py.

    Args:
        device: device of the tensors, such as "cpu", "cuda" or "cuda:1".
        backend: "auto" or the name of a backend.
        shape: of the scan's input (B, D, L); None: any.

    Raises:
        UserError: the named backend is unknown or does not work here.
    """
    name = _resolve(device, backend)
    if shape is None or backend != "auto" or name != "triton" or why_not("cuda", device):
        return name
    from umamba.networks.scan.choice import faster

    return faster(device, shape)


# A constant for torch.compile, which would otherwise trace the comparison with the reference. The decorator
# torch.compiler.assume_constant_result sets this attribute, too, but imports the compiler, which takes a second.
resolve_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _resolve(device: str, backend: str) -> str:
    """Return the backend for all shapes; see `resolve_backend`."""
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
    """Return the compiled backends of a device such as "cuda" or "cuda:1"; `auto` tries them in this order."""
    return tuple(name for name, home in _DEVICES.items() if home == device.partition(":")[0])


@functools.cache
def why_not(backend: str, device: str) -> str | None:
    """Return why a backend does not work on a device; None if it works. Compares it with the reference once.

    Args:
        backend: name of the backend.
        device: device, such as "cuda" or "cuda:1".
    """
    kind = device.partition(":")[0]
    home = _DEVICES.get(backend, kind)
    if home != kind:
        return f"it runs on {home} devices, not on {kind}."
    try:
        with own_autograd(kind):
            cases = _CASES if kind == "cuda" else _CASES[:1]
            return disagreement(
                _backend(backend), device, [c for c in cases if c.dtype in _DTYPES.get(backend, _PLAIN)]
            )
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed."
    except Exception as error:  # a broken build can raise anything; its message is the reason
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}."


@dataclass(frozen=True)
class Case:
    """A small scan that a backend must compute like the reference.

    Attributes:
        channels: number of channels.
        length: number of tokens. Compilers make other code for lengths that 16 divides.
        rows: store tokens as rows, B and C side by side, as in a Mamba layer; otherwise channels are rows.
        dtype: of all inputs but A.
    """

    channels: int = 2
    length: int = 150
    rows: bool = False
    dtype: torch.dtype = torch.float32


_CASES = (Case(), Case(40, 256, rows=True), Case(33, 256), Case(64, 150, rows=True, dtype=torch.bfloat16))
_PLAIN = (torch.float32,)
_DTYPES = {"triton": (torch.float32, torch.bfloat16)}


def disagreement(scan: Scan, device: str, cases: Sequence[Case] = _CASES[:1]) -> str | None:
    """Return in which result a scan differs from the reference on small inputs; None if all agree.

    Args:
        scan: the backend's function.
        device: device, such as "cuda" or "cuda:1".
        cases: the inputs.
    """
    for case in cases:
        if found := _difference(scan, device, case):
            return found
    return None


def _difference(scan: Scan, device: str, case: Case) -> str | None:
    generator = torch.Generator().manual_seed(0)
    channels, length = case.channels, case.length
    sizes = {"u": (1, channels, length), "delta": (1, channels, length), "A": (channels, 16), "BC": (1, 32, length)}
    sizes |= {"D": (channels,), "z": (1, channels, length), "delta_bias": (channels,)}
    drawn = {name: torch.randn(size, generator=generator).to(case.dtype).to(device) for name, size in sizes.items()}
    weights = torch.randn(sizes["u"], generator=generator).to(device)
    if case.rows:
        drawn = {n: t.transpose(1, 2).contiguous().transpose(1, 2) if t.ndim == 3 else t for n, t in drawn.items()}
    B, C = drawn["BC"].split(16, dim=1)
    inputs = (drawn["u"], drawn["delta"], -drawn["A"].float().exp(), B, C, drawn["D"], drawn["z"], drawn["delta_bias"])

    def results(scan: Scan, dtype: torch.dtype | None) -> dict[str, Tensor]:
        leaves = [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in inputs]
        out, state = scan(*leaves, True)
        gradients = torch.autograd.grad((out.float() * weights).sum(), leaves)
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        named = {f"the gradient of {name}": gradient for name, gradient in zip(names, gradients, strict=True)}
        return {"the output": out.detach(), "the last state": state.detach(), **named}

    found, expected = results(scan, None), results(reference_scan, torch.float32)
    tolerance = _TOLERANCE if case.dtype == torch.float32 else _HALF_TOLERANCE
    for name, tensor in expected.items():
        error = float((found[name].float() - tensor).abs().max() / tensor.abs().max())
        if not error < tolerance:  # NaN too
            return (
                f"{name} differs from the reference by {error:.1e} of its largest value "
                f"({channels} channels, {length} tokens, {str(case.dtype).removeprefix('torch.')})."
            )
    return None


def _backend(name: str) -> Scan:
    module: Scan = import_module(f"umamba.networks.scan.{name}").scan
    return module
