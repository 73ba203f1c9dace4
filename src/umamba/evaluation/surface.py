"""Normalised surface distance (NSD): the share of two surfaces that lies within a tolerance of the other surface.

Surface elements are at the corner points of voxels. The area of an element is that of the marching-cubes triangles
through its eight neighbouring voxels (Nikolov et al., https://arxiv.org/abs/1809.04430). DeepMind's `surface-distance`
computes the same, and U-Mamba's official evaluation uses it. Objects are closed at the edge of the volume. A volume
with one slice is a slab one voxel thick whose two faces count as surface, as in the official scores of the 2D
benchmarks.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

_MAX_OFFSETS = 1500  # beyond this many neighbours a k-d tree is faster
_CORNERS = [(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)]


@cache
def _unit_triangles() -> tuple[np.ndarray, np.ndarray]:
    """Triangulate all 256 ways to fill a 2x2x2 neighbourhood, at unit spacing.

    A code and its complement have the same surface; the one with fewer filled corners is triangulated.

    Returns:
        The code of each triangle (n,), and its normal (n, 3), whose length is the triangle's area.
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
    """Return the surface area of each of the 256 possible 2x2x2 neighbourhoods, (256,) in mm².

    Bit 4z + 2y + x of a neighbourhood's code is set if the voxel at that corner is filled.

    Args:
        spacing: (Z, Y, X) in mm.
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


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the surfaces of two masks.

    Attributes:
        prediction_mm: distance from each surface element of the prediction to the truth's surface, mm; infinite above
            the limit.
        prediction_areas: areas of these elements, mm².
        truth_mm: distance from each surface element of the truth to the prediction's surface, mm.
        truth_areas: areas of these elements, mm².
    """

    prediction_mm: np.ndarray
    prediction_areas: np.ndarray
    truth_mm: np.ndarray
    truth_areas: np.ndarray

    def dice(self, tolerance_mm: float) -> float:
        """Return the NSD: the share of both surface areas at distances up to and including the tolerance."""
        near_truth = self.prediction_areas[self.prediction_mm <= tolerance_mm].sum()
        near_prediction = self.truth_areas[self.truth_mm <= tolerance_mm].sum()
        return float((near_truth + near_prediction) / (self.prediction_areas.sum() + self.truth_areas.sum()))

    def hausdorff(self, share: float = 0.95) -> float:
        """Return the Hausdorff distance in mm at a percentile, the larger of both sides.

        Args:
            share: share of each surface's area that lies within the distance; 0.95 gives HD95.
        """
        sides = ((self.prediction_mm, self.prediction_areas), (self.truth_mm, self.truth_areas))
        return max(_percentile(distances, areas, share) for distances, areas in sides)


def _percentile(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    order = np.argsort(distances, kind="stable")
    cumulated = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(int(np.searchsorted(cumulated, share)), len(order) - 1)])


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], limit_mm: float = math.inf
) -> SurfaceDistances | None:
    """Return the distances between the surfaces of two masks.

    Args:
        prediction: boolean mask (Z, Y, X).
        truth: boolean mask of the same shape.
        spacing: (Z, Y, X) in mm.
        limit_mm: distances above this limit are not computed and are infinite in the result.

    Returns:
        The distances; None if a mask is empty.
    """
    if not prediction.any() or not truth.any():
        return None
    # The box contains all surface points of both masks, so distances inside it are the true distances.
    box = ndimage.find_objects((prediction | truth).view(np.uint8))[0]
    codes = [_neighbour_codes(mask[box]) for mask in (prediction, truth)]
    surfaces = [(code != 0) & (code != 255) for code in codes]
    areas = surfel_areas(spacing)
    return SurfaceDistances(
        _distances(surfaces[0], surfaces[1], spacing, limit_mm),
        areas[codes[0][surfaces[0]]],
        _distances(surfaces[1], surfaces[0], spacing, limit_mm),
        areas[codes[1][surfaces[1]]],
    )


def surface_dice(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float) -> float:
    """Return the normalised surface distance (NSD) of two masks at a tolerance.

    Args:
        prediction: boolean mask (Z, Y, X).
        truth: boolean mask of the same shape.
        spacing: (Z, Y, X) in mm.
        tolerance_mm: distances up to and including this one count as agreement.

    Returns:
        The score from 0 to 1; NaN if both masks are empty, 0 if one of them is.

    >>> truth = np.zeros((4, 4, 8), dtype=bool)
    >>> truth[1:3, 1:3, 1:3] = True
    >>> shifted = np.roll(truth, 1, axis=2)
    >>> surface_dice(shifted, truth, (1.0, 1.0, 1.0), tolerance_mm=1.0)
    1.0
    """
    distances = surface_distances(prediction, truth, spacing, tolerance_mm)
    if distances is None:
        return 0.0 if prediction.any() or truth.any() else float("nan")
    return distances.dice(tolerance_mm)


def _distances(points: np.ndarray, other: np.ndarray, spacing: Sequence[float], limit_mm: float) -> np.ndarray:
    """Return the distance from each point of a mask to the nearest point of another; infinity above the limit.

    Most points have a near neighbour. Therefore offsets are tried in the order of their length, each for the points
    that have no neighbour yet. A k-d tree finds the neighbours of the few points that are far away.
    """
    offsets, lengths, reached_mm = _offsets(tuple(map(float, spacing)), limit_mm)
    margin = np.abs(offsets).max(axis=0)
    padded = np.pad(other, [(int(amount), int(amount)) for amount in margin])
    steps = offsets @ np.array(padded.strides)
    taken = padded.ravel()
    places = np.argwhere(points)
    flat = (places + margin) @ np.array(padded.strides)
    distances = np.full(len(flat), np.inf)
    left = np.arange(len(flat))
    for step, length in zip(steps, lengths, strict=True):
        found = taken[flat[left] + step]
        distances[left[found]] = length
        left = left[~found]
        if not len(left):
            return distances
    if reached_mm < limit_mm:
        scale = np.array(spacing, dtype=np.float64)
        others = np.argwhere(other)
        far = places[left]
        _, nearest = cKDTree(others * scale).query(far * scale)
        found_mm = np.sqrt(np.square((far - others[nearest]) * scale).sum(axis=1))
        distances[left] = np.where(found_mm <= limit_mm, found_mm, np.inf)
    return distances


@lru_cache(maxsize=64)
def _offsets(spacing: tuple[float, ...], limit_mm: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the offsets (n, 3) from a voxel up to a radius, their lengths in mm in ascending order, and the radius.

    The radius is the limit, or smaller if there would be too many offsets.
    """
    volume = _MAX_OFFSETS * float(np.prod(spacing))
    radius = min(limit_mm, (volume * 3 / (4 * math.pi)) ** (1 / 3))
    spans = [range(-int(radius / step) - 1, int(radius / step) + 2) for step in spacing]
    offsets = np.array(list(itertools.product(*spans)))
    lengths = np.sqrt(np.square(offsets * np.array(spacing)).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius]
    return offsets[order], lengths[order], radius
