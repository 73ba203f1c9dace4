"""Convert numbered instances to the classes interior and boundary, and back (U-Mamba paper, section 3.1).

SciPy and scikit-image are loaded on first use, because they take a while to load and only cells need them.
"""

import numpy as np

from umamba.labels.instance_depth import instances_of_depth, level_count, small_numbers
from umamba.labels.label_set import LabelSet

BACKGROUND, INTERIOR, BOUNDARY = 0, 1, 2
COMPONENTS, WATERSHED = "components", "watershed"
# A part of an interior is a cell of its own if its centre is this much farther from the outline than the place where it
# joins a larger part, voxels. On 360 held-out segmentations of nuclei (five networks, three trainings of each, 24
# pictures), 0.5 to 1 did best; without it, a long nucleus has several maxima and falls into pieces.
_PROMINENCE = 1.0
_CRUMB = 0.1  # share of the median size in an image below which a cell is noise


def interior_and_boundary(instances: np.ndarray) -> np.ndarray:
    """Convert numbered instances to the classes that a semantic network learns.

    A pixel of an instance is boundary if it touches a pixel of another value, so that the interiors of neighbouring
    instances do not touch. An instance without any interior becomes interior as a whole, because it would be lost
    otherwise.

    Args:
        instances: (Y, X) integers, 0 is background.

    Returns:
        Classes (Y, X) uint8: 0 background, 1 interior, 2 boundary.

    Example:
        >>> interior_and_boundary(np.array([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]))
        array([[0, 0, 0, 0, 0],
               [2, 2, 2, 2, 2],
               [1, 1, 1, 1, 1],
               [1, 1, 1, 1, 1]], dtype=uint8)
    """
    from skimage.segmentation import find_boundaries

    classes = np.where(instances > 0, INTERIOR, BACKGROUND).astype(np.uint8)
    classes[find_boundaries(instances, mode="inner")] = BOUNDARY
    instances = small_numbers(instances)
    inside = np.zeros(int(instances.max(initial=0)) + 1, dtype=bool)
    inside[instances[classes == INTERIOR]] = True
    inside[0] = True
    classes[~inside[instances]] = INTERIOR
    return classes


def grouped_instances(classes: np.ndarray, labels: LabelSet | None, method: str) -> np.ndarray:
    """Convert the classes of a network to numbered instances.

    Args:
        classes: (Y, X) or (Z, Y, X), the classes of `labels`.
        labels: levels of depth, whose method is always the watershed; or interior and boundary, as None means.
        method: see `numbered_instances`.

    Returns:
        Instances int32 in the shape of `classes`, numbered from 1 on; 0 is background.
    """
    levels = 0 if labels is None else level_count(labels)
    if not levels and method == COMPONENTS:
        return numbered_instances(classes, method)
    return without_crumbs(instances_of_depth(classes, levels) if levels else numbered_instances(classes, method))


def without_crumbs(instances: np.ndarray) -> np.ndarray:
    """Return instances without those of less than a tenth of the median size, which are noise, numbered anew.

    Args:
        instances: integers of any shape, 0 is background.

    >>> without_crumbs(np.repeat([1, 0, 2, 0, 3], [20, 1, 1, 1, 30]))[[0, 21, -1]].tolist()
    [1, 0, 2]
    """
    numbers, place, sizes = np.unique(instances, return_inverse=True, return_counts=True)
    cells = numbers != 0
    kept = cells & (sizes >= _CRUMB * np.median(sizes[cells])) if cells.any() else cells
    return np.where(kept, np.cumsum(kept), 0)[place].reshape(instances.shape).astype(np.int32)


def numbered_instances(classes: np.ndarray, method: str) -> np.ndarray:
    """Convert a map of background, interior and boundary to numbered instances.

    Args:
        classes: (Y, X) or (Z, Y, X): 0 background, 1 interior, 2 boundary.
        method: "components" numbers the connected components of the interior (diagonal neighbours are connected) and
            omits the boundary; the paper's F1 score of cells uses it. "watershed" also splits a component at its
            narrowest place if the distance to the outline rises by a voxel or more on both sides of it, and assigns
            the boundary to the instances.

    Returns:
        Instances int32 in the shape of `classes`, numbered from 1 on; 0 is background.
    """
    from scipy import ndimage
    from skimage.measure import label as connected_components
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    interior = classes == INTERIOR
    parts = connected_components(interior, connectivity=classes.ndim)
    if method == COMPONENTS:
        return parts.astype(np.int32)
    # Smooth the distance to the outline, because a rough outline would give a cell several maxima.
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(interior), 1.0)
    levelled = reconstruction(np.maximum(depth - _PROMINENCE, 0), depth)
    peaks = local_maxima(np.where(interior, levelled, -1.0), connectivity=classes.ndim)
    centres = connected_components(peaks & interior, connectivity=classes.ndim)
    return watershed(-depth, centres, mask=classes > BACKGROUND).astype(np.int32)
