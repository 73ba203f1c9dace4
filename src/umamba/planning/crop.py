"""The box around what is not zero, with holes filled (nnU-Net: preprocessing/cropping/cropping.py)."""

import numpy as np
from scipy import ndimage

Box = tuple[slice, slice, slice]


def nonzero_box(array: np.ndarray) -> tuple[np.ndarray, Box]:
    """Return the mask of voxels where any channel is not 0, its holes filled, and the box around it.

    A hole is background that cannot reach the border of the image through faces of voxels. A slice of its own has none.
    An image of zeros only gets an empty mask and the box of the whole image.

    Args:
        array: (C, Z, Y, X).

    Returns:
        mask: (Z, Y, X) bool.
        box: slices of Z, Y, X.
    """
    mask = array[0] != 0
    for channel in array[1:]:
        mask |= channel != 0
    box = _box(mask)
    inside = mask[box]
    if not inside.all():
        # Outside the box everything is background, so holes can be told from within it.
        components, _ = ndimage.label(~inside)
        open_ones = np.zeros(components.max() + 1, dtype=bool)
        for axis in range(3):
            for end in (0, -1):
                open_ones[np.take(components, end, axis)] = True
        open_ones[0] = False  # the mask itself
        mask[box] = ~open_ones[components]
    return mask, box


def _box(mask: np.ndarray) -> Box:
    bounds = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        bounds.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else slice(0, mask.shape[axis]))
    return bounds[0], bounds[1], bounds[2]
