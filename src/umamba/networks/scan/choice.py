"""Which of two GPU backends is faster for a shape: each shape is measured once in a process, on a short sequence.

Triton divides sequences into chunks, and mamba_ssm computes each sequence in one block of threads. Triton is therefore
faster for few long sequences. Where mamba_ssm is faster depends on the GPU, so it is measured.
"""

import functools
import logging
import statistics
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from umamba.networks.own_autograd import own_autograd

log = logging.getLogger(__name__)

_NAMES = ("triton", "cuda")
_STATES = 16
_MOST = 1 << 24  # elements of u; longer sequences are cut, because time is linear in their tokens


def faster(device: str, shape: tuple[int, ...]) -> str:
    """Return the faster backend for inputs (B, D, L), forward and backward; "triton" in deterministic mode.

    The kernels of mamba_ssm add with atomics, so that its results vary; and which backend is faster may vary as well.

    Args:
        device: device, such as "cuda:1".
        shape: of the scan's input.
    """
    if torch.are_deterministic_algorithms_enabled():
        return "triton"
    batch, channels, length = shape
    tokens = min(length, max(1024, _MOST // (batch * channels)))
    return _measured(device, batch, channels, 1 << (tokens - 1).bit_length())


@functools.cache
def _measured(device: str, batch: int, channels: int, tokens: int) -> str:
    where = f"Selective scan on {device}, {batch} x {channels} channels, {tokens} tokens"
    try:
        times = {
            name: seconds(import_module(f"umamba.networks.scan.{name}").scan, device, (batch, channels, tokens))
            for name in _NAMES
        }
    except torch.OutOfMemoryError:
        log.warning("%s: backend triton; there was not enough memory to compare it with cuda.", where)
        return "triton"
    chosen = min(times, key=lambda name: times[name])
    listed = ", ".join(f"{name} {1e3 * time:.3f} ms" for name, time in times.items())
    log.info("%s: backend %s (%s).", where, chosen, listed)
    return chosen


def seconds(scan: Callable[..., tuple[Tensor, Tensor]], device: str, shape: tuple[int, int, int]) -> float:
    """Return the median seconds of a scan, forward and backward, with the strides that the backend gets in a layer.

    Args:
        scan: the backend's function.
        device: a CUDA device.
        shape: of the scan's input (B, D, L).
    """
    batch, channels, length = shape
    with own_autograd("cuda"):
        random = torch.Generator(device).manual_seed(0)  # the global one must not move
        widths = (channels, channels, channels, 2 * _STATES)
        rows = [torch.randn(batch, length, width, device=device, generator=random) for width in widths]
        u, delta, z, BC = (each.transpose(1, 2).requires_grad_() for each in rows)
        A = -torch.arange(1.0, _STATES + 1, device=device).repeat(channels, 1).requires_grad_()
        D, bias = (torch.full((channels,), value, device=device, requires_grad=True) for value in (1.0, -4.0))
        leaves = (u, delta, A, D, z, bias, BC)

        def run() -> None:
            B, C = BC.split(_STATES, dim=1)
            out, _ = scan(u, delta, A, B, C, D, z, bias, True)
            torch.autograd.grad(out, leaves, torch.ones_like(out))

        run()  # compiles
        times = []
        with torch.cuda.device(device):
            for _ in range(3):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)
