"""Activation checkpointing: recompute the inner values of a network's stages in the backward pass to save memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpoint_stages(network: nn.Module) -> int:
    """Make each stage of a network keep only its input, and return the number of stages.

    A stage is an entry of a ModuleList or Sequential that has layers and is not inside another stage, or a module of
    layers without such entries (the blocks of MONAI's UNETR). The function replaces `forward` of each stage instead of
    wrapping the stage, because a wrapper would change the parameter names in checkpoints.

    Args:
        network: the network, whose stages get a new `forward`.
    """
    stages = list(_stages(network))
    for stage in stages:
        stage.forward = _recomputed(stage.forward)  # type: ignore[method-assign]
    return len(stages)


def _stages(module: nn.Module) -> list[nn.Module]:
    found = []
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            found += [entry for entry in child if any(True for _ in entry.children())]
        else:
            found += _stages(child) or ([child] if any(True for _ in child.children()) else [])
    return found


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        wanted = torch.is_grad_enabled() and any(isinstance(x, Tensor) for x in inputs)
        return checkpoint(forward, *inputs, use_reentrant=False) if wanted else forward(*inputs)

    return run
