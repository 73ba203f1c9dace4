"""The planes in which a volume is drawn: radiological convention where directions are known, otherwise as stored.

Radiologists look from the patient's feet and from the front: the patient's right side is at the left of axial and
coronal pictures, the front is at the top of axial ones, the head is at the top of coronal and sagittal ones, and the
front is at the left of sagittal ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from umamba.io import Geometry
from umamba.io.orientation import axis_letters
from umamba.labels.masks import slice_areas

_PLANES = ("axial", "coronal", "sagittal")
_TOWARDS = ("I", "P", "L")  # where the three axes of a turned volume run to
_OPPOSITE = {"I": "S", "S": "I", "P": "A", "A": "P", "L": "R", "R": "L"}


def letters_of(geometry: Geometry) -> tuple[str, str, str] | None:
    """Return the anatomical directions in which the axes (Z, Y, X) of an image grow; None for a 2D file.

    Args:
        geometry: of the image.
    """
    return None if geometry.is_2d else axis_letters(geometry.direction_xyz)


@dataclass(frozen=True)
class View:
    """How a volume is turned before its planes are drawn.

    The turned volume has axes that run to the patient's feet, back and left, so that `turned[k]` is an axial,
    `turned[:, k]` a coronal and `turned[:, :, k]` a sagittal picture with its first row at the top.

    Attributes:
        order: the stored axis of each turned axis.
        flipped: whether each turned axis runs against the stored one.
        anatomical: whether the directions are known; otherwise the volume is left as it is stored.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (False, False, False)
    anatomical: bool = False

    @classmethod
    def of(cls, letters: Sequence[str] | None) -> "View":
        """Return the view of a volume.

        Args:
            letters: direction in which each stored axis grows, such as ("S", "P", "L"); None: not known.

        >>> View.of(("S", "P", "L")).flipped
        (True, False, False)
        """
        if letters is None:
            return cls()
        order = [next(i for i, own in enumerate(letters) if own in (to, _OPPOSITE[to])) for to in _TOWARDS]
        flipped = [letters[axis] != to for axis, to in zip(order, _TOWARDS, strict=True)]
        return cls((order[0], order[1], order[2]), (flipped[0], flipped[1], flipped[2]), True)

    def turn(self, volume: np.ndarray) -> np.ndarray:
        """Return a volume (..., Z, Y, X) with its last three axes turned, without a copy."""
        leading = volume.ndim - 3
        turned = volume.transpose(*range(leading), *(leading + axis for axis in self.order))
        steps = tuple(slice(None, None, -1 if flip else None) for flip in self.flipped)
        return turned[(..., *steps)]

    def turn_axes(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Return values of the stored axes, such as the spacing, in the turned order."""
        first, second, third = (values[axis] for axis in self.order)
        return first, second, third

    def stored_index(self, axis: int, index: int, size: int) -> int:
        """Return the index of a slice along its stored axis.

        Args:
            axis: the turned axis across the slice.
            index: of the slice in the turned volume.
            size: number of slices.
        """
        return size - 1 - index if self.flipped[axis] else index

    def name(self, axis: int) -> str:
        """Return the name of the plane across a turned axis."""
        return _PLANES[axis] if self.anatomical else f"axis {axis}, slice"

    def edges(self, axis: int) -> tuple[str, str, str, str]:
        """Return the letters at the left, right, top and bottom edge of a plane; empty if they are not known."""
        if not self.anatomical:
            return ("", "", "", "")
        down, right = (to for other, to in enumerate(_TOWARDS) if other != axis)
        return _OPPOSITE[right], right, _OPPOSITE[down], down


def planes_shown(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes across which slices are drawn: all three, or the one along which there is a single slice.

    Args:
        shape: of the volume, three axes.
    """
    single = [axis for axis, size in enumerate(shape) if size == 1]
    return tuple(single[:1]) or (0, 1, 2)


def largest_slice(mask: np.ndarray, axis: int) -> int:
    """Return the index of the slice with most voxels of a mask; the middle slice if the mask is empty.

    Args:
        mask: boolean, three axes.
        axis: across the slices.
    """
    areas = slice_areas(mask, axis)
    return int(areas.argmax()) if areas.any() else mask.shape[axis] // 2


def plane_size(shape: Sequence[int], spacing: Sequence[float], axis: int) -> tuple[float, float]:
    """Return the height and width of a plane in mm.

    Args:
        shape: of the volume in voxels.
        spacing: in mm, in the same order.
        axis: across the plane.
    """
    height, width = (shape[other] * spacing[other] for other in range(3) if other != axis)
    return height, width
