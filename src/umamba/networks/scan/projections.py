"""The gradients of the projections inside a Mamba block, which the operations of all devices share."""

import torch
from torch import Tensor


def projections_back(
    grad_delta: Tensor,
    grad_parameters: Tensor,
    grad_u: Tensor,
    u: Tensor,
    parameters: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Carry gradients back through dt_proj, then through x_proj.

    Args:
        grad_delta: gradient of the output of dt_proj (B, L, inner).
        grad_parameters: gradient of the output of x_proj (B, L, dt_rank + 2 N). The columns of B and C are filled; this
            function fills the first dt_rank columns.
        grad_u: gradient of the scan's input (B, L, inner); what comes through x_proj is added to it in place.
        u: the scan's input (B, L, inner).
        parameters: output of x_proj (B, L, dt_rank + 2 N).
        x_weight: weight of x_proj (dt_rank + 2 N, inner).
        dt_weight: weight of dt_proj (inner, dt_rank).

    Returns:
        The gradients of `x_weight` and `dt_weight`.
    """
    rank = dt_weight.shape[1]
    rows, rows_delta = grad_parameters.flatten(0, 1), grad_delta.flatten(0, 1)
    torch.mm(rows_delta, dt_weight, out=rows[:, :rank])
    grad_dt_weight = rows_delta.T @ parameters.flatten(0, 1)[:, :rank]
    grad_u.flatten(0, 1).addmm_(rows, x_weight)
    return rows.T @ u.flatten(0, 1), grad_dt_weight


def like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return contiguous tensors without values in the shapes of the inputs of `mix`, for torch.compile."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)
