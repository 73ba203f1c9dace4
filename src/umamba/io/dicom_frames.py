"""Where the frames of DICOM files lie, what their numbers mean, and whether they make one straight and even volume.

Classic files describe one frame, enhanced ones each of their frames (in functional groups), others state a distance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from umamba.io.dicom_pixels import declared_shape
from umamba.io.errors import UserError

_UNEVEN = 0.1  # largest allowed deviation from the median distance of slices, as a fraction of that distance
_SHIFTED = 0.5  # largest allowed shift of a slice in its own plane, in pixels
_UNEQUAL = 1e-3  # largest allowed difference of the spacings and directions of frames; headers round them
_SLICE_VECTOR = 0x00540080


@dataclass(frozen=True)
class Frame:
    """One slice of a DICOM file.

    Attributes:
        path: the file.
        index: number of the frame in it, from 0.
        position_xyz: centre of the first pixel in mm; None if the file does not say.
        axes_xyz: (2, 3), unit vectors along the rows and down the columns.
        spacing: (Y, X) in mm.
        thickness: declared distance of slices in mm, else their thickness, else 1.
        scale: slope and intercept of the values.
    """

    path: Path
    index: int
    position_xyz: np.ndarray | None
    axes_xyz: np.ndarray
    spacing: tuple[float, float]
    thickness: float
    scale: tuple[float, float]


def stack(source: Path, frames: Sequence[Frame]) -> tuple[list[int], np.ndarray, float]:
    """Put frames in the order of their positions and check that they make a straight, even grid.

    Args:
        source: file or folder that messages name.
        frames: the frames of one volume, in any order.

    Returns:
        Their order along the normal of the slices (row direction times column direction), that normal, and the
        distance of slices in mm.

    Raises:
        UserError: a frame has no position; spacing or orientation differ; slices are missing, doubled, or shifted
            against each other in their plane.
    """
    first = frames[0]
    normal = np.cross(*first.axes_xyz)
    if len(frames) == 1:
        return [0], normal, first.thickness
    for frame in frames:
        if frame.position_xyz is None:
            raise UserError(f"{frame.path}: the file states no position (Image Position (Patient)), so the slices of "
                            "the series cannot be put in order. Export it again.")  # fmt: skip
        same = np.allclose(frame.axes_xyz, first.axes_xyz, rtol=0, atol=_UNEQUAL)
        if not same or not np.allclose(frame.spacing, first.spacing, rtol=_UNEQUAL, atol=0):
            raise UserError(
                f"{source}: {'pixel spacing' if same else 'orientation'} of {_named(first, frame)} and "
                f"{_named(frame, first)} differ. Leave only the slices of one volume."
            )
    positions = np.stack([frame.position_xyz for frame in frames if frame.position_xyz is not None])
    along = positions @ normal
    order = along_normal(frames)
    distances = np.diff(along[order])
    usual = float(np.median(distances))
    wrong = np.flatnonzero(np.abs(distances - usual) > _UNEVEN * usual) if usual else np.arange(len(distances))
    if len(wrong):
        before, after = frames[order[wrong[0]]], frames[order[wrong[0] + 1]]
        what = "file" if before.path == after.path else "series"
        raise UserError(
            f"{source}: the slices of the DICOM {what} are not evenly spaced: {distances[wrong[0]]:.3g} mm between "
            f"{_named(before, after)} and {_named(after, before)}, {usual:.3g} mm elsewhere. Slices are missing or "
            "duplicated; export the series again."
        )
    offsets = positions[order] - positions[order[0]]
    shifts = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    if shifts.max() > _SHIFTED * min(first.spacing):
        angle = np.degrees(np.arctan2(shifts[-1], (offsets @ normal)[-1]))
        raise UserError(
            f"{source}: the slices are shifted against each other in their plane, up to {shifts.max():.3g} mm (a "
            f"gantry tilt of about {angle:.3g} degrees), so they make a sheared volume. Convert the series with "
            "dcm2niix, which writes a straightened image (NAME_Tilt), and use that."
        )
    return order, normal, float(np.mean(distances))


def along_normal(frames: Sequence[Frame]) -> list[int]:
    """Return the order of frames along the normal of the first one.

    Args:
        frames: the frames of one volume, with positions.
    """
    normal = np.cross(*frames[0].axes_xyz)
    along = [0.0 if frame.position_xyz is None else float(frame.position_xyz @ normal) for frame in frames]
    return sorted(range(len(frames)), key=lambda index: (along[index], index))


def _named(frame: Frame, other: Frame) -> str:
    return f"frame {frame.index + 1}" if frame.path == other.path else frame.path.name


def frames_of(path: Path, dataset: Dataset) -> list[Frame]:
    """Return position, directions, spacing and scale of each frame of a file.

    Args:
        path: the file.
        dataset: its content.

    Raises:
        ValueError: the file does not say where its frames lie, or a number is impossible.
    """
    count = declared_shape(dataset)[0]
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    if per_frame:
        if len(per_frame) != count:
            raise ValueError(f"it declares {count} frames and describes {len(per_frame)}")
        return [_frame(path, index, [group, shared, dataset]) for index, group in enumerate(per_frame)]
    detector = (dataset.get("DetectorInformationSequence") or [Dataset()])[0]  # nuclear medicine keeps positions there
    first = _frame(path, 0, [shared, dataset, detector])
    if count == 1:
        return [first]
    position = np.zeros(3) if first.position_xyz is None else first.position_xyz
    normal = np.cross(*first.axes_xyz)
    return [
        Frame(path, index, position + offset * normal, first.axes_xyz, first.spacing, first.thickness, first.scale)
        for index, offset in enumerate(_frame_offsets(dataset, count))
    ]


def _frame_offsets(dataset: Dataset, count: int) -> np.ndarray:
    """Return the distance in mm of each frame from the first, for files that do not describe each frame."""
    grid = dataset.get("GridFrameOffsetVector")  # radiotherapy dose
    if grid is not None:
        offsets = np.array([float(value) for value in grid])
        if len(offsets) != count:
            raise ValueError(f"it declares {count} frames and {len(offsets)} frame offsets")
        return offsets - offsets[0]
    pointer = dataset.get("FrameIncrementPointer")
    slices = pointer is None or pointer == _SLICE_VECTOR
    between = dataset.get("SpacingBetweenSlices")
    if not slices or not between:
        raise ValueError(
            f"it holds {count} frames and does not say where they lie; they may be moments in time rather than slices"
        )
    return np.arange(count) * float(between)


def _frame(path: Path, index: int, places: Sequence[Dataset]) -> Frame:
    """Return one frame; each property is from the first dataset that states it, directly or in a functional group."""
    position = _stated(places, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _stated(places, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _stated(places, "PixelMeasuresSequence", "PixelSpacing") or _stated(places, "", "ImagerPixelSpacing")
    between = _stated(places, "PixelMeasuresSequence", "SpacingBetweenSlices")
    thickness = _stated(places, "PixelMeasuresSequence", "SliceThickness")
    slope = _stated(places, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = _stated(places, "PixelValueTransformationSequence", "RescaleIntercept")
    dose = _stated(places, "", "DoseGridScaling")
    axes = np.array([float(value) for value in orientation or (1, 0, 0, 0, 1, 0)]).reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    if not np.allclose(lengths, 1, rtol=0, atol=1e-2) or abs(float(axes[0] @ axes[1])) > 1e-2:
        raise ValueError(f"its orientation {[round(value, 4) for value in axes.ravel().tolist()]} is no right angle")
    axes = axes / lengths
    in_plane = [float(value) for value in spacing or (1, 1)]
    scale = (float(1 if slope is None else slope), float(intercept or 0))
    if dose is not None:
        scale = (float(dose), 0.0)
    if len(in_plane) != 2 or not all(np.isfinite(value) and value > 0 for value in in_plane):
        raise ValueError(f"its pixel spacing {in_plane} is not positive")
    if not np.isfinite(scale).all() or scale[0] == 0:
        raise ValueError(f"its rescale slope {scale[0]} and intercept {scale[1]} give no values")
    where = None if position is None else np.array([float(value) for value in position])
    if where is not None and (where.shape != (3,) or not np.isfinite(where).all()):
        raise ValueError(f"its position {where.tolist()} is no point")
    distance = abs(float(between or thickness or 1)) or 1.0
    return Frame(path, index, where, axes, (in_plane[0], in_plane[1]), distance, scale)


def _stated(places: Sequence[Dataset], group: str, keyword: str) -> Any:
    for place in places:
        inner = place.get(group) if group else None
        for dataset in [*inner, place] if inner else [place]:
            value = dataset.get(keyword)
            if value is not None and value != "":
                return value
    return None
