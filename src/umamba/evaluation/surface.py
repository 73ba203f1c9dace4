"""Normalised surface distance (NSD): the share of both surfaces that lies within a tolerance of the other one.

Surface elements sit at the corner points of voxels, and each has the area of the marching-cubes triangles through its
eight neighbours (Nikolov et al., https://arxiv.org/abs/1809.04430, as in DeepMind's `surface-distance`, which the
official evaluation of U-Mamba uses). Objects are closed at the edge of the volume. A volume of one slice is a slab one
voxel thick, whose two faces count as surface, as in the official scores of the 2D benchmarks.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import ndimage
from skimage.measure import marching_cubes

_CORNERS = [(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)]


@cache
def _unit_triangles() -> tuple[np.ndarray, np.ndarray]:
    """Triangulate all 256 ways to fill a 2x2x2 neighbourhood, at unit spacing.

    A code and its complement have the same surface: the one with fewer filled corners is triangulated. Returns the
    code of each triangle (n,) and its normal (n, 3), as long as its area.
    """
    codes, normals = [], []
    for code in range(1, 255):
        filled = code if code.bit_count() <= 4 else 255 - code
        volume = np.array([filled >> bit & 1 for bit in range(8)], dtype=np.float32).reshape(2, 2, 2)
        vertices, faces, _, _ = marching_cubes(volume, 0.5, method="lorensen", allow_degenerate=False)
        a, b, c = vertices[faces].astype(np.float64).swapaxes(0, 1)
        normals.append(0.5 * np.cross(b - a, c - a))
        codes.append(np.full(len(faces), code))
    return np.concatenate(codes), np.concatenate(normals)


def surfel_areas(spacing: Sequence[float]) -> np.ndarray:
    """Return the surface area in mm² of each of the 256 neighbourhoods, (256,).

    Bit 4z + 2y + x of a code says whether the voxel at that corner of the 2x2x2 neighbourhood is filled.
    """
    codes, normals = _unit_triangles()
    depth, height, width = map(float, spacing)
    areas = np.linalg.norm(normals * (height * width, depth * width, depth * height), axis=1)
    return np.bincount(codes, weights=areas, minlength=256)


def _neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """Return the code of each corner point of a mask (Z, Y, X): (Z+1, Y+1, X+1) uint8."""
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([length - 1 for length in padded.shape], dtype=np.uint8)
    for bit, corner in enumerate(_CORNERS):
        window = tuple(slice(start, start + length) for start, length in zip(corner, codes.shape, strict=True))
        codes |= padded[window] << np.uint8(bit)
    return codes


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    return ndimage.find_objects(mask.view(np.uint8))[0]


def surface_dice(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float) -> float:
    """Return the NSD of two boolean masks (Z, Y, X) at a tolerance.

    Args:
        prediction: mask (Z, Y, X).
        truth: mask of the same shape.
        spacing: (Z, Y, X) in mm.
        tolerance_mm: distances up to and including this count as agreement.

    Returns:
        The score from 0 to 1; NaN if both masks are empty, 0 if one is.
    """
    either = prediction | truth
    if not either.any():
        return float("nan")
    if not prediction.any() or not truth.any():
        return 0.0
    # All surface points of both masks lie in the common box, so the distances within it are the true ones.
    box = _bounding_box(either)
    codes_prediction, codes_truth = _neighbour_codes(prediction[box]), _neighbour_codes(truth[box])
    areas = surfel_areas(spacing)
    near_truth, area_prediction = _within(codes_prediction, codes_truth, areas, spacing, tolerance_mm)
    near_prediction, area_truth = _within(codes_truth, codes_prediction, areas, spacing, tolerance_mm)
    return float((near_truth + near_prediction) / (area_prediction + area_truth))


def _within(
    codes: np.ndarray, others: np.ndarray, areas: np.ndarray, spacing: Sequence[float], tolerance_mm: float
) -> tuple[float, float]:
    """Return the area of a surface within the tolerance of another, and the whole of its area."""
    on_surface = (codes != 0) & (codes != 255)
    off_other = (others == 0) | (others == 255)
    distance = ndimage.distance_transform_edt(off_other, sampling=spacing)[on_surface]
    area = areas[codes[on_surface]]
    return float(area[distance <= tolerance_mm].sum()), float(area.sum())
