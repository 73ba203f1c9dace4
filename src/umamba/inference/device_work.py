"""Copies to and from a GPU that do not stop the CPU, and work on a second stream of a GPU. On a CPU nothing changes."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a GPU is the current one, because kernels other than PyTorch's run on that one.

    Args:
        device: of the tensors; for other devices than GPUs the context does nothing.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor whose copy to the device does not stop the thread: for a GPU a copy in page-locked memory.

    Args:
        tensor: in main memory.
        device: where it will be copied to.
    """
    if device.type != "cuda":
        return tensor
    try:
        with on_device(device):  # otherwise PyTorch would begin to use the first GPU, too
            return tensor.pin_memory()
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning("An image cannot be kept in page-locked memory (%s); its copy to the GPU takes longer.", reason)
        return tensor


def fetch(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin the copy of a tensor to the CPU, and return the function that waits for it.

    Args:
        tensor: on any device. A GPU copies it after all work that its current stream was given before.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu
    with on_device(tensor.device):
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


def aside(device: torch.device, work: Callable[[], None]) -> Callable[[], None]:
    """Return a function that does some work in another thread, beside what the device is given afterwards.

    A GPU does it on a stream of its own, after all that its current stream has been given so far. The function returns
    when the device has finished, so that the memory of the work can be used again.

    Args:
        device: of the tensors.
        work: is called in the thread that calls the function.
    """
    if device.type != "cuda":
        return work
    given = torch.cuda.Event()
    with on_device(device):
        given.record(torch.cuda.current_stream(device))

    def run() -> None:
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            stream.wait_event(given)
            try:
                work()
            finally:
                stream.synchronize()

    return run
