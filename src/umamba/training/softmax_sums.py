"""The sums of softmax that Dice and cross-entropy need, as one differentiable operation on the CPU.

PyTorch's own operations keep five float32 copies of all classes; here the logits are read once and nothing is kept.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from umamba.networks.fused_norm import compiled, in_blocks

NO_LABEL = -(2**31)  # no voxel has this label


class SoftmaxSums(torch.autograd.Function):
    """Maps logits (B, K, *S) and integer labels (B, 1, *S) to sums over the voxels that do not have the ignore label.

    The logits are float32 or bfloat16 on the CPU. Returns, in float32: (B, K) softmax where the class is the true one,
    (B, K) softmax, (B, K) voxels of the class, and (B,) cross-entropy, where nothing is averaged.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, label: Tensor, ignore: int | None) -> tuple[Tensor, ...]:
        """Return the sums."""
        from umamba.training.softmax_kernels import BLOCK, sums

        context.save_for_backward(logits, label)
        context.ignored = NO_LABEL if ignore is None else ignore
        values, truth = _flat(logits), _flat(label)[:, 0]
        batch, classes, voxels = values.shape
        blocks = batch * -(-voxels // BLOCK)
        parts, entropy = np.empty((blocks, 3, classes), np.float32), np.empty(blocks, np.float64)
        wrong = np.zeros(blocks, np.bool_)
        in_blocks(lambda a, b: sums(values, truth, context.ignored, a, b, parts, entropy, wrong), blocks, values.size)
        if wrong.any():
            raise IndexError(f"a label is outside of the {classes} classes of the network's output")
        together = parts.reshape(batch, -1, 3, classes).sum(1, dtype=np.float64).astype(np.float32)
        true, any_, voxel_counts = (torch.from_numpy(np.ascontiguousarray(together[:, k])) for k in range(3))
        context.mark_non_differentiable(voxel_counts)
        return true, any_, voxel_counts, torch.from_numpy(entropy.reshape(batch, -1).sum(1).astype(np.float32))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits."""
        from umamba.training.softmax_kernels import BLOCK, gradient

        logits, label = context.saved_tensors
        by_true, by_any, _, by_entropy = (each.float().numpy() for each in gradients)
        values, truth = _flat(logits), _flat(label)[:, 0]
        dense = logits.is_contiguous() or logits.movedim(1, -1).is_contiguous()
        found = torch.empty_like(logits, memory_format=torch.preserve_format if dense else torch.contiguous_format)
        out, blocks = _flat(found), values.shape[0] * -(-values.shape[2] // BLOCK)
        in_blocks(
            lambda a, b: gradient(values, truth, context.ignored, by_true, by_any, by_entropy, a, b, out),
            blocks,
            values.size,
        )
        return found, None, None


def fits(logits: Tensor) -> bool:
    """Return whether `SoftmaxSums` takes these logits (B, K, *S)."""
    dtypes = (torch.float32, torch.bfloat16)
    return compiled() and logits.device.type == "cpu" and logits.dtype in dtypes and not torch.compiler.is_compiling()


def _flat(x: Tensor) -> np.ndarray:
    """Return (B, K, *S) as an array (B, K, V) that shares the memory; bfloat16 as its bits."""
    x = x.detach()
    last = not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
    rows = x.movedim(1, -1).flatten(1, -2).movedim(-1, 1) if last else x.flatten(2)
    if x.dtype == torch.bfloat16:
        return np.asarray(rows.view(torch.int16).numpy().view(np.uint16))
    return np.asarray(rows.numpy())
