"""Signs of how far to trust a segmentation, gathered while the networks' logits are in memory.

Several networks agree more or less with each other. One network is compared with itself: mirrored along each axis that
training mirrored, and with other tiles. For every pair of these views it is counted how many voxels have which label in
the one and which in the other. All Dice coefficients follow from these counts, so that nothing of an image is kept. The
entropy is that of the mean probability of all views, in the voxels that are segmented.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from umamba.inference.canvas import Slab, mean_probabilities
from umamba.inference.decision import decide_labels
from umamba.inference.resize import VoxelBox, parts
from umamba.inference.slabs import View
from umamba.inference.tiling import tile_starts
from umamba.io import UserError, read_json
from umamba.labels import LabelSet
from umamba.settings.validate import read_record

# Values of all heads that are in memory at a time beside the logits.
_VALUES_AT_ONCE = 1 << 22
Sign = dict[str, float | None]


@dataclass(frozen=True)
class CaseSigns:
    """The signs of one case, which a file beside its segmentation holds.

    Attributes:
        views: whose agreement was measured: several networks, or views of one network.
        networks: number of networks.
        labels: label -> disagreement, entropy and confidence, each from 0 to 1; None: the label was not found.
        distances: of the image from those of training, see `likeness.distances`.
        differences: sentences that say how the image is unlike those of training.
    """

    views: Literal["networks", "one network"]
    networks: int
    labels: Mapping[str, Any]
    distances: Mapping[str, Any]
    differences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the signs as plain values."""
        return {
            "views": self.views,
            "networks": self.networks,
            "labels": {name: dict(signs) for name, signs in self.labels.items()},
            "distances": dict(self.distances),
            "differences": list(self.differences),
        }

    @classmethod
    def read(cls, path: Path) -> "CaseSigns":
        """Read the signs of a case.

        Args:
            path: the JSON file.

        Raises:
            UserError: the file is missing or holds something else.
        """
        remedy = f"Delete {path.name}, and the same command makes it again."
        try:
            found = read_record(cls, read_json(path))
        except UserError as error:
            raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')} {remedy}") from None
        signs = [value for own in found.labels.values() if isinstance(own, Mapping) for value in own.values()]
        whole = all(isinstance(own, Mapping) for own in found.labels.values())
        numbers = [*(value for value in signs if value is not None), *found.distances.values()]
        if not whole or any(isinstance(value, bool) or not isinstance(value, int | float) for value in numbers):
            raise UserError(f"{path}: holds no signs of labels. {remedy}")
        return found


def further_views(views: Sequence[View], tile_step_size: float) -> tuple[View, ...]:
    """Return the further views of a single network, with which its segmentation is compared; several have none.

    There are none, either, where training mirrored no axis and a single tile covers the image.

    Args:
        views: the image as each network sees it.
        tile_step_size: of the sliding window. The view with other tiles takes steps of twice the size, at most 1.
    """
    if len(views) > 1:
        return ()
    view = views[0]
    first = 3 - view.model.configuration.dim
    axes = [view.model.plan.transpose_forward[axis + first] for axis in view.model.flipped_axes(tta=True)]
    coarse = min(1.0, 2 * tile_step_size)
    other_tiles = any(
        tile_starts(max(length, patch), patch, coarse) != tile_starts(max(length, patch), patch, tile_step_size)
        for length, patch in zip(view.image.shape[1:], view.model.window, strict=True)
        if patch > 1  # a network of slices sees the same slices
    )
    found = [replace(view, flip=axis) for axis in axes]
    return (*found, replace(view, tile_step_size=coarse)) if other_tiles else tuple(found)


class Agreement:
    """Counts of the views' labels, box by box; one thread at a time adds boxes, in any order."""

    def __init__(self, labels: LabelSet, deciding: int, views: int) -> None:
        """Begin with empty counts.

        Args:
            labels: the label set.
            deciding: the first views, whose mean probability decides the segmentation.
            views: all views.
        """
        self._labels, self._deciding = labels, deciding
        size = len(labels.all_values)
        self._both = {pair: np.zeros((size, size), dtype=np.int64) for pair in combinations(range(views), 2)}
        self._voxels, self._entropy, self._confidence = (np.zeros(size, dtype=np.float64) for _ in range(3))

    def add(self, box: VoxelBox, slabs: Sequence[Slab]) -> None:
        """Count a box of the crop; voxels beyond the crop are background for all views, and do not count.

        Args:
            box: part of the crop.
            slabs: the logits of each view for it.
        """
        heads = self._labels.num_classes
        for part in parts(box, max(1, _VALUES_AT_ONCE // heads)):
            sums: list[Tensor] = []  # that logits are finite is looked at where labels are decided
            maps: list[np.ndarray] = []
            total, decided, sure = None, np.empty(0), np.empty(0)
            for number, slab in enumerate(slabs, start=1):
                own = mean_probabilities([slab], part, self._labels, sums)
                maps.append(self._decided(own))
                total = own if total is None else total.add_(own)
                if number == self._deciding:
                    mean = total / number
                    decided = maps[0] if number == 1 else self._decided(mean)
                    sure = self._confidence_of(mean)
            assert total is not None
            self._count(maps, decided, sure, self._entropy_of(total.div_(len(slabs))))

    def _decided(self, probabilities: Tensor) -> np.ndarray:
        """Return the labels (voxels,) of probabilities (heads, z, y, x)."""
        found = decide_labels(len(probabilities), probabilities.__getitem__, self._labels, threshold=0.5)
        return found.cpu().numpy().ravel()

    def _confidence_of(self, mean: Tensor) -> np.ndarray:
        if self._labels.has_regions:
            return torch.maximum(mean, 1 - mean).mean(0).cpu().numpy().ravel()
        return mean.amax(0).cpu().numpy().ravel()

    def _entropy_of(self, mean: Tensor) -> np.ndarray:
        """Return the entropy (voxels,) of probabilities (heads, z, y, x), from 0 to 1."""
        entropy = torch.special.entr(mean)
        if self._labels.has_regions:
            return (entropy + torch.special.entr(1 - mean)).mean(0).div_(math.log(2)).cpu().numpy().ravel()
        return entropy.sum(0).div_(math.log(len(mean))).cpu().numpy().ravel()

    def _count(self, maps: Sequence[np.ndarray], decided: np.ndarray, sure: np.ndarray, entropy: np.ndarray) -> None:
        size = len(self._voxels)
        for one, two in self._both:
            counts = np.bincount(maps[one].astype(np.int64) * size + maps[two], minlength=size * size)
            self._both[one, two] += counts.reshape(size, size)
        self._voxels += np.bincount(decided, minlength=size)
        self._confidence += np.bincount(decided, weights=sure, minlength=size)
        self._entropy += np.bincount(decided, weights=entropy, minlength=size)

    def signs(self) -> dict[str, Sign]:
        """Return the signs of each label.

        Returns:
            Label -> disagreement (1 - the mean Dice coefficient of the pairs of views; None if there is a single view),
            entropy and confidence (highest probability, of regions that of each region being there or not), means over
            the segmented voxels. All are None where the segmentation does not have the label.
        """
        found: dict[str, Sign] = {}
        for name, values in zip(self._labels.names, self._labels.values, strict=True):
            own = list(values)
            voxels = float(self._voxels[own].sum())
            if not voxels:
                found[name] = dict.fromkeys(("disagreement", "entropy", "confidence"))
                continue
            scores = [score for both in self._both.values() if (score := self._dice(both, own)) is not None]
            found[name] = {
                "disagreement": 1 - float(np.mean(scores)) if scores else None,
                "entropy": float(self._entropy[own].sum() / voxels),
                "confidence": float(self._confidence[own].sum() / voxels),
            }
        return found

    @staticmethod
    def _dice(both: np.ndarray, values: list[int]) -> float | None:
        """Return the Dice coefficient of a label or region; None if neither view has it."""
        total = int(both[values].sum() + both[:, values].sum())
        return 2 * int(both[np.ix_(values, values)].sum()) / total if total else None
