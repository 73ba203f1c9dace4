"""Image, label and facts of a patch while it is made.

A TorchIO subject holds the same, but TorchIO checks and records it at each transform, which takes longer than reading
a small patch. The transforms of this package take both: a `tio.Subject`, as every TorchIO transform does, and a
`Patch`, which is what the workers give them.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torchio as tio
from torch import Tensor


class PatchImage:
    """The image or the label of a patch.

    Attributes:
        data: (C, Z, Y, X).
    """

    __slots__ = ("data",)

    def __init__(self, data: Tensor) -> None:
        self.data = data

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Size (Z, Y, X), voxels."""
        return tuple(self.data.shape[1:])

    def set_data(self, data: Tensor) -> None:
        """Replace the voxels (C, Z, Y, X)."""
        self.data = data


class Patch:
    """Image and label of a patch with further facts.

    Args:
        image: (C, Z, Y, X) float32.
        label: (1, Z, Y, X) integers; -1 outside the nonzero mask.
        facts: further entries, such as `case_id` and `matrix`.

    >>> patch = Patch(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.int16), case_id="case_1")
    >>> patch["case_id"], patch.get_image("label").spatial_shape
    ('case_1', (1, 2, 2))
    """

    __slots__ = ("facts", "images")

    def __init__(self, image: Tensor, label: Tensor, **facts: Any) -> None:
        self.images = {"image": PatchImage(image), "label": PatchImage(label)}
        self.facts = facts

    def get_image(self, name: str) -> PatchImage:
        """Return `image` or `label`."""
        return self.images[name]

    def __getitem__(self, name: str) -> Any:
        return self.facts[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.facts[name] = value

    def get(self, name: str) -> Any:
        """Return a fact; None if there is none of this name."""
        return self.facts.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self.facts

    def subject(self) -> tio.Subject:
        """Return the patch as a TorchIO subject with `image`, `label` and the facts; voxels are not copied."""
        images = {"image": tio.ScalarImage(tensor=self.images["image"].data)}
        return tio.Subject(**images, label=tio.LabelMap(tensor=self.images["label"].data), **self.facts)


# What a transform of this package takes and returns.
AnySubject = TypeVar("AnySubject", tio.Subject, Patch)


def apply_all(transforms: Iterable[Any], patch: Patch) -> Patch:
    """Apply transforms of this package in their order, with the draws that `tio.Compose` would make.

    Args:
        transforms: each is applied with its probability.
        patch: is changed in place where a transform does so.
    """
    torch.rand(1)  # the draw of tio.Compose, whose probability is 1
    for step in transforms:
        if torch.rand(1).item() <= step.probability:
            patch = step.apply_transform(patch)
    return patch
