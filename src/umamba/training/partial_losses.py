"""Losses of partly labelled cases: marginal and exclusion loss.

Shi et al., 2021, https://doi.org/10.1016/j.media.2021.101979. A voxel with the label 0 belongs to the background or to
a label that its case does not carry. The marginal loss adds the probabilities of these classes up, and compares the sum
with the label 0. The logarithm of the sum of the classes' exponentials is a logit of the sum, so that the losses of
fully labelled cases are applied to merged logits without a change.

Legend: B batch, K classes with background, *S two or three spatial axes; carried_BL is (B, K - 1) bool, True for labels
that the case of a patch carries.
"""

import torch
from torch import Tensor

NOTHING = -1e30  # a logit whose probability is zero, finite because zero times infinity is no number
_LEAST = 1e-8


def merged_logits(logits_BKS: Tensor, carried_BL: Tensor) -> Tensor:
    """Add the probabilities of all labels that a case does not carry to that of the background.

    Args:
        logits_BKS: (B, K, *S), background first.
        carried_BL: (B, K - 1) bool, on any device.

    Returns:
        (B, K, *S), at least float32: the logit of the sum, then those of the labels, NOTHING for labels that are part
        of the sum. A patch whose case carries all labels keeps its logits bit by bit.
    """
    logits = logits_BKS.to(torch.promote_types(logits_BKS.dtype, torch.float32))
    carried = over_voxels(carried_BL, logits)
    background = torch.zeros_like(carried[:, :1])
    together = logits.masked_fill(torch.cat([background, carried], 1), -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([together, logits[:, 1:].masked_fill(~carried, NOTHING)], 1)


def over_voxels(mask_BL: Tensor, like: Tensor) -> Tensor:
    """Return a mask (B, L) as (B, L, 1, ...) with the number of axes and on the device of `like`."""
    return mask_BL.to(like.device, non_blocking=True).view(*mask_BL.shape, *[1] * (like.ndim - 2))


def exclusion_loss(logits_BKS: Tensor, label_B1S: Tensor, carried_BL: Tensor, ignore: int | None) -> Tensor:
    """Return how much of the labels that a case does not carry is predicted where another label is known.

    For each patch and each label that its case does not carry: the soft Dice of the label's probability and the voxels
    with a label above 0 (2 * overlap / sum of both), plus the mean of log(1 + probability) over these voxels.

    Args:
        logits_BKS: (B, K, *S) of plain labels.
        label_B1S: integer labels (B, 1, *S).
        carried_BL: (B, K - 1) bool.
        ignore: the ignore label, whose voxels do not count, or None.

    Returns:
        Scalar, 0 or above: the mean over these pairs of patch and label; 0 if there are none.
    """
    p = logits_BKS.to(torch.promote_types(logits_BKS.dtype, torch.float32)).softmax(1)[:, 1:].flatten(2)
    counted = torch.ones_like(label_B1S, dtype=torch.bool) if ignore is None else label_B1S != ignore
    known = ((label_B1S > 0) & counted).flatten(2).to(p.dtype).transpose(1, 2)  # (B, V, 1)
    overlap = (p @ known)[..., 0]
    predicted = (p @ counted.flatten(2).to(p.dtype).transpose(1, 2))[..., 0]
    labelled = known.sum(1)
    dice = 2 * overlap / (predicted + labelled).clamp_min(_LEAST)
    entropy = (p.log1p() @ known)[..., 0] / labelled.clamp_min(1)
    missing = (~carried_BL).to(p.device, non_blocking=True)
    return ((dice + entropy) * missing).sum() / missing.sum().clamp_min(1)
