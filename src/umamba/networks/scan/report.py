"""Which scan backend a device gets, why faster ones are refused, and what to type to change that. For `doctor`."""

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
_OWN = ("numba", "triton", "mamba_ssm")
_PARTS = ("selective_scan_cuda",)  # belongs to mamba_ssm; builds of July 2026 and later leave it out by default


@dataclass(frozen=True)
class BackendState:
    """A backend on a device.

    Attributes:
        name: of the backend.
        chosen: whether `auto` takes it.
        refusal: why it is not used, None if it works; a slower one that works is not chosen for that reason alone.
        remedy: the command that mends it, None if there is nothing to mend.
    """

    name: str
    chosen: bool
    refusal: str | None
    remedy: str | None


def backend_states(device: str) -> list[BackendState]:
    """Return the backends of a device type, the fastest first; each is judged by a real forward and backward."""
    chosen = resolve_backend(device, "auto")
    states = []
    for name in candidates(device):
        refusal = why_not(name, device)
        remedy = None if refusal is None else remedy_of(name, refusal)
        states.append(BackendState(name, name == chosen, refusal, remedy))
    return [*states, BackendState("reference", chosen == "reference", None, None)]


def remedy_of(backend: str, refusal: str) -> str:
    """Return the command for a refused backend: install the package that is absent, else build the backend again."""
    absent = refusal.removesuffix(" is not installed.") if refusal.endswith(" is not installed.") else ""
    if absent in _OWN:
        return _INSTALL[backend]
    if absent and absent not in _PARTS:
        return f"pip install {absent}"
    return _REBUILD[backend]
