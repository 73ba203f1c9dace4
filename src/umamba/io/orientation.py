"""Anatomical directions of an image's axes, from its direction matrix (SimpleITK: LPS, millimetres), and turns of them.

A turn permutes and reverses axes; no voxel is interpolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ORTHONORMAL_TOLERANCE = 1e-3  # headers round directions
_TOWARDS = ("RL", "AP", "IS")  # letters of the negative and the positive end of the patient's x, y and z axes


def axis_letters(direction_xyz: Sequence[float]) -> tuple[str, str, str]:
    """Return the anatomical direction in which each axis of an array (Z, Y, X) grows.

    Each patient axis is given to one array axis, the best-aligned pair first, so that oblique images get three
    different axes too.

    Args:
        direction_xyz: direction cosines of a 3D image as SimpleITK gives them, row by row: 9 entries.

    Returns:
        Letters for the axes (Z, Y, X): R or L, A or P, I or S. SimpleITK's identity direction gives ("S", "P", "L").

    Raises:
        ValueError: there are not 9 entries.
    """
    if len(direction_xyz) != 9:
        raise ValueError(f"9 direction cosines are needed, not {len(direction_xyz)}")
    matrix = np.asarray(direction_xyz, dtype=float).reshape(3, 3)  # column j: where array axis x, y or z points
    strength = np.abs(matrix)
    letters = [""] * 3
    for _ in range(3):
        patient, axis = divmod(int(strength.argmax()), 3)
        letters[axis] = _TOWARDS[patient][int(matrix[patient, axis] > 0)]
        strength[patient, :] = strength[:, axis] = -1
    return letters[2], letters[1], letters[0]


def is_orthonormal(axes: np.ndarray) -> bool:
    """Return whether the columns of a square matrix are perpendicular unit vectors, up to the rounding of headers.

    Args:
        axes: the matrix.
    """
    return bool(np.allclose(axes.T @ axes, np.eye(len(axes)), rtol=0, atol=_ORTHONORMAL_TOLERANCE))


@dataclass(frozen=True)
class Turn:
    """A permutation of the three array axes and the reversal of some.

    Attributes:
        axes: axis (Z, Y, X as 0, 1, 2) before the turn of each axis after it.
        flipped: whether each axis after the turn runs backwards.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (False, False, False)

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return an array with its last three axes turned, as a view.

        Args:
            array: (..., Z, Y, X).
        """
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        z, y, x = (slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return moved[..., z, y, x]

    @property
    def back(self) -> "Turn":
        """The turn that undoes this one."""
        z, y, x = (self.axes.index(axis) for axis in range(3))
        return Turn((z, y, x), (self.flipped[z], self.flipped[y], self.flipped[x]))


AS_STORED = Turn()


def turn_to_ras(direction_xyz: Sequence[float]) -> Turn:
    """Return the turn after which the array axes (Z, Y, X) grow towards superior, anterior and right.

    It is the turn of nibabel's as_closest_canonical and of nnU-Net's NibabelIOWithReorient.

    Args:
        direction_xyz: direction cosines of a 3D image as SimpleITK gives them, row by row: 9 entries.
    """
    from nibabel.orientations import io_orientation  # here, because loading nibabel takes half a second

    axes = np.diag([-1.0, -1.0, 1.0]) @ np.reshape(direction_xyz, (3, 3))
    found = io_orientation(np.block([[axes, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]))
    source = {int(patient): (axis, bool(sign < 0)) for axis, (patient, sign) in enumerate(found)}
    (x, flip_x), (y, flip_y), (z, flip_z) = (source[patient] for patient in range(3))
    return Turn((2 - z, 2 - y, 2 - x), (flip_z, flip_y, flip_x))


def turn_between(from_direction_xyz: Sequence[float], to_direction_xyz: Sequence[float]) -> Turn:
    """Return the turn that gives the axes of one image the order and direction of those of another.

    Args:
        from_direction_xyz: direction cosines of the image to turn.
        to_direction_xyz: those of the other.
    """
    first, second = turn_to_ras(from_direction_xyz), turn_to_ras(to_direction_xyz).back
    z, y, x = second.axes
    axes = (first.axes[z], first.axes[y], first.axes[x])
    flip_z, flip_y, flip_x = (
        first.flipped[axis] != flip for axis, flip in zip(second.axes, second.flipped, strict=True)
    )
    return Turn(axes, (flip_z, flip_y, flip_x))
