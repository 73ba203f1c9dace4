"""Numbered instances to classes that a semantic network learns: interior and boundary (paper, section 3.1)."""

import numpy as np
from skimage.segmentation import find_boundaries

BACKGROUND, INTERIOR, BOUNDARY = 0, 1, 2


def interior_and_boundary(instances: np.ndarray) -> np.ndarray:
    """Return the classes (Y, X) uint8 of numbered instances (Y, X): 0 background, 1 interior, 2 boundary.

    The boundary are the pixels of an instance that touch another value, so that interiors of neighbours stay apart. An
    instance too small to have an interior is interior as a whole, else it could not be found again.
    """
    classes = np.where(instances > 0, INTERIOR, BACKGROUND).astype(np.uint8)
    classes[find_boundaries(instances, mode="inner")] = BOUNDARY
    inside = np.zeros(int(instances.max(initial=0)) + 1, dtype=bool)
    inside[instances[classes == INTERIOR]] = True
    inside[0] = True
    classes[~inside[instances]] = INTERIOR
    return classes
