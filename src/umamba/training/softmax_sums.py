"""The sums of softmax that Dice and cross-entropy need, as one differentiable operation that keeps only its inputs.

PyTorch's own operations keep five float32 copies of all classes. On the CPU compiled code reads the logits once; on
other devices the softmax is the only copy, made again for the gradient, and the labels never become one-hot.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from umamba.networks.fused_norm import compiled, in_blocks

NO_LABEL = -(2**31)  # no voxel has this label


class CompiledSums(torch.autograd.Function):
    """The sums of `softmax_sums` in float32, of float32 or bfloat16 logits on the CPU, by compiled code."""

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


class DeviceSums(torch.autograd.Function):
    """The sums of `CompiledSums` by PyTorch's operators, on any device and in any floating-point type.

    Sums are float32, float64 for float64. No operation waits for the device or adds in a changing order.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, label: Tensor, ignore: int | None) -> tuple[Tensor, ...]:
        """Return the sums."""
        context.save_for_backward(logits, label)
        context.ignore = ignore
        p, known, _, entropy = _softmax(logits, label, ignore)
        predicted = p.flatten(2).sum(2)
        own = p.gather(1, known).flatten(1)
        classes = label.flatten(1)
        true, voxels = torch.empty_like(predicted), torch.empty_like(predicted)
        for k in range(p.shape[1]):
            here = classes == k
            true[:, k] = torch.where(here, own, 0).sum(1)
            voxels[:, k] = here.sum(1)
        if ignore is not None and 0 <= ignore < p.shape[1]:
            true[:, ignore], voxels[:, ignore] = 0, 0
        context.mark_non_differentiable(voxels)
        return true, predicted, voxels, entropy.flatten(1).sum(1)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits."""
        logits, label = context.saved_tensors
        by_true, by_any, _, by_entropy = gradients
        p, known, counted, _ = _softmax(logits, label, context.ignore)
        one = (1,) * (p.ndim - 2)
        lost = by_entropy.view(-1, 1, *one)
        lost_here = lost.expand_as(known) if counted is None else lost * counted
        own = p.gather(1, known) * by_true.gather(1, known.flatten(1)).view(known.shape)
        found = p * (by_any.unflatten(1, (-1, *one)) + lost)
        # With dot = sum over k of p_k (by_any_k + by_true_k if k is the class), see `softmax_kernels.gradient`
        dot = found.sum(1, keepdim=True) - lost_here + own
        found.addcmul_(p, dot, value=-1)
        at_class = own - lost_here
        for k in range(p.shape[1]):
            found[:, k : k + 1] += torch.where(known == k, at_class, 0)
        return found.to(logits.dtype), None, None


def _softmax(logits: Tensor, label: Tensor, ignore: int | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return softmax (B, K, *S), labels without the ignored one, where they count, and cross-entropy (B, 1, *S).

    Softmax and cross-entropy are zero at ignored voxels; None as the third value: all voxels count.
    """
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    counted = None if ignore is None else label != ignore
    known = label if counted is None else label * counted
    entropy = -p.gather(1, known)
    p.exp_()
    if counted is not None:
        p, entropy = torch.where(counted, p, 0), torch.where(counted, entropy, 0)
    return p, known, counted, entropy


def softmax_sums(logits: Tensor, label: Tensor, ignore: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sums over the voxels that do not have the ignore label.

    Args:
        logits: (B, K, *S).
        label: integer labels (B, 1, *S), 0 to K - 1 or the ignore label.
        ignore: the ignore label, or None.

    Returns:
        (B, K) softmax where the class is the true one, (B, K) softmax, (B, K) voxels of the class, and (B,)
        cross-entropy; nothing is averaged.
    """
    cpu = logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16)
    sums = CompiledSums if cpu and compiled() and not torch.compiler.is_compiling() else DeviceSums
    true, predicted, voxels, entropy = sums.apply(logits, label, ignore)
    return true, predicted, voxels, entropy


def _flat(x: Tensor) -> np.ndarray:
    """Return (B, K, *S) as an array (B, K, V) that shares the memory; bfloat16 as its bits."""
    x = x.detach()
    last = not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
    rows = x.movedim(1, -1).flatten(1, -2).movedim(-1, 1) if last else x.flatten(2)
    if x.dtype == torch.bfloat16:
        return np.asarray(rows.view(torch.int16).numpy().view(np.uint16))
    return np.asarray(rows.numpy())
