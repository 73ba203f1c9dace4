"""The vector and the distance by which the surface of a label map lies away from that of another."""

import numpy as np
from scipy import ndimage

from umamba.evaluation.overlap import grown_box

_REACH = 6  # voxels; surface points farther from the other surface belong to missing or invented parts
_SMOOTHING = 1.0  # voxels; of the distances before their gradient is taken
_FEWEST = 8  # points of a surface of which an offset is computed
_RIDGE = 0.001  # share of the points; keeps a surface that faces one way only from giving a huge shift
_ROUNDS = 10  # of reweighting


def surface_offset(given: np.ndarray, predicted: np.ndarray) -> tuple[tuple[float, ...], float] | None:
    """Return the vector and the distance by which one surface lies away from another.

    At each point of the given surface the signed distance to the other surface is n·t + c, to first order, where n is
    the unit normal, t a shift of the object and c its growth. A robust fit over all points gives t and c.

    Args:
        given: boolean mask of any number of axes, each longer than 1.
        predicted: boolean mask of the same shape.

    Returns:
        t along each axis and c, in voxels; None if a mask is empty or has too few points near the other's surface.

    >>> disc = np.hypot(*np.ogrid[-15:16, -15:16]) < 9
    >>> shift, growth = surface_offset(np.roll(disc, 2, axis=1), disc)
    >>> [round(value) for value in (*shift, growth)]
    [0, 2, 0]
    """
    if not given.any() or not predicted.any():
        return None
    box = grown_box(ndimage.find_objects((given | predicted).view(np.uint8))[0], given.shape, _REACH)
    given, predicted = given[box], predicted[box]
    if given.all() or predicted.all():
        return None
    outside, inside = (ndimage.distance_transform_edt(mask) for mask in (~predicted, predicted))
    signed = np.where(predicted, 0.5 - inside, outside - 0.5).astype(np.float32)  # 0 between the voxels of a border
    inner = given & ~ndimage.binary_erosion(given, border_value=1)
    outer = ~given & ndimage.binary_dilation(given)
    distances = np.concatenate([signed[inner] + 0.5, signed[outer] - 0.5])
    smooth = ndimage.gaussian_filter(signed, _SMOOTHING)
    slopes = (np.gradient(smooth, axis=axis) for axis in range(smooth.ndim))
    normals = np.stack([np.concatenate([slope[inner], slope[outer]]) for slope in slopes], axis=1)  # (points, axes)
    lengths = np.linalg.norm(normals, axis=1)
    near = (np.abs(distances) <= _REACH) & (lengths > 0.1)  # the middle of a thin object has no direction
    if np.count_nonzero(near) < _FEWEST:
        return None
    normals = normals[near] / lengths[near, None]
    found = _robust_fit(np.concatenate([normals, np.ones((len(normals), 1))], axis=1), distances[near])
    return tuple(found[:-1].tolist()), float(found[-1])


def _robust_fit(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the solution of least squares in which residuals above a voxel count linearly (Huber's loss).

    So a part that is missing, or the place where a label leaks, does not pass for a shift of all of it.
    """
    system, wanted = rows.astype(np.float64), targets.astype(np.float64)
    weights = np.ones(len(system))
    found: np.ndarray = np.zeros(system.shape[1])
    for _ in range(_ROUNDS):
        weighted = system * weights[:, None]
        square = weighted.T @ system
        square[np.diag_indices(len(found) - 1)] += _RIDGE * len(system)
        found = np.linalg.solve(square, weighted.T @ wanted)
        weights = 1 / np.maximum(np.abs(wanted - system @ found), 1)
    return found
