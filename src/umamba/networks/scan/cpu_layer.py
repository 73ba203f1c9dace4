"""Convolution, projections, compiled scan and gate of a Mamba block as one operation on the CPU.

Tokens are rows, (B, L, channels), from the first to the last step, so that nothing is transposed. The two halves of xz,
and step sizes, B and C in the output of x_proj, are read and their gradients written where they are.
"""

from typing import Any

import torch
from torch import Tensor

from umamba.networks.scan.cpu import Arguments, array, run_backward, run_forward, shape_of_starts
from umamba.networks.scan.cpu_conv import conv_back_into, conv_into
from umamba.networks.scan.projections import like, projections_back


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
    """Compute the inner part of a Mamba block.

    Args:
        xz: output of `Mamba.in_proj` (B, L, 2 inner): the input of the scan, then that of the gate; float32 or float64,
            like all others.
        conv_weight: weight of the causal depthwise convolution (inner, 1, d_conv).
        conv_bias: its bias (inner,).
        x_weight: weight of `Mamba.x_proj` (dt_rank + 2 N, inner).
        dt_weight: weight of `Mamba.dt_proj` (inner, dt_rank).
        dt_bias: its bias (inner,).
        A: diagonal of the state matrix (inner, N).
        D: weight of the scan's input in its output (inner,).

    Returns:
        The gated output of the scan (B, L, inner).
    """
    tensors = (xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D)
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    y: Tensor = _mix(*tensors, needs_gradient)[0]
    return y


@torch.library.custom_op("umamba::mamba_mix_cpu", mutates_args=(), device_types="cpu")
def _mix(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y (B, L, inner) and what the backward pass needs: u, the output of x_proj, the scan's kept states."""
    batch, length, twice = xz.shape
    threads, y = torch.get_num_threads(), xz.new_empty((batch, length, twice // 2))
    u = torch.empty_like(y)
    conv_into(array(xz[..., : twice // 2]), array(conv_weight[:, 0]), array(conv_bias), array(u), threads=threads)
    parameters = u @ x_weight.T
    scan = _scan_of(xz, u, parameters, dt_weight, dt_bias, A, D)
    starts = xz.new_empty(shape_of_starts(batch, length if keep else 0, twice // 2, 1, A.shape[1]))
    run_forward(scan, array(y), array(starts) if keep else None, threads)
    return (y, u, parameters, starts) if keep else (y, xz.new_empty(0), xz.new_empty(0), xz.new_empty(0))


def _scan_of(
    xz: Tensor, u: Tensor, parameters: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Arguments:
    """Return the arguments of the scan inside the block."""
    rank, states = dt_weight.shape[1], A.shape[1]
    delta = (parameters.flatten(0, 1)[:, :rank] @ dt_weight.T).view(u.shape)
    grouped = array(parameters)[:, :, None]
    B, C = grouped[..., rank : rank + states], grouped[..., rank + states :]
    z = array(xz)[..., u.shape[2] :]
    return Arguments(array(u), array(delta), array(A), B, C, array(D), z, array(dt_bias), True)


@_mix.register_fake
def _(xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, keep):  # type: ignore[no-untyped-def]
    batch, length, twice = xz.shape
    y = xz.new_empty((batch, length, twice // 2))
    if not keep:
        return y, xz.new_empty(0), xz.new_empty(0), xz.new_empty(0)
    starts = shape_of_starts(batch, length, twice // 2, 1, A.shape[1])
    return y, torch.empty_like(y), xz.new_empty((batch, length, x_weight.shape[0])), xz.new_empty(starts)


@torch.library.custom_op("umamba::mamba_mix_cpu_backward", mutates_args=(), device_types="cpu")
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
    u: Tensor,
    parameters: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the inputs of `mix`."""
    inner, rank, states = u.shape[2], dt_weight.shape[1], A.shape[1]
    threads = torch.get_num_threads()
    grad_xz, grad_parameters = torch.empty_like(xz), torch.empty_like(parameters)
    grad_u, grad_delta = torch.empty_like(u), torch.empty_like(u)
    grouped, grad_z = array(grad_parameters)[:, :, None], array(grad_xz)[..., inner:]
    grad_B, grad_C = grouped[..., rank : rank + states], grouped[..., rank + states :]
    scan = _scan_of(xz, u, parameters, dt_weight, dt_bias, A, D)
    grad_A, grad_D, grad_bias = run_backward(
        scan, array(starts), array(grad), array(grad_u), array(grad_delta), grad_B, grad_C, grad_z, threads
    )
    grad_x_weight, grad_dt_weight = projections_back(
        grad_delta, grad_parameters, grad_u, u, parameters, x_weight, dt_weight
    )
    grad_conv, grad_conv_bias = conv_back_into(
        array(xz[..., :inner]), array(conv_weight[:, 0]), array(conv_bias), array(grad_u),
        array(grad_xz[..., :inner]), threads=threads,
    )  # fmt: skip
    return (
        grad_xz,
        torch.from_numpy(grad_conv)[:, None],
        torch.from_numpy(grad_conv_bias),
        grad_x_weight,
        grad_dt_weight,
        torch.from_numpy(grad_bias),
        torch.from_numpy(grad_A),
        torch.from_numpy(grad_D),
    )


@_mix_backward.register_fake
def _(grad, xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, u, parameters, starts):  # type: ignore[no-untyped-def]
    return like(xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:-1], *output[1:])


def _differentiate(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    return (*_mix_backward(grad, *ctx.saved_tensors), None)


_mix.register_autograd(_differentiate, setup_context=_save)
