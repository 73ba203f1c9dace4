"""The scan by the CUDA kernels of mamba_ssm."""

from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Run the scan; the arguments are those of `selective_scan`, float32 on a CUDA device.

    Returns:
        out (B, D, L) and the last state (B, D, N).
    """
    out, state = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True)
    return out, state
