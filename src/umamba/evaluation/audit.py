"""Measure how a label map differs from a segmentation by networks that never saw it, one number a kind of label fault.

Networks make errors of their own, so that a difference is no proof. But each kind of fault leaves a trace that the
errors of a trained network seldom leave: two labels that are exchanged, a surface that lies a constant vector or a
constant distance away, a thick part that the other map does not have, a slice that is unlike its neighbours. Whether a
trace is large is decided by comparison with the other cases, in `audit_ranking`.

All lengths are in voxels, because annotators work on the grid of voxels. Memory: about 40 bytes for each voxel of the
box around all labels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from umamba.evaluation.audit_parts import THIN, Part, depth_of, differing_parts
from umamba.evaluation.overlap import dice, grown_box
from umamba.evaluation.surface_offset import surface_offset

FOREGROUND = -1  # stands for all labels together where a label value is expected
_MARGIN = 6  # voxels around the labels that are looked at
_SLICES = 5  # slices kept of a case


@dataclass(frozen=True)
class Offset:
    """Where the surface of a label lies relative to the segmentation's surface.

    Attributes:
        value: the label value, or `FOREGROUND`.
        shift_vox: displacement of the label along (Z, Y, X).
        growth_vox: distance by which the label's surface lies outside; below 0: inside.
    """

    value: int
    shift_vox: tuple[float, float, float]
    growth_vox: float


@dataclass(frozen=True)
class SliceDifference:
    """A slice in which label map and segmentation differ.

    Attributes:
        axis: of the stored array, across the slice: 0, 1 or 2 for Z, Y, X.
        index: of the slice.
        voxels: number of differing voxels.
        size: radius of the largest disc of differing voxels, relative to the largest disc of labelled voxels in any
            slice across this axis, times the mean margin.
    """

    axis: int
    index: int
    voxels: int
    size: float


@dataclass(frozen=True)
class CaseFacts:
    """What the comparison of a label map with its segmentation gives.

    Attributes:
        overlaps: label value -> DSC; values that are in neither map are left out.
        crossed: pair of label values -> share of the voxels that are one of them in both maps and not the same one.
        offsets: of each label and, if there are several, of all together; only labels that both maps have.
        parts: the largest differing parts first.
        slices: the most different slices first; none of a 2D image.
        thickness: label value -> logarithm of how many times as thick the label is as in the segmentation; only labels
            that both maps have.
    """

    overlaps: Mapping[int, float]
    crossed: Mapping[tuple[int, int], float]
    offsets: tuple[Offset, ...]
    parts: tuple[Part, ...]
    slices: tuple[SliceDifference, ...]
    thickness: Mapping[int, float]


def inspect_labels(
    given: np.ndarray, predicted: np.ndarray, margin: np.ndarray | None = None, ignore: int | None = None
) -> CaseFacts:
    """Compare a label map with the segmentation by networks that were not trained on it.

    Args:
        given: the label map, integers (Z, Y, X).
        predicted: the segmentation, integers of the same shape.
        margin: where the two differ, how much more the networks favour `predicted` than `given`, 0 to 1: difference of
            probabilities, or of the shares of networks that vote for each. (Z, Y, X); None: 1 everywhere.
        ignore: value of voxels in `given` that do not count.

    Raises:
        ValueError: the shapes differ.
    """
    if given.shape != predicted.shape:
        raise ValueError(f"label map {given.shape} and segmentation {predicted.shape} differ in shape")
    if ignore is not None:
        counted = given != ignore
        given, predicted = given * counted, predicted * counted
    frame = _Frame.around((given > 0) | (predicted > 0))
    if frame is None:
        return CaseFacts({}, {}, (), (), (), {})
    given, predicted = frame.cut(given), frame.cut(predicted)
    weight = None if margin is None else frame.cut(margin)
    values = [int(value) for value in np.union1d(np.unique(given), np.unique(predicted)) if value > 0]
    overlaps = {value: float(dice(predicted == value, given == value)) for value in values}
    offsets = [
        Offset(value, frame.whole(found[0]), found[1])
        for value in (values if len(values) == 1 else [FOREGROUND, *values])
        if (found := surface_offset(_is(given, value), _is(predicted, value))) is not None
    ]
    return CaseFacts(
        overlaps,
        _crossed(given, predicted, values),
        tuple(offsets),
        tuple(differing_parts(given, predicted, weight, frame.index)),
        tuple(_slices(given, predicted, weight, frame)),
        {
            value: math.log(thickness_vox(given == value) / thickness_vox(predicted == value))
            for value in values
            if (given == value).any() and (predicted == value).any()
        },
    )


def thickness_vox(mask: np.ndarray) -> float:
    """Return twice the number of voxels over the number of their faces to the outside: of a wide sheet its thickness.

    Args:
        mask: booleans of any number of axes, not all of them False; what lies beyond the array is outside.

    >>> round(thickness_vox(np.ones((3, 1000, 1000), dtype=bool)), 2)
    2.98
    """
    padded = np.pad(mask, 1).view(np.int8)
    faces = sum(int(np.count_nonzero(np.diff(padded, axis=axis))) for axis in range(mask.ndim))
    return 2 * int(np.count_nonzero(mask)) / faces


@dataclass(frozen=True)
class _Frame:
    """The box around all labels, without the axes along which the image has one voxel."""

    box: tuple[slice, ...]
    kept: tuple[int, ...]

    @classmethod
    def around(cls, mask: np.ndarray) -> "_Frame | None":
        found = ndimage.find_objects(mask.view(np.uint8))
        if not found:
            return None
        return cls(
            grown_box(found[0], mask.shape, _MARGIN),
            tuple(axis for axis, length in enumerate(mask.shape) if length > 1),
        )

    def cut(self, volume: np.ndarray) -> np.ndarray:
        part = volume[self.box]
        return part.reshape([part.shape[axis] for axis in self.kept])

    def whole(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Return values of the kept axes as those of Z, Y, X."""
        three = [0.0, 0.0, 0.0]
        for axis, value in zip(self.kept, values, strict=True):
            three[axis] = value
        return three[0], three[1], three[2]

    def index(self, place: Sequence[int]) -> tuple[int, int, int]:
        """Return a voxel of the cut volume as the voxel (z, y, x) of the image."""
        z, y, x = (int(value) + start.start for value, start in zip(self.whole(place), self.box, strict=True))
        return z, y, x


def _is(label_map: np.ndarray, value: int) -> np.ndarray:
    mask: np.ndarray = label_map > 0 if value == FOREGROUND else label_map == value
    return mask


def _crossed(given: np.ndarray, predicted: np.ndarray, values: Sequence[int]) -> dict[tuple[int, int], float]:
    both = (given > 0) & (predicted > 0)
    places = np.searchsorted(values, [given[both], predicted[both]])
    number = len(values)
    counts = np.bincount(places[0] * number + places[1], minlength=number**2).reshape(number, number)
    found = {}
    for first in range(number):
        for second in range(first + 1, number):
            crossed = int(counts[first, second] + counts[second, first])
            total = crossed + int(counts[first, first] + counts[second, second])
            if crossed:
                found[values[first], values[second]] = crossed / total
    return found


def _slices(
    given: np.ndarray, predicted: np.ndarray, weight: np.ndarray | None, frame: _Frame
) -> list[SliceDifference]:
    if given.ndim < 3:
        return []
    wrong, labelled = given != predicted, (given > 0) | (predicted > 0)
    found = []
    for axis in range(3):
        largest = max(radius for _, radius in _discs(labelled, axis))
        for index, radius in _discs(wrong, axis):
            plane = wrong.take(index, axis)
            margin = 1.0 if weight is None else float(weight.take(index, axis)[plane].mean())
            if radius > THIN:
                place = [0, 0, 0]
                place[axis] = index
                voxels = int(np.count_nonzero(plane))
                found.append(SliceDifference(axis, frame.index(place)[axis], voxels, radius / largest * margin))
    return sorted(found, key=lambda each: -each.size)[:_SLICES]


def _discs(mask: np.ndarray, axis: int) -> Iterator[tuple[int, float]]:
    """Yield each slice that is not empty, and the radius of the largest disc in it."""
    for index in range(mask.shape[axis]):
        plane = mask.take(index, axis)
        if plane.any():
            box = ndimage.find_objects(plane.view(np.uint8))[0]
            yield index, float(depth_of(plane[box]).max())


def length_vox(shift_vox: Sequence[float]) -> float:
    """Return the length of a shift in voxels."""
    return math.hypot(*shift_vox)
