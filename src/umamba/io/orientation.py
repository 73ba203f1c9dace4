"""Anatomical directions of an image's axes, from its direction matrix (SimpleITK: LPS, millimetres)."""

from collections.abc import Sequence

import numpy as np

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
