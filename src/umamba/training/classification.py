"""The loss of a classification head, and the share of patches that it classifies right."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric

from umamba.labels.case_classes import UNKNOWN


def targets_of(
    case_ids: Sequence[str], targets: Mapping[str, tuple[int, ...]], tasks: int, device: torch.device
) -> Tensor:
    """Return the classes of the cases of a batch.

    Args:
        case_ids: the case of each patch (B).
        targets: case -> class in each task.
        tasks: number of tasks.
        device: of the result.

    Returns:
        (B, tasks) int64, `UNKNOWN` where a case has no class.
    """
    nothing = (UNKNOWN,) * tasks
    return torch.tensor([targets.get(str(case), nothing) for case in case_ids], dtype=torch.int64, device=device)


def case_loss(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Return the cross-entropy, averaged over the patches whose case has a class, and over the tasks.

    Classes are not weighted by their frequency, because the probabilities would then not be those of the training
    cases. A task of which no patch has a class counts as 0.

    Args:
        logits: (B, classes) for each task.
        targets: (B, tasks); `UNKNOWN` where a case has no class.

    >>> round(float(case_loss([torch.zeros(3, 4)], torch.tensor([[1], [UNKNOWN], [3]]))), 4)
    1.3863
    """
    losses = []
    for task, scores in enumerate(logits):
        total = functional.cross_entropy(scores, targets[:, task], ignore_index=UNKNOWN, reduction="sum")
        losses.append(total / (targets[:, task] != UNKNOWN).sum().clamp_min(1))
    return torch.stack(losses).mean()


class CaseMetrics(nn.Module):
    """The loss of training patches, and loss and accuracy of validation patches, over an epoch.

    Args:
        names: of the tasks.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.train_loss, self.loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.accuracy = nn.ModuleList(MeanMetric(nan_strategy="disable") for _ in names)

    def reset(self) -> None:
        """Forget all patches."""
        for metric in (self.train_loss, self.loss, *self.accuracy):
            metric.reset()

    def update(self, logits: Sequence[Tensor], targets: Tensor, loss: Tensor) -> None:
        """Add a batch of validation patches.

        Args:
            logits: (B, classes) for each task.
            targets: (B, tasks).
            loss: of the batch.
        """
        known = targets != UNKNOWN
        self.loss.update(loss, known.any(dim=1).sum())
        accuracies: Any = self.accuracy
        for task, (metric, scores) in enumerate(zip(accuracies, logits, strict=True)):
            metric.update((scores.argmax(1) == targets[:, task]).float(), known[:, task].float())
