"""The state of each scan backend on a device: used, working or refused, why, and the command that mends it."""

from dataclasses import dataclass

from umamba.networks.scan.select import candidates, resolve_backend, why_not

_INSTALL = {
    "cpu": "pip install 'numba>=0.61'",
    "triton": "pip install 'triton>=3.3'",
    "cuda": "MAMBA_KEEP_CUDA_BUILD=TRUE pip install 'mamba-ssm>=2.2' 'causal-conv1d>=1.4' --no-build-isolation",
}
_REBUILD = {
    "cpu": "pip install --force-reinstall --no-deps numba llvmlite",
    "triton": "pip install --force-reinstall 'triton>=3.3'",
    "cuda": "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --force-reinstall --no-deps --no-cache-dir --no-binary mamba-ssm "
    "--no-build-isolation mamba-ssm",
}
_PACKAGES = ("numba", "triton", "mamba_ssm")  # of the backends
_PARTS = ("selective_scan_cuda",)  # a part of mamba_ssm that builds of July 2026 and later leave out by default


@dataclass(frozen=True)
class BackendState:
    """State of a backend on a device.

    Attributes:
        name: name of the backend.
        chosen: whether `auto` uses it.
        refusal: why it does not work; None if it works. A backend that works is not chosen if a faster one works too.
        remedy: the command that makes it work; None if it works.
    """

    name: str
    chosen: bool
    refusal: str | None
    remedy: str | None


def backend_states(device: str) -> list[BackendState]:
    """Try the backends of a device type with a small scan, forward and backward.

    Args:
        device: device type, such as "cuda".

    Returns:
        The states of the backends, the fastest one first, the reference last.
    """
    chosen = resolve_backend(device, "auto")
    states = []
    for name in candidates(device):
        refusal = why_not(name, device)
        remedy = None if refusal is None else remedy_of(name, refusal)
        states.append(BackendState(name, name == chosen, refusal, remedy))
    return [*states, BackendState("reference", chosen == "reference", None, None)]


def remedy_of(backend: str, refusal: str) -> str:
    """Return the command that makes a refused backend work.

    Args:
        backend: name of the backend.
        refusal: why it does not work.

    Returns:
        A command that installs the missing package, or one that builds the backend again.
    """
    absent = refusal.removesuffix(" is not installed.") if refusal.endswith(" is not installed.") else ""
    if absent in _PACKAGES:
        return _INSTALL[backend]
    if absent and absent not in _PARTS:
        return f"pip install {absent}"
    return _REBUILD[backend]
