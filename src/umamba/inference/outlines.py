"""Outlines of areas as polygons along the edges of pixels, so that a polygon's area is the number of its pixels."""

from collections import defaultdict

import numpy as np

Ring = list[tuple[int, int]]  # (x, y) corners of pixels; the first is repeated at the end
Polygon = list[Ring]  # the outer ring, then its holes


def polygons(mask: np.ndarray) -> list[Polygon]:
    """Return a polygon for each part of a mask; pixels that touch by a corner only belong to different parts.

    Args:
        mask: (Y, X) bool.

    Returns:
        Polygons in pixels; (0, 0) is the upper left corner of the first pixel. As GeoJSON (RFC 7946) wants it, outer
        rings turn against the clock with Y upwards, which is with the clock on the screen, and holes the other way.

    >>> polygons(np.array([[True, True], [False, False]]))
    [[[(0, 0), (2, 0), (2, 1), (0, 1), (0, 0)]]]
    """
    from scipy import ndimage  # takes a while to load

    parts, _ = ndimage.label(mask)
    found = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        rings = _rings(parts[box] == number, box[1].start, box[0].start)
        found.append(sorted(rings, key=_area, reverse=True))  # only the outer ring has a positive area
    return found


def _rings(mask: np.ndarray, left: int, top: int) -> list[Ring]:
    """Return the closed lines around a mask, with the mask on their right on the screen."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    leaving: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # corner -> steps that leave it
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # the pixel above is outside: its edge from left to right
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    for neighbour, (right, down), step in sides:
        for y, x in np.argwhere(inner & ~neighbour).tolist():
            leaving[x + right, y + down].append(step)
    rings = []
    while leaving:
        start = min(leaving)
        ring, place, step = [start], start, (0, 0)
        while True:
            steps = leaving[place]
            # Where two pixels touch by a corner, the left turn keeps the outer ring apart from the hole.
            left_turn = (step[1], -step[0])
            following = left_turn if left_turn in steps else steps[0]
            steps.remove(following)
            if not steps:
                del leaving[place]
            if following == step:
                ring.pop()
            place = (place[0] + following[0], place[1] + following[1])
            ring.append(place)
            step = following
            if place == start:
                break
        rings.append([(x + left, y + top) for x, y in ring])
    return rings


def _area(ring: Ring) -> float:
    """Return the area of a ring, negative if it turns against the clock on the screen."""
    x, y = np.array(ring, dtype=np.float64).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)
