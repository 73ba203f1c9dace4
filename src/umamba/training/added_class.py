"""Add labels to a trained network without the old data: its frozen copy teaches the labels that new cases do not carry.

Cermelli et al., 2020, https://arxiv.org/abs/2002.00718, section 3.3. The new network begins with the weights of the
frozen one. Its background and its new labels share what was background before, so that at the start it segments as the
frozen one. During training, the probabilities of both networks are compared after those of the background and of
all labels that are not taught are added up.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.records import CheckpointRecord
from umamba.records.checkpoint import Checkpoint, read_checkpoint
from umamba.settings import ArchitectureSettings, plain
from umamba.settings.entry_points import module_of
from umamba.training.losses import deep_supervision_weights, masked_mean, resize_label
from umamba.training.partial_losses import NOTHING, merged_logits, over_voxels
from umamba.training.pretrained import head_axes

NEW_SHARE = 0.05  # of the background's probability, for all new labels together, before the first step


@dataclass(frozen=True)
class Teacher:
    """A frozen network and what it knows of a new run's labels.

    It is no module, so that a run's checkpoints do not hold it.

    Attributes:
        network: without gradient, in evaluation mode.
        labels: the new run's label set.
        channels: for each of these labels the network's output, None for a new label.
        dropped: outputs of the network for labels that the new run does not have; they become background.
    """

    network: nn.Module
    labels: LabelSet
    channels: tuple[int | None, ...]
    dropped: tuple[int, ...]

    def loss(
        self, image: Tensor, outputs: Tensor | Sequence[Tensor], label_B1S: Tensor, carried_BL: Tensor | None
    ) -> Tensor:
        """Return how far the new network is from the frozen one in labels that the cases do not carry.

        Args:
            image: patches (B, C, *S).
            outputs: of the new network for them, (B, K, *S_i), full resolution first.
            label_B1S: integer labels (B, 1, *S).
            carried_BL: (B, labels without background) bool, labels that the case of each patch carries; None: all.

        Returns:
            Scalar: the mean Kullback-Leibler divergence, weighted over the outputs as the other losses; 0 if nothing is
            taught.
        """
        known = torch.tensor([channel is not None for channel in self.channels])
        taught = torch.zeros(1, len(known), dtype=torch.bool) if carried_BL is None else known & ~carried_BL.cpu()
        total = label_B1S.new_zeros((), dtype=torch.float32)
        if not bool(taught.any()):
            return total
        with torch.no_grad():
            frozen = self.network(image)
        pairs = zip(_listed(outputs), _listed(frozen), strict=True)
        for weight, (output, example) in zip(deep_supervision_weights(len(_listed(outputs))), pairs, strict=True):
            if weight:
                label = resize_label(label_B1S, output.shape[2:])
                total = total + weight * self.divergence(output, example, label, taught)
        return total

    def divergence(self, logits_BKS: Tensor, frozen_BKS: Tensor, label_B1S: Tensor, taught_BL: Tensor) -> Tensor:
        """Return the mean divergence of one output.

        Plain labels: over the voxels with the label 0, because a known label needs no teacher. Regions: over all voxels
        without the ignore label, and the regions that are taught.

        Args:
            logits_BKS: of the new network.
            frozen_BKS: of the frozen network, whose outputs are others.
            label_B1S: integer labels (B, 1, *S).
            taught_BL: (B, labels without background) bool, what is taught in each patch.
        """
        with torch.autocast(logits_BKS.device.type, enabled=False):
            logits, example = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits_BKS, frozen_BKS))
            example = self.placed(example)
            if self.labels.has_regions:
                target = example.sigmoid()
                found = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
                least = functional.binary_cross_entropy_with_logits(example, target, reduction="none")
                mask = None if self.labels.ignore is None else label_B1S != self.labels.ignore
                return masked_mean(found - least, mask, over_voxels(taught_BL, logits).to(logits.dtype))
            target = merged_logits(example, taught_BL).softmax(1)
            found = merged_logits(logits, taught_BL).log_softmax(1)
            divergence = functional.kl_div(found, target, reduction="none").sum(1, keepdim=True)
            here = (label_B1S == 0) & over_voxels(taught_BL.any(1, keepdim=True), logits)
            return masked_mean(divergence, here)

    def placed(self, frozen_BKS: Tensor) -> Tensor:
        """Return logits of the frozen network as outputs of the new one; NOTHING for new labels."""
        nothing = torch.full_like(frozen_BKS[:, :1], NOTHING)
        own = [nothing if channel is None else frozen_BKS[:, channel : channel + 1] for channel in self.channels]
        if self.labels.has_regions:
            return torch.cat(own, 1)
        rest = torch.cat([frozen_BKS[:, :1], *(frozen_BKS[:, channel : channel + 1] for channel in self.dropped)], 1)
        return torch.cat([rest.logsumexp(1, keepdim=True), *own], 1)


def read_teacher(path: Path, record: CheckpointRecord) -> tuple[Teacher, Checkpoint]:
    """Read the network that teaches a run.

    Args:
        path: its checkpoint.
        record: the new run's record.

    Raises:
        UserError: the file is no checkpoint of a run, or its architecture, channels or labels do not fit the new run.
    """
    checkpoint = read_checkpoint(path, trust=module_of(record.architecture.name))
    old = checkpoint.record
    given = f"teacher={path}"
    if _network_of(old.architecture) != _network_of(record.architecture):
        raise UserError(
            f"{given}: its network is {old.architecture.name} with other options than the new run's "
            f"{record.architecture.name}. Give the architecture group of that run."
        )
    if old.num_channels != record.num_channels:
        raise UserError(f"{given}: made for {old.num_channels} channel(s), the dataset has {record.num_channels}.")
    if old.labels.has_regions != record.labels.has_regions:
        raise UserError(f"{given}: one of the two has regions, the other plain labels. Declare both in the same way.")
    if not set(old.labels.names) & set(record.labels.names):
        raise UserError(
            f"{given}: knows the labels {', '.join(old.labels.names)}, none of which the dataset declares. Declare "
            "them in dataset.json, too, and the labels of the new cases in annotated_labels."
        )
    supervised = old.deep_supervision if record.recipe is None else record.recipe.deep_supervision
    network = build_network(
        old.architecture, old.configuration, old.num_channels, old.labels.num_classes, deep_supervision=supervised
    )
    try:
        network.load_state_dict(dict(checkpoint.weights))
    except RuntimeError:
        raise UserError(
            f"{given}: its weights do not fit its own plan with recipe.deep_supervision={str(supervised).lower()}. "
            "Give the value of that run."
        ) from None
    channels = channels_of(old.labels, record.labels.names)
    own = set(channels)
    first = 0 if old.labels.has_regions else 1
    dropped = tuple(channel for channel in range(first, old.labels.num_classes) if channel not in own)
    return Teacher(network.eval().requires_grad_(False), record.labels, channels, dropped), checkpoint


def channels_of(labels: LabelSet, names: Sequence[str]) -> tuple[int | None, ...]:
    """Return the output of a network for each name, None for a name that is none of its labels.

    Args:
        labels: the network's label set.
        names: labels without background.

    >>> channels_of(LabelSet(("liver", "spleen"), ((1,), (2,))), ["spleen", "kidney"])
    (2, None)
    """
    first = 0 if labels.has_regions else 1
    return tuple(labels.names.index(name) + first if name in labels.names else None for name in names)


def start_from_teacher(
    network: nn.Module, weights: Mapping[str, Tensor], build: Callable[[int], nn.Module], teacher: Teacher
) -> str:
    """Let a network begin as the frozen one: the same segmentation, with a share of the background for new labels.

    A new label has the weights of the background, as in the paper, plus the random ones of a new head. Without these,
    the features of its voxels would have no gradient, because those of the two labels would cancel each other out.

    Args:
        network: the new run's network, which gets the weights.
        weights: of the frozen network.
        build: builds the new network for a number of classes; tensors whose shape depends on it belong to the heads.
        teacher: the frozen network.

    Returns:
        A sentence that says what was loaded.
    """
    own, labels = network.state_dict(), teacher.labels
    heads = head_axes(own, build, labels.num_classes)
    new = [name for name, channel in zip(labels.names, teacher.channels, strict=True) if channel is None]
    started = dict(weights)
    for name, axis in heads.items():
        started[name] = _head(own[name], weights[name], axis, teacher)
    network.load_state_dict(started)
    kept = [name for name in labels.names if name not in new]
    return f"Labels that are kept: {', '.join(kept)}; added: {', '.join(new) or 'none'}."


def _head(own: Tensor, frozen: Tensor, axis: int, teacher: Teacher) -> Tensor:
    """Return a tensor of the new heads, whose outputs lie along an axis."""
    rows = list(teacher.channels)
    if teacher.labels.has_regions:
        parts = [
            (own if channel is None else frozen).narrow(axis, row if channel is None else channel, 1)
            for row, channel in enumerate(rows)
        ]
        return torch.cat(parts, axis)
    sources = torch.tensor([0, *(channel or 0 for channel in rows)])
    head = frozen.index_select(axis, sources)
    new = [row for row, channel in enumerate(rows, start=1) if channel is None]
    if not new:
        return head
    if head.ndim == 1:  # the bias: the background's exponential is divided among background and new labels
        head[new] += math.log(NEW_SHARE / len(new))
        head[0] += math.log(1 - NEW_SHARE)
    else:
        places = torch.tensor(new, dtype=torch.long)
        head.index_add_(axis, places, own.index_select(axis, places))
    return head


def _network_of(architecture: ArchitectureSettings) -> dict[str, object]:
    return {name: value for name, value in plain(architecture).items() if name != "scan_backend"}


def _listed(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
