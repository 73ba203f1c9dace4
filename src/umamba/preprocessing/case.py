"""Preprocess one case: from its raw image to the network's grid, with the facts needed to undo it.

The steps are in nnU-Net's order: turn to RAS if the plan's reader does so, transpose, crop to the nonzero region, cast
to float32, normalise, resample.
Background outside the nonzero mask gets the label -1.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from umamba.io import Geometry, Image, Turn, UserError, ras_turn, turned
from umamba.io.image import turned_geometry
from umamba.io.orientation import AS_STORED
from umamba.io.resources import memory_bytes
from umamba.labels import LabelSet
from umamba.planning import Configuration, Intensity, Plan, nonzero_box, nonzero_extent
from umamba.preprocessing.normalize import normalize_channel
from umamba.preprocessing.resample import resample_image, resample_label, resampled_shape

log = logging.getLogger(__name__)

OUTSIDE = -1  # label of background voxels outside the nonzero mask
_LONGEST = 1 << 17  # voxels of an axis after resampling: far more than any image has

Size = tuple[int, int, int]


@dataclass(frozen=True)
class CaseProperties:
    """The facts about the preprocessing of a case that are needed to undo it.

    Attributes:
        case_id: name of the case; empty for an image that is not from a dataset.
        geometry: geometry of the original image, in the axis order of the file.
        turn: what became of the axes of the file before all other steps; the plan axes are those of the turned image.
        shape_before_crop: original size in voxels, plan axes.
        bbox: first voxel and last voxel + 1 of the crop along each plan axis.
        shape_after_crop: size of the crop in voxels, plan axes, at the original spacing.
    """

    case_id: str
    geometry: Geometry
    shape_before_crop: Size
    bbox: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    shape_after_crop: Size
    turn: Turn = AS_STORED

    @property
    def seen_geometry(self) -> Geometry:
        """Geometry of the turned image, which the network sees."""
        return self.geometry if self.turn == AS_STORED else turned_geometry(self.geometry, self.turn)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "CaseProperties":
        """Read properties.

        Args:
            record: what `to_json` returned, with tuples or with the lists that JSON makes of them.
        """
        stored = record["geometry"].items()
        geometry: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in stored}
        low, middle, high = ((int(start), int(stop)) for start, stop in record["bbox"])
        return cls(
            case_id=record["case_id"],
            geometry=Geometry(**geometry),
            shape_before_crop=_size(record["shape_before_crop"]),
            bbox=(low, middle, high),
            shape_after_crop=_size(record["shape_after_crop"]),
            turn=_turn(record.get("turn")),
        )


def _turn(record: Mapping[str, Any] | None) -> Turn:
    if record is None:
        return AS_STORED
    first, second, third = (bool(flip) for flip in record["flipped"])
    return Turn(_size(record["axes"]), (first, second, third))


def _size(values: Any) -> Size:
    first, second, third = (int(value) for value in values)
    return first, second, third


def preprocess_case(
    image: Image,
    label: Image | None,
    plan: Plan,
    configuration: Configuration,
    labels: LabelSet,
    case_id: str = "",
) -> tuple[np.ndarray, np.ndarray | None, CaseProperties]:
    """Crop, normalise and resample an image, and crop and resample its label map.

    Args:
        image: (C, Z, Y, X) as read; it is not modified.
        label: (1, Z, Y, X) on the same grid, or None. If the plan's reader turns images, each is turned by its own
            direction, so that they may be stored in different orientations.
        plan: gives the reader, the axis order and the foreground intensities.
        configuration: gives spacing and normalisation. A 2D configuration keeps the spacing of the first plan axis.
        labels: the declared labels.
        case_id: name of the case, for the properties.

    Returns:
        The image (C, Z, Y, X) float32; the label map (1, Z, Y, X) int16 with -1 for background outside the nonzero
        mask, or None; and the properties. Image and label map have plan axes.

    Raises:
        UserError: the number of channels does not fit the plan, image and label map differ in shape, a label is not
            declared, a channel cannot be normalised, or a 2D image is to be turned.
    """
    geometry, turn = image.geometry, AS_STORED
    if plan.reader is not None:
        turn = ras_turn(geometry)
        image = turned(image, turn)
        label = None if label is None else turned(label, ras_turn(label.geometry))
    _check(image, label, configuration, labels)
    axes = (0, *(axis + 1 for axis in plan.transpose_forward))
    raw = image.array.transpose(axes)
    segmentation = valid = None
    if label is None and not any(configuration.use_mask_for_norm):
        box = nonzero_extent(raw)
    else:
        mask, box = nonzero_box(raw)
        segmentation = None if label is None else _segmentation(label, axes, box, mask[box])
        if any(configuration.use_mask_for_norm):
            valid = mask[box] if segmentation is None else segmentation[0] >= 0
    data = raw[(slice(None), *box)].astype(np.float32, order="C")
    for number, channel in enumerate(data):
        masked = configuration.use_mask_for_norm[number]
        intensity = plan.intensity[number] if number < len(plan.intensity) else None
        try:
            normalize_channel(channel, configuration.normalization[number], intensity, valid if masked else None)
        except UserError as error:
            raise UserError(f"channel {number}: {error}") from None
        if channel.min() == channel.max():
            _warn_of_constant(case_id, number, raw[(number, *box)], configuration.normalization[number], intensity)

    spacing = tuple(image.geometry.spacing[axis] for axis in plan.transpose_forward)
    target = spacing[: 3 - configuration.dim] + tuple(configuration.spacing)
    shape = tuple(max(1, size) for size in resampled_shape(data.shape[1:], spacing, target))
    needed = math.prod((len(data), *shape)) * data.itemsize
    large = f"{needed / 2**30:.4g} GiB and more than the {memory_bytes() / 2**30:.3g} GiB of memory here"
    if needed > memory_bytes() or max(shape) > _LONGEST:
        limit = large if needed > memory_bytes() else f"more than {_LONGEST} along an axis"
        raise UserError(
            f"the image would have {' x '.join(map(str, shape))} voxels at the plan's spacing, {limit}. Check the "
            f"spacing of the image, {', '.join(f'{mm:g}' for mm in spacing)} mm, and of the plan, "
            f"{', '.join(f'{mm:g}' for mm in target)} mm."
        )
    properties = CaseProperties(
        case_id=case_id,
        geometry=geometry,
        turn=turn,
        shape_before_crop=_size(raw.shape[1:]),
        bbox=tuple((extent.start, extent.stop) for extent in box),  # type: ignore[arg-type]
        shape_after_crop=_size(data.shape[1:]),
    )
    data = resample_image(data, shape, spacing, target)
    if segmentation is not None:
        segmentation = resample_label(segmentation, shape, spacing, target)
    return data, segmentation, properties


def _warn_of_constant(case_id: str, number: int, voxels: np.ndarray, scheme: str, intensity: Intensity | None) -> None:
    """Log a warning if the voxels of a channel (Z, Y, X), which normalisation has made constant, were not so before."""
    low, high = voxels.min(), voxels.max()
    if low == high:
        return
    limits = ""
    if scheme == "CTNormalization" and intensity is not None:
        limits = f" The plan clips to {intensity.percentile_00_5:g} to {intensity.percentile_99_5:g}."
    log.warning(
        "%s, channel %d: %s makes all voxels equal, although the file has %g to %g; the network sees nothing of it.%s "
        "Compare the units of this file with those of the training images, or choose another plan.normalization.",
        case_id or "An image",
        number,
        scheme,
        low,
        high,
        limits,
    )


def _segmentation(label: Image, axes: Sequence[int], box: tuple[slice, ...], inside: np.ndarray) -> np.ndarray:
    """Return the cropped label map with OUTSIDE for background outside the nonzero mask."""
    segmentation = label.array.transpose(axes)[(slice(None), *box)].astype(np.int16, order="C")
    if not inside.all():
        segmentation[0][~inside & (segmentation[0] == 0)] = OUTSIDE
    return segmentation


def _check(image: Image, label: Image | None, configuration: Configuration, labels: LabelSet) -> None:
    expected, found = len(configuration.normalization), len(image.array)
    if found != expected:
        raise UserError(f"the image has {found} channel(s), the plan was made for {expected}. Pass the same channels.")
    if label is None:
        return
    if label.array.shape[1:] != image.array.shape[1:]:
        raise UserError(
            f"the label's shape {label.array.shape[1:]} differs from the image's {image.array.shape[1:]} (Z, Y, X). "
            "Resample both onto one grid."
        )
    lowest, highest = label.array.min(), label.array.max()
    if lowest < 0 or highest > labels.all_values[-1]:
        raise UserError(
            f"the label holds values from {lowest:g} to {highest:g}; dataset.json declares 0 to "
            f"{labels.all_values[-1]}. Correct one of the two."
        )
