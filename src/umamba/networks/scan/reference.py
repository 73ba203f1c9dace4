"""The scan by its definition, token by token in plain PyTorch: slow; the other backends are compared with it."""

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
    """Run the scan; the arguments are those of `selective_scan`, all of one dtype.

    Returns:
        out (B, D, L) and the last state (B, D, N).
    """
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
    """Return B or C at token t in a shape that broadcasts with (B, D, N)."""
    if matrix.ndim == 2:  # (D, N), the same for all tokens
        return matrix
    if matrix.ndim == 3:  # (B, N, L), the same for all channels
        return matrix[:, None, :, t]
    return matrix[:, :, :, t].repeat_interleave(shape[1] // matrix.shape[1], dim=1)  # (B, G, N, L)
