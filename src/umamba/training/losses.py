"""Dice plus cross-entropy with deep supervision, by nnU-Net's rules (training/loss of nnU-Net 2.8).

Legend: B batch, K channels of the network's output (classes with background, or regions), *S two or three spatial axes.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.settings import LossSettings, Settings
from umamba.settings.own_code import own_function, own_options
from umamba.training.partial_losses import exclusion_loss, merged_logits, over_voxels
from umamba.training.softmax_sums import softmax_sums

SMOOTH = 1e-5  # nnU-Net's smoothing of numerator and denominator
EPSILON = 1e-8  # lower bound of the denominator
_UNSURE = 1e-6  # lower bound of a voxel's doubt in the focal loss
NOT_PARTIAL = (
    "a loss of your own does not know which labels a case carries, but annotated_labels names some. Give null."
)


def region_targets(label_B1S: Tensor, labels: LabelSet) -> Tensor:
    """Return one binary channel per region.

    Args:
        label_B1S: integer labels (B, 1, *S).
        labels: a label set with regions.

    Returns:
        (B, K, *S) float32 in {0, 1}; channel k is the union of the label values of region k.
    """
    # Comparisons with numbers, because a tensor of the values would be copied to the device, which waits for it.
    channels = [reduce(torch.logical_or, [label_B1S == value for value in values]) for values in labels.values]
    return torch.cat(channels, dim=1).float()


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; gradients are also summed, because the loss of every rank depends on it."""

    @staticmethod
    def forward(context: Any, local: Tensor) -> Tensor:
        """Return the sum."""
        total = local.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def over_batch(sums_BK: Tensor) -> Tensor:
    """Return sums (B, K) summed over the batch, (K,); if several ranks train one run, over the batches of all ranks."""
    local = sums_BK.sum(0)
    return SumOverRanks.apply(local) if several_ranks() else local


def several_ranks() -> bool:
    """Return whether several ranks train one run together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def soft_dice_loss(
    probabilities: Tensor,
    target: Tensor,
    mask: Tensor | None,
    batch_dice: bool,
    tversky: Sequence[float] | None = None,
    carried: Tensor | None = None,
) -> Tensor:
    """Return minus the mean soft Dice over channels (and samples, unless `batch_dice`).

    Args:
        probabilities: (B, K, *S), foreground channels only.
        target: same shape, in {0, 1}.
        mask: (B, 1, *S) of voxels that count, or None for all.
        batch_dice: sum over the batch before the ratio is taken.
        tversky: factors of false positives and false negatives (Salehi et al., 2017); None is (0.5, 0.5), the Dice.
        carried: (B, K) bool, channels that count in each sample; None: all. A ratio without a sample is no part of the
            mean.

    Returns:
        Scalar in [-1, 0].
    """
    axes = list(range(2, probabilities.ndim))
    if mask is not None:
        probabilities, target = probabilities * mask, target * mask
    intersection = (probabilities * target).sum(axes)
    predicted, true = probabilities.sum(axes), target.sum(axes)
    return dice_of_sums(intersection, predicted, true, batch_dice, tversky, carried)


def dice_of_sums(
    intersection: Tensor,
    predicted: Tensor,
    true: Tensor,
    batch_dice: bool,
    tversky: Sequence[float] | None,
    carried: Tensor | None = None,
) -> Tensor:
    """Return minus the mean soft Dice of sums (B, K) over voxels; see `soft_dice_loss`."""
    if carried is not None:
        carried = carried.to(intersection.device, intersection.dtype)
        intersection, predicted, true = intersection * carried, predicted * carried, true * carried
    if tversky is None:
        total = predicted + true
    else:
        positive, negative = tversky
        total = 2 * (intersection + positive * (predicted - intersection) + negative * (true - intersection))
    if batch_dice:
        intersection, total = over_batch(intersection), over_batch(total)
    ratios = (2 * intersection + SMOOTH) / (total + SMOOTH).clamp_min(EPSILON)
    if carried is None:
        return -ratios.mean()
    counts = (over_batch(carried) if batch_dice else carried) > 0
    return -(ratios * counts).sum() / counts.sum().clamp_min(1)


class DiceCrossEntropy(nn.Module):
    """Soft Dice plus cross-entropy on one output, computed in float32 also under autocast.

    Plain labels: softmax, background left out of the Dice. Regions: sigmoid and binary cross-entropy, all channels.
    Voxels with the ignore label count in neither term; if a batch has only such voxels, its cross-entropy is zero.
    Regions of labels that have an ignore label: the cross-entropy is summed over the regions instead of averaged, as
    nnU-Net divides by the number of voxels there (DC_and_BCE_loss of nnU-Net 2.8).
    Partly labelled cases: the marginal loss, plus the exclusion loss of plain labels (see `partial_losses`); regions
    that a case does not carry count in no term.

    Args:
        labels: the label set; it decides between softmax and sigmoid, and defines the ignore label.
        batch_dice: see `soft_dice_loss`.
        settings: factors of the two terms; class weights of the cross-entropy, which make it a weighted mean
            (background first, or one for each region); focal exponent (Lin et al., 2017); Tversky factors.

    Raises:
        UserError: the number of class weights is not the number of classes.
    """

    class_weights: Tensor | None

    def __init__(self, labels: LabelSet, batch_dice: bool, settings: LossSettings | None = None) -> None:
        super().__init__()
        self.labels = labels
        self.batch_dice = batch_dice
        self.settings = settings or LossSettings()
        given = self.settings.class_weights
        if given is not None and len(given) != labels.num_classes:
            first = "" if labels.has_regions else "background, "
            raise UserError(
                f"recipe.loss.class_weights={list(given)}: give {labels.num_classes} numbers from 0 on, for "
                f"{first}{', '.join(labels.names)}."
            )
        weights = None if given is None else torch.tensor(given, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits_BKS: Tensor, label_B1S: Tensor, carried_BL: Tensor | None = None) -> Tensor:
        """Return the scalar loss.

        Args:
            logits_BKS: (B, K, *S).
            label_B1S: integer labels (B, 1, *S).
            carried_BL: (B, number of labels without background) bool on the CPU, labels that the case of each sample
                carries; None: all of them. Several ranks must agree on giving it.
        """
        if carried_BL is not None and not several_ranks() and bool(carried_BL.all()):
            carried_BL = None
        with torch.autocast(logits_BKS.device.type, enabled=False):
            terms = self._of_regions if self.labels.has_regions else self._of_classes
            cross_entropy, dice = terms(logits_BKS, label_B1S, carried_BL)
            loss = self.settings.cross_entropy_weight * cross_entropy + self.settings.dice_weight * dice
            weight = self.settings.exclusion_weight
            if weight and carried_BL is not None and not self.labels.has_regions and not bool(carried_BL.all()):
                loss = loss + weight * exclusion_loss(logits_BKS, label_B1S, carried_BL, self.labels.ignore)
        return loss

    def _of_classes(self, logits: Tensor, label: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return cross-entropy and minus the Dice of classes."""
        ignore, tversky = self.labels.ignore, self.settings.tversky
        logits = logits if carried is None else merged_logits(logits, carried)
        true, predicted, voxels, entropy = softmax_sums(logits, label, ignore)
        dice = dice_of_sums(true[:, 1:], predicted[:, 1:], voxels[:, 1:], self.batch_dice, tversky, carried)
        if self.class_weights is None and not self.settings.focal_gamma:
            return entropy.sum() / voxels.sum().clamp_min(1), dice
        mask = None if ignore is None else (label != ignore)
        known = label if mask is None else label * mask
        # Not functional.cross_entropy, because deterministic mode refuses its map of losses on a GPU.
        losses = -logits.float().log_softmax(1).gather(1, known)
        weights = None if self.class_weights is None else self.class_weights[known]
        return masked_mean(self._focal(losses), mask, weights), dice

    def _of_regions(self, logits: Tensor, label: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return binary cross-entropy and minus the Dice of regions."""
        mask = None if self.labels.ignore is None else (label != self.labels.ignore)
        target, logits = region_targets(label, self.labels), logits.float()
        losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        weights = None if self.class_weights is None else self.class_weights.view(-1, *[1] * (target.ndim - 2))
        if carried is not None:
            known = over_voxels(carried, logits).to(logits.dtype)
            weights = known if weights is None else weights * known
        dice = soft_dice_loss(torch.sigmoid(logits), target, mask, self.batch_dice, self.settings.tversky, carried)
        entropy = masked_mean(self._focal(losses), mask, weights)
        return (entropy if mask is None else entropy * len(self.labels.names)), dice

    def _focal(self, losses: Tensor) -> Tensor:
        """Return the losses of voxels, those of well classified ones lowered by the focal exponent if there is one."""
        gamma = self.settings.focal_gamma
        # The bound keeps the slope finite where a voxel is certain and the exponent is below 1.
        return (1 - torch.exp(-losses)).clamp_min(_UNSURE) ** gamma * losses if gamma else losses


class OwnLoss(nn.Module):
    """A loss of the user's own on one output, computed in float32 also under autocast.

    Args:
        loss: maps logits (B, K, *S) and integer labels (B, 1, *S) to a scalar.
        name: package.module:function, for messages.
    """

    def __init__(self, loss: nn.Module, name: str) -> None:
        super().__init__()
        self.loss = loss
        self.name = name

    def forward(self, logits_BKS: Tensor, label_B1S: Tensor, carried_BL: Tensor | None = None) -> Tensor:
        """Return the scalar loss of logits (B, K, *S) against integer labels (B, 1, *S).

        Raises:
            UserError: the loss is no scalar, or the cases are partly labelled.
        """
        if carried_BL is not None:
            raise UserError(f"recipe.loss.name={self.name}: {NOT_PARTIAL}")
        with torch.autocast(logits_BKS.device.type, enabled=False):
            loss = self.loss(logits_BKS.float(), label_B1S)
        if not isinstance(loss, Tensor) or loss.ndim:
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(f"recipe.loss.name={self.name}: the loss must be a scalar tensor, not {shape}.")
        return loss


def build_loss(labels: LabelSet, batch_dice: bool, settings: LossSettings) -> nn.Module:
    """Return the loss of one output: soft Dice plus cross-entropy, or the user's own.

    An own loss is a function of (options, labels, batch_dice) that returns a module; its options are a settings record,
    the annotation of the first parameter (see docs/own-loss.md).

    Args:
        labels: the label set.
        batch_dice: whether the plan's Dice is summed over the batch, see `soft_dice_loss`.
        settings: the loss and its options.

    Raises:
        UserError: the loss does not fit the labels, or there is no such function, or it makes no module.
    """
    if settings.name is None:
        return DiceCrossEntropy(labels, batch_dice, settings)
    loss = own_function(settings.name, "recipe.loss.name")(own_loss_options(settings), labels, batch_dice)
    if not isinstance(loss, nn.Module):
        raise UserError(f"recipe.loss.name={settings.name}: what it returns is no torch.nn.Module.")
    return OwnLoss(loss, settings.name)


def own_loss_options(settings: LossSettings) -> Settings:
    """Check the options of an own loss against the record in its module.

    Args:
        settings: with the `name` of an own loss.

    Raises:
        UserError: no such module or function, or a function without a settings record.
        InvalidSettings: an unknown option or a wrong value.
    """
    name = str(settings.name)
    function = own_function(name, "recipe.loss.name")
    return own_options(function, name, settings.options, "recipe.loss", "docs/own-loss.md")


def masked_mean(values: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """Return the mean of values over the voxels of a mask; zero if the mask has no voxels.

    Args:
        values: (B, K, *S).
        mask: (B, 1, *S), True or 1 for voxels that count; None: all voxels count.
        weights: weights of the mean, broadcastable to `values`; None: all are equal.

    Returns:
        Scalar.
    """
    if weights is not None:
        counted = weights.expand_as(values) if mask is None else weights * mask
        return (values * counted).sum() / counted.sum().clamp_min(EPSILON)
    if mask is None:
        return values.mean()
    return (values * mask).sum() / (mask.sum() * values.shape[1]).clamp_min(1)


def deep_supervision_weights(num_outputs: int) -> list[float]:
    """Return nnU-Net's weights of deep supervision: each half of the one before, the last one zero, with a sum of one.

    A single output has the weight one, where nnU-Net would divide zero by zero.

    Args:
        num_outputs: outputs of the network, at least 1.

    Returns:
        A weight for each output, full resolution first.

    >>> deep_supervision_weights(3) == [2 / 3, 1 / 3, 0]
    True
    """
    weights = [0.5**i for i in range(num_outputs)]
    if num_outputs > 1:
        weights[-1] = 0.0
    total = sum(weights)
    return [weight / total for weight in weights]


class DeepSupervisionLoss(nn.Module):
    """Weighted sum of a loss over the outputs of a network, against labels resized to each output.

    Labels are resized by nearest-exact interpolation, as for nnU-Net's deep-supervision targets.

    Args:
        loss: the loss of one output against labels of its size.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, outputs: Tensor | Sequence[Tensor], label_B1S: Tensor, carried_BL: Tensor | None = None
    ) -> Tensor:
        """Return the scalar loss; `outputs` are (B, K, *S_i), full resolution first; the rest: `DiceCrossEntropy`."""
        if isinstance(outputs, Tensor):
            outputs = [outputs]
        total = label_B1S.new_zeros((), dtype=torch.float32)
        for output, weight in zip(outputs, deep_supervision_weights(len(outputs)), strict=True):
            if weight:
                label = resize_label(label_B1S, output.shape[2:])
                total = total + weight * (
                    self.loss(output, label) if carried_BL is None else self.loss(output, label, carried_BL)
                )
        return total


def resize_label(label_B1S: Tensor, size: Sequence[int]) -> Tensor:
    """Resize labels by nearest-exact interpolation.

    Args:
        label_B1S: integer labels (B, 1, *S).
        size: the new spatial size in voxels, in the axis order of the labels.

    Returns:
        (B, 1, *size) of the same integer type; the given tensor itself if it already has this size.
    """
    if tuple(label_B1S.shape[2:]) == tuple(size):
        return label_B1S
    return functional.interpolate(label_B1S.float(), size=tuple(size), mode="nearest-exact").to(label_B1S.dtype)
