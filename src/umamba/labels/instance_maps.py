"""Numbered instances to classes a semantic network learns, interior and boundary, and back (paper, section 3.1)."""

import numpy as np
from scipy import ndimage
from skimage.measure import label as connected_components
from skimage.segmentation import find_boundaries, watershed

BACKGROUND, INTERIOR, BOUNDARY = 0, 1, 2
COMPONENTS, WATERSHED = METHODS = ("components", "watershed")


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


def numbered_instances(classes: np.ndarray, method: str) -> np.ndarray:
    """Return the instances (Y, X) or (Z, Y, X) int32, from 1 on, of a map of the classes above.

    Args:
        classes: 0 background, 1 interior, 2 boundary.
        method: "components", the connected parts of the interior (corners touch), which the F1 of cells counts, without
            their boundaries; or "watershed", which parts touching interiors where they are narrowest, as far as the
            depth shows more than one centre, and gives each instance its share of the boundary.
    """
    interior = classes == INTERIOR
    parts = connected_components(interior, connectivity=classes.ndim)
    if method == COMPONENTS:
        return parts.astype(np.int32)
    # A smoothed depth has one maximum a cell; noise of the outline would give it several.
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(interior), 1.0)
    window = [5 if length > 1 else 1 for length in classes.shape]
    centres = connected_components(
        interior & (depth == ndimage.maximum_filter(depth, size=window)), connectivity=classes.ndim
    )
    return watershed(-depth, centres, mask=classes > BACKGROUND).astype(np.int32)
