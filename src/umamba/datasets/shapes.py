"""Signed distances of smooth shapes on the points of an image, each computed only where it can be painted.

Coordinates are the patient's in mm: x to the left, y to the back, z to the head (LPS). Arrays are (Z, Y, X).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

Field = np.ndarray
Points = tuple[Field, Field, Field]
Window = tuple[slice, slice, slice]
TALL = 1e9  # radius of an ellipsoid that is a cylinder, mm

_SPARE_MM = 0.1  # more than the rounding of a point


@dataclass(frozen=True)
class Grid:
    """The points at which an image is painted.

    Attributes:
        matrix: (3, 3), mm of a step along the columns, rows and slices.
        offset: (3,), mm of the centre of the first voxel.
        size: number of columns, rows and slices.
        subslices: number of points along the thickness of a slice.
        edge_mm: width of the edges that are painted: a point is touched by a shape up to half of it away.
    """

    matrix: np.ndarray
    offset: np.ndarray
    size: tuple[int, int, int]
    subslices: int
    edge_mm: float

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Number of points (Z, Y, X)."""
        columns, rows, slices = self.size
        return slices * self.subslices, rows, columns

    @cached_property
    def points(self) -> Points:
        """x, y and z of each point, float32."""
        steps, rows, columns = (np.arange(count) for count in self.shape)
        k, j, i = np.meshgrid((steps + 0.5) / self.subslices - 0.5, rows, columns, indexing="ij", sparse=True)
        x, y, z = (
            row[0] * i + row[1] * j + row[2] * k + first for row, first in zip(self.matrix, self.offset, strict=True)
        )
        return x.astype(np.float32), y.astype(np.float32), z.astype(np.float32)

    @property
    def everything(self) -> Window:
        """The whole image."""
        return slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2])

    def window(self, low: ArrayLike, high: ArrayLike) -> Window:
        """Return a part of the image with all points between two corners, and few others.

        Args:
            low: smallest x, y and z, mm; as far as one likes.
            high: largest.
        """
        ends = np.array(list(itertools.product(*((-0.5, count - 0.5) for count in self.size)))) @ self.matrix.T
        bounds = ends.min(axis=0) + self.offset, ends.max(axis=0) + self.offset
        sides = np.clip((np.subtract(low, _SPARE_MM), np.add(high, _SPARE_MM)), *bounds)
        corners = np.array(list(itertools.product(*sides.T)))
        indices = np.linalg.solve(self.matrix, (corners - self.offset).T).T
        indices[:, 2] = (indices[:, 2] + 0.5) * self.subslices - 0.5
        count = self.shape[::-1]
        first = np.clip(np.floor(indices.min(axis=0)), 0, count).astype(int)
        last = np.clip(np.ceil(indices.max(axis=0)) + 1, first, count).astype(int)
        x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Shape:
    """A shape in the part of the image that it touches.

    Attributes:
        window: the part; no point outside of it is nearer to the shape than half an edge.
        distance: signed distance in mm at each point of the window, negative inside.
    """

    window: Window
    distance: Field

    def shrunk(self, by: float) -> "Shape":
        """Return the shape with its surface moved inwards by mm."""
        return Shape(self.window, self.distance + by)

    def within(self, limit: Field) -> "Shape":
        """Return what the shape shares with another one, whose distance is given at each point of the image."""
        return Shape(self.window, np.maximum(self.distance, limit[self.window]))


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid, or a cylinder.

    Attributes:
        centre: x, y and z, mm.
        radii: along x, y and z, mm; `TALL` makes a cylinder.
        points: the points that its distance is computed at: those of the grid, or bent ones.
        sway: farthest that a bent point is from its point in the grid, along an axis, mm.
    """

    centre: Sequence[float]
    radii: Sequence[float]
    points: Points
    sway: float = 0.0

    def window(self, grid: Grid, beyond: float = 0.0) -> Window:
        """Return a window outside of which no point is nearer than half an edge and a margin.

        The first-order distance is at least (norm - 1) times the smallest radius, because the norm's slope is at most
        the norm over that radius.

        Args:
            grid: of the image.
            beyond: the margin, mm.
        """
        reach = np.multiply(self.radii, 1 + (grid.edge_mm / 2 + beyond) / min(self.radii)) + self.sway
        return grid.window(np.subtract(self.centre, reach), np.add(self.centre, reach))

    def on(self, window: Window) -> Field:
        """Return the first-order signed distance at the points of a window, mm."""
        axes = list(zip(self.points, np.asarray(self.centre, float), np.asarray(self.radii, float), strict=True))
        scaled = [(axis[window] - centre) / radius for axis, centre, radius in axes]
        steep = [value / radius for value, (_, _, radius) in zip(scaled, axes, strict=True)]
        norm = np.sqrt(sum(value * value for value in scaled) + np.float32(1e-6))
        slope = np.sqrt(sum(value * value for value in steep) + np.float32(1e-12))
        return norm * (norm - 1) / slope


def union(first: Ellipsoid, second: Ellipsoid, fillet: float, grid: Grid) -> Shape:
    """Return the smooth union of two ellipsoids.

    Args:
        first: an ellipsoid.
        second: another.
        fillet: width in mm where they meet; the union is at most a quarter of it nearer than both.
        grid: of the image.
    """
    windows = [each.window(grid, fillet / 4) for each in (first, second)]
    z, y, x = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(*windows, strict=True))
    one, other = first.on((z, y, x)), second.on((z, y, x))
    mix = np.clip(0.5 + 0.5 * (other - one) / fillet, 0, 1)
    return Shape((z, y, x), other + (one - other) * mix - fillet * mix * (1 - mix))
