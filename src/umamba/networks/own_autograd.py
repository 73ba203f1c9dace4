"""A place of its own for a computation with gradients that tests or times a kernel in the middle of a training."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor


@contextmanager
def own_autograd(device: str) -> Iterator[None]:
    """Compute with gradients and without autocast within the block, whatever surrounds it.

    A kernel may be used for the first time in inference mode, under autocast, or in a stage with activation
    checkpointing. Without hooks of its own, the block would give the tensors of its gradients to the hooks of the
    checkpointing, which would run the stage again in the middle of its first pass.

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
