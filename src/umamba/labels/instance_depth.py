"""Convert numbered instances to classes by their depth below the outline, and back (watershed of the predicted depth).

The depth of a voxel is its distance to the outline over the largest distance in the instance, so that small and large
instances reach the same. It is divided into levels, which are ordinary labels that any backbone learns with any loss
of labels (after the energy levels of Bai and Urtasun, 2017, https://arxiv.org/abs/1611.08303). Unlike interior and
boundary, a gap in the predicted outline does not join two instances as long as their inner levels stay apart. SciPy and
scikit-image are loaded on first use.
"""

import numpy as np

from umamba.labels.label_set import LabelSet

LEVELS = 4
DEPTH_CLASSES = tuple(f"depth {level}" for level in range(1, LEVELS + 1))


def depth_levels(instances: np.ndarray, levels: int = LEVELS) -> np.ndarray:
    """Convert numbered instances to levels of depth.

    The edge of the image is no outline, because an instance continues there.

    Args:
        instances: (Y, X) or (Z, Y, X) integers, 0 is background.
        levels: number of levels.

    Returns:
        Classes uint8 in the same shape: 0 background, 1 at the outline to `levels` inside. Each instance has the
        highest level.

    >>> depth_levels(np.array([[0, 1, 1, 1, 1, 1, 1, 1, 0, 2]])).tolist()
    [[0, 1, 2, 3, 4, 3, 2, 1, 0, 4]]
    """
    from scipy import ndimage

    classes = np.zeros(instances.shape, dtype=np.uint8)
    instances = small_numbers(instances)
    for number, box in enumerate(ndimage.find_objects(instances), start=1):
        if box is None:
            continue
        around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        mask = instances[around] == number
        depth = ndimage.distance_transform_edt(mask) if not mask.all() else mask.astype(np.float64)
        classes[around][mask] = np.ceil(depth[mask] * (levels / depth.max()) - 1e-9).astype(np.uint8)
    return classes


def small_numbers(instances: np.ndarray) -> np.ndarray:
    """Return instances without numbers above the number of voxels, because tables of all numbers would not fit.

    Args:
        instances: integers of any shape, 0 is background.

    Returns:
        The same array if its numbers are small; otherwise a copy that is numbered 1, 2, 3, ... in the same order.

    >>> small_numbers(np.array([0, 4_000_000_000, 7, 7])).tolist()
    [0, 2, 1, 1]
    """
    if int(instances.max(initial=0)) <= instances.size:
        return instances
    numbers, place = np.unique(instances, return_inverse=True)
    return place.reshape(instances.shape) + 1 - np.searchsorted(numbers, 0, side="right")


def level_count(labels: LabelSet) -> int:
    """Return the number of levels of labels that are levels of depth, named so; 0 for other labels.

    Args:
        labels: the label set.

    >>> level_count(LabelSet(DEPTH_CLASSES, ((1,), (2,), (3,), (4,)))), level_count(LabelSet(("liver",), ((1,),)))
    (4, 0)
    """
    count = len(labels.names)
    levels = range(1, count + 1)
    named = labels.names == tuple(f"depth {level}" for level in levels)
    return count if named and count > 1 and labels.values == tuple((level,) for level in levels) else 0


def instances_of_depth(classes: np.ndarray, levels: int = LEVELS) -> np.ndarray:
    """Convert levels of depth to numbered instances by a watershed that starts at the deepest places.

    Each connected part of the highest level is an instance. So is a part of a lower level in which none was found, if
    the level is in the upper half; what is shallower everywhere is noise. The others' voxels flow to the instance that
    is reached over the deepest levels (diagonal neighbours are connected).

    Args:
        classes: (Y, X) or (Z, Y, X), 0 background, 1 to `levels`.
        levels: number of levels.

    Returns:
        Instances int32 in the shape of `classes`, numbered from 1 on; 0 is background.
    """
    from skimage.measure import label as connected_components
    from skimage.segmentation import watershed

    centres = np.zeros(classes.shape, dtype=np.int32)
    for level in range(levels, levels // 2, -1):
        parts = connected_components(classes >= level, connectivity=classes.ndim)
        new = (parts > 0) & ~np.isin(parts, np.unique(parts[centres > 0]))
        centres[new] = connected_components(new, connectivity=classes.ndim)[new] + centres.max()
    neighbours = np.ones((3,) * classes.ndim, dtype=bool)
    return watershed(-classes.astype(np.int32), centres, connectivity=neighbours, mask=classes > 0).astype(np.int32)
