"""The running patch Dice: nnU-Net's pseudo-Dice (training/nnUNetTrainer, validation step), from sampled patches only.

It estimates progress and chooses the best checkpoint. It is not a validation score, because patches are sampled with
foreground oversampling and do not cover whole cases.
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from umamba.labels import LabelSet
from umamba.patches.on_device import precise_dtype
from umamba.training.losses import region_targets
from umamba.training.partial_losses import over_voxels


class PatchDice(Metric):
    """Dice of hard labels per foreground class or region, from counts over all patches of an epoch and all ranks.

    Args:
        labels: the label set. Background is not counted as a class; voxels with the ignore label do not count.
    """

    full_state_update = False
    true_positive: Tensor
    false_positive: Tensor
    false_negative: Tensor

    def __init__(self, labels: LabelSet) -> None:
        super().__init__()
        self.labels = labels
        for name in ("true_positive", "false_positive", "false_negative"):
            self.add_state(name, torch.zeros(len(labels.names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits_BKS: Tensor, label_B1S: Tensor, carried_BL: Tensor | None = None) -> None:
        """Add the counts of a batch.

        Args:
            logits_BKS: (B, K, *S) at full resolution.
            label_B1S: integer labels (B, 1, *S).
            carried_BL: (B, classes or regions) bool, those that the case of each patch carries; None: all count.
        """
        if self.labels.has_regions:
            prediction, truth = logits_BKS > 0, region_targets(label_B1S, self.labels).bool()
        else:
            winner = logits_BKS.argmax(1, keepdim=True)
            classes = torch.arange(1, logits_BKS.shape[1], device=winner.device)
            classes = classes.view(1, -1, *[1] * (winner.ndim - 2))
            prediction, truth = winner == classes, label_B1S == classes
        if self.labels.ignore is not None:
            counted = label_B1S != self.labels.ignore
            prediction, truth = prediction & counted, truth & counted
        if carried_BL is not None:
            counted = over_voxels(carried_BL, truth)
            prediction, truth = prediction & counted, truth & counted
        axes = [0, *range(2, truth.ndim)]
        self.true_positive += (prediction & truth).sum(axes)
        self.false_positive += (prediction & ~truth).sum(axes)
        self.false_negative += (~prediction & truth).sum(axes)

    def compute(self) -> Tensor:
        """Return the Dice of each class, (K,) of `precise_dtype`; NaN for a class that occurs nowhere."""
        twice = (2 * self.true_positive).to(precise_dtype(self.true_positive.device))
        return twice / (twice + self.false_positive + self.false_negative)
