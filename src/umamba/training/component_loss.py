"""Soft Dice and cross-entropy of each component of the reference, in the region that is nearest to it (CC-DiceCE).

A Dice over whole patches hardly changes if a small object is missed beside a large one. Here every object counts the
same, whatever its size, and a false object counts in the region of the object that it is nearest to (Bouteille et al.,
2025, https://arxiv.org/abs/2511.17146). With several labels, each stands against all others
(https://arxiv.org/abs/2604.24276).

Legend: B batch, K foreground labels, *S two or three spatial axes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from umamba.labels import LabelSet
from umamba.settings import LossSettings
from umamba.training.losses import SMOOTH, region_targets


class ComponentLoss(nn.Module):
    """The mean over components of cross-entropy minus Dice, computed in float32 also under autocast.

    The mean is taken over the components of a label in a sample first, then over labels and samples that have any. A
    patch without foreground adds zero; the loss of whole patches sees its false objects.

    Args:
        labels: the label set; voxels with its ignore label do not count.
        settings: factors of the loss, of its Dice and of its cross-entropy.
    """

    def __init__(self, labels: LabelSet, settings: LossSettings) -> None:
        super().__init__()
        self.labels = labels
        self.settings = settings

    def forward(self, outputs: Tensor | Sequence[Tensor], batch: Mapping[str, Any]) -> Tensor:
        """Return the scalar loss.

        Args:
            outputs: logits (B, classes, *S), or a list with those at full resolution first, which alone are read,
                because small components vanish at lower resolutions.
            batch: "label" (B, 1, *S); "components" (B, K, *S), see `umamba.labels.component_regions`; and
                "component_count", their highest number.
        """
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        with torch.autocast(logits.device.type, enabled=False):
            margins = logits.float() if self.labels.has_regions else against_others(logits.float())
            loss = self._mean(margins, batch["label"], batch["components"], batch["component_count"])
            return self.settings.component_weight * loss

    def _mean(self, margins_BKS: Tensor, label_B1S: Tensor, components_BKS: Tensor, count: int) -> Tensor:
        target = region_targets(label_B1S, self.labels)
        counted = torch.ones_like(target)
        if self.labels.ignore is not None:
            counted = counted * (label_B1S != self.labels.ignore)
        probabilities = torch.sigmoid(margins_BKS)
        entropies = functional.binary_cross_entropy_with_logits(margins_BKS, target, reduction="none")

        numbers = count + 1  # 0 is that of maps without components
        maps = len(margins_BKS) * margins_BKS.shape[1]
        own = torch.arange(maps, device=margins_BKS.device).view(-1, 1) * numbers
        places = (components_BKS.reshape(maps, -1).long() + own).flatten()

        def over_regions(values: Tensor) -> Tensor:
            """Return the sums (maps, components) of values (B, K, *S)."""
            sums = values.new_zeros(maps * numbers).index_add(0, places, (values * counted).flatten())
            return sums.view(maps, numbers)[:, 1:]

        true, voxels = over_regions(target), over_regions(counted)
        predicted, common = over_regions(probabilities), over_regions(probabilities * target)
        dice = (2 * common + SMOOTH) / (predicted + true + SMOOTH)
        entropy = over_regions(entropies) / voxels.clamp_min(1)
        losses = self.settings.cross_entropy_weight * entropy - self.settings.dice_weight * dice
        exists = true > 0
        of_maps = (losses * exists).sum(1) / exists.sum(1).clamp_min(1)
        return of_maps.sum() / exists.any(1).sum().clamp_min(1)


def against_others(logits_BKS: Tensor) -> Tensor:
    """Return log(p / (1 - p)) for the softmax probability p of each class but the background.

    Args:
        logits_BKS: (B, classes, *S), at least two classes.

    Returns:
        (B, classes - 1, *S).

    >>> against_others(torch.tensor([[[0.0], [3.0]]]))
    tensor([[[3.]]])
    """
    margins = []
    for own in range(1, logits_BKS.shape[1]):
        others = torch.cat([logits_BKS[:, :own], logits_BKS[:, own + 1 :]], dim=1)
        margins.append(logits_BKS[:, own] - torch.logsumexp(others, dim=1))
    return torch.stack(margins, dim=1)


def component_loss(labels: LabelSet, settings: LossSettings) -> ComponentLoss | None:
    """Return the loss of single components if `recipe.loss.component_weight` asks for it.

    Args:
        labels: the label set.
        settings: the recipe's loss.
    """
    return ComponentLoss(labels, settings) if settings.component_weight else None
