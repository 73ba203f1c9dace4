"""The scan as its definition reads, one step after the other in plain PyTorch: slow, and what others are checked by."""

import torch
import torch.nn.functional as F
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
    """Return out (B, D, L) and the last state (B, D, N); see `selective_scan`. All arguments have one dtype."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    state = u.new_zeros(*u.shape[:2], A.shape[1])
    per_step = [(_over_channels(B, u.shape, t), _over_channels(C, u.shape, t)) for t in range(u.shape[2])]
    outputs = []
    for t, (B_t, C_t) in enumerate(per_step):
        step = delta[:, :, t, None]
        state = torch.exp(step * A) * state + step * B_t * u[:, :, t, None]
        outputs.append((state * C_t).sum(-1))
    out = torch.stack(outputs, dim=2)
    if D is not None:
        out = out + u * D[:, None]
    if z is not None:
        out = out * F.silu(z)
    return out, state


def _over_channels(matrix: Tensor, shape: torch.Size, t: int) -> Tensor:
    """Return B or C at step t so that it broadcasts against (B, D, N)."""
    if matrix.ndim == 2:  # (D, N), the same at each step
        return matrix
    if matrix.ndim == 3:  # (B, N, L), the same for each channel
        return matrix[:, None, :, t]
    return matrix[:, :, :, t].repeat_interleave(shape[1] // matrix.shape[1], dim=1)  # (B, G, N, L)
