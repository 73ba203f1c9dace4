"""Convolution, projections, Triton scan and gate of a Mamba block as one operation.

Tokens are rows, (B, L, channels), from the first to the last step, so that nothing is transposed or copied: the two
halves of xz, and step sizes, B and C in the output of x_proj, are read where they are, and the gradients of xz are
written into its two halves. For the backward pass the operation keeps its inputs and the states at the start of each
chunk of the scan; the convolution and x_proj, which are cheap, are computed again.
"""

from typing import Any

import torch
from torch import Tensor

from umamba.networks.scan.projections import like, projections_back
from umamba.networks.scan.triton import Arguments, run_backward, run_forward, shape_of_states
from umamba.networks.scan.triton_conv import conv_back_into, conv_into
from umamba.networks.scan.triton_kernels import state_dtype


def mix(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
) -> Tensor:
    """Compute the inner part of a Mamba block on a CUDA device.

    Arguments and result are those of `umamba.networks.scan.cpu_layer.mix`; bfloat16 and float16 are taken, too.
    """
    y: Tensor = _mix(xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D)[0]
    return y


def _scan_of(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
) -> tuple[Arguments, Tensor, Tensor]:
    """Return the arguments of the scan inside the block, its input u and the output of x_proj."""
    inner, rank, states = conv_weight.shape[0], dt_weight.shape[1], A.shape[1]
    u = xz.new_empty((*xz.shape[:2], inner))
    conv_into(xz[..., :inner], conv_weight[:, 0], conv_bias, u)
    parameters = u @ x_weight.T
    dt, B, C = parameters.unsqueeze(2).split([rank, states, states], dim=3)
    delta = (dt.flatten(0, 2) @ dt_weight.T).view(u.shape)
    return Arguments(u, delta, A, B, C, D, xz[..., inner:], dt_bias, True), u, parameters


@torch.library.custom_op("umamba::mamba_mix_triton", mutates_args=())
def _mix(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return y (B, L, inner) and the states at the start of each chunk and at the end."""
    scan, u, _ = _scan_of(xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D)
    y = torch.empty_like(u)
    return y, run_forward(scan, y)


@_mix.register_fake
def _(xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D):  # type: ignore[no-untyped-def]
    y = xz.new_empty((*xz.shape[:2], conv_weight.shape[0]))
    return y, xz.new_empty(shape_of_states(y.shape, A, 1), dtype=state_dtype(xz))


@torch.library.custom_op("umamba::mamba_mix_triton_backward", mutates_args=())
def _mix_backward(
    grad: Tensor,
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    carried: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the inputs of `mix`."""
    inner, rank, states = conv_weight.shape[0], dt_weight.shape[1], A.shape[1]
    scan, u, parameters = _scan_of(xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D)
    grad_xz, grad_u, grad_delta = xz.new_empty(xz.shape), torch.empty_like(u), torch.empty_like(u)
    found = run_backward(scan, carried, grad, grad_u, grad_delta, grad_xz[..., inner:])
    grad_parameters = torch.empty_like(parameters)
    grad_parameters[..., rank : rank + states] = found.B.flatten(2)
    grad_parameters[..., rank + states :] = found.C.flatten(2)
    grad_x_weight, grad_dt_weight = projections_back(
        grad_delta, grad_parameters, grad_u, u, parameters, x_weight, dt_weight
    )
    grad_conv, grad_conv_bias = conv_back_into(
        xz[..., :inner], conv_weight[:, 0], conv_bias, grad_u, grad_xz[..., :inner]
    )
    return (
        grad_xz,
        grad_conv[:, None].to(conv_weight.dtype).contiguous(),
        grad_conv_bias.to(conv_bias.dtype),
        grad_x_weight,
        grad_dt_weight,
        found.bias.to(dt_bias.dtype),
        found.A.to(A.dtype).contiguous(),
        found.D.to(D.dtype),
    )


@_mix_backward.register_fake
def _(grad, xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, carried):  # type: ignore[no-untyped-def]
    return like(xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, grad_carried: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    found: tuple[Tensor, ...] = _mix_backward(grad, *ctx.saved_tensors)
    return found


_mix.register_autograd(_differentiate, setup_context=_save)
