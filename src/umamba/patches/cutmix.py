"""CutMix: a box of the patch comes from a patch of another case, image and label together (arXiv 1905.04899).

The partner is drawn by a generator of its own, so that all other draws of the patch stay as they are without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torchio as tio
from torch import Tensor

from umamba.io import UserError
from umamba.patches.patch import AnySubject
from umamba.patches.spatial import IMAGES
from umamba.settings import AugmentationSettings
from umamba.settings.augmentation import CutMix


@dataclass(frozen=True)
class Partner:
    """The patch of another case.

    Attributes:
        image: (C, Z, Y, X) float32.
        label: (1, Z, Y, X), or (2, Z, Y, X) with the previous stage of a cascade; -1 outside.
        box: the part (Z, Y, X) that is pasted, at the same place.
    """

    image: Tensor
    label: Tensor
    box: tuple[slice, slice, slice]


def refuse_mixing(augmentation: AugmentationSettings) -> None:
    """Refuse CutMix for a dataset with partly labelled cases.

    Args:
        augmentation: the settings.

    Raises:
        UserError: CutMix is on.
    """
    if augmentation.cutmix.p:
        raise UserError(
            f"augmentation.cutmix.p={augmentation.cutmix.p:g}: mixes cases, and some cases do not carry all labels "
            "(annotated_labels), so that nobody knows what a mixed patch carries. Give augmentation.cutmix.p=0."
        )


def draw_box(
    patch_size: Sequence[int], edge: tuple[float, float], generator: np.random.Generator
) -> tuple[slice, slice, slice]:
    """Draw a box inside a patch; an axis of one voxel belongs to it whole.

    Args:
        patch_size: (Z, Y, X), voxels.
        edge: range of the box's edge relative to the patch's.
        generator: source of the draws.
    """
    found = []
    for size in patch_size:
        length = max(1, round(size * generator.uniform(*edge)))
        first = int(generator.integers(0, size - length, endpoint=True))
        found.append(slice(first, first + length))
    z, y, x = found
    return z, y, x


class PasteBox(tio.SpatialTransform):
    """Paste the box of a subject's `partner` into `image` and `label`; a subject without one stays as it is.

    Args:
        cutmix: probability and edge of the box, which the dataset draws with the partner.
        size: (Z, Y, X) of what it is applied to: the patch, with the border that later transforms need, voxels.
    """

    def __init__(self, cutmix: CutMix, size: Sequence[int]) -> None:
        super().__init__(copy=False)
        self.cutmix = cutmix
        self.size = tuple(size)

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Return the subject with the box of the other case."""
        partner: Any = subject.get("partner")
        if isinstance(partner, Partner):
            for name, other in zip(IMAGES, (partner.image, partner.label), strict=True):
                own = subject.get_image(name)
                mixed = own.data.clone()
                mixed[(slice(None), *partner.box)] = other[(slice(None), *partner.box)]
                own.set_data(mixed)
        return subject
