"""A place of its own for a computation with gradients that tests or times a kernel in the middle of a training."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor


@contextmanager
def own_autograd(device: str) -> Iterator[None]:
    """Compute gradients and without autocast within the block, whatever surrounds it.

    The first use of a kernel may lie in inference mode, under autocast, or in a stage whose activations are computed
    again: then the hooks of activation checkpointing would take the tensors that the block keeps for its gradients,
    and run the stage again in the middle of its first pass.

    Args:
        device: type of the device, such as "cpu" or "cuda".
    """
    with ExitStack() as stack:
        for each in (torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False)):
            stack.enter_context(each)
        with suppress(RuntimeError):  # where there cannot be any hooks
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_same, _same))
        yield


def _same(tensor: Tensor) -> Tensor:
    return tensor
