"""One case from its raw image to the network's grid, and what is needed to lead a result back (nnU-Net's order).

Cast to float32, transpose, crop to the nonzero region, normalise, resample. Background outside the nonzero mask gets
the label -1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from umamba.io import Geometry, Image, UserError
from umamba.labels import LabelSet
from umamba.planning import Configuration, Plan, nonzero_box
from umamba.preprocessing.normalize import normalize_channel
from umamba.preprocessing.resample import resample_image, resample_label, resampled_shape

OUTSIDE = -1  # label of background voxels outside the nonzero mask

Size = tuple[int, int, int]


@dataclass(frozen=True)
class CaseProperties:
    """What preprocessing did to a case, as far as undoing it needs.

    Attributes:
        case_id: name of the case; empty for an image that is not from a dataset.
        geometry: the original image's, in the axis order of the file.
        shape_before_crop: original size, transposed axes.
        bbox: first and last + 1 voxel of the crop along each transposed axis.
        shape_after_crop: size of the crop, transposed axes, original spacing.
    """

    case_id: str
    geometry: Geometry
    shape_before_crop: Size
    bbox: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    shape_after_crop: Size

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "CaseProperties":
        """Build from what `to_json` returned, before or after a trip through JSON."""
        stored = record["geometry"].items()
        geometry: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in stored}
        low, middle, high = ((int(start), int(stop)) for start, stop in record["bbox"])
        return cls(
            case_id=record["case_id"],
            geometry=Geometry(**geometry),
            shape_before_crop=_size(record["shape_before_crop"]),
            bbox=(low, middle, high),
            shape_after_crop=_size(record["shape_after_crop"]),
        )


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
    """Bring an image, and its label map if there is one, onto the grid of a plan's configuration.

    Args:
        image: (C, Z, Y, X) as read; it is not changed.
        label: (1, Z, Y, X) on the same grid, or None.
        plan: transposition and foreground intensities.
        configuration: spacing and normalisation. A 2D one leaves the spacing of the first transposed axis alone.
        labels: the declared labels.
        case_id: goes into the properties.

    Returns:
        Image (C, Z, Y, X) float32, label (1, Z, Y, X) int16 with -1 outside the nonzero mask (None without a label),
        both in transposed axes, and the properties.

    Raises:
        UserError: the number of channels does not fit the plan, image and label differ in shape, a label is not
            declared, or a channel cannot be normalised.
    """
    _check(image, label, configuration, labels)
    axes = (0, *(axis + 1 for axis in plan.transpose_forward))
    raw = image.array.transpose(axes)
    mask, box = nonzero_box(raw)
    data = raw[(slice(None), *box)].astype(np.float32, order="C")
    segmentation = _segmentation(label, axes, box, mask[box])
    valid = segmentation[0] >= 0 if any(configuration.use_mask_for_norm) else None
    for number, channel in enumerate(data):
        masked = configuration.use_mask_for_norm[number]
        intensity = plan.intensity[number] if number < len(plan.intensity) else None
        try:
            normalize_channel(channel, configuration.normalization[number], intensity, valid if masked else None)
        except UserError as error:
            raise UserError(f"channel {number}: {error}") from None

    spacing = tuple(image.geometry.spacing[axis] for axis in plan.transpose_forward)
    target = spacing[: 3 - configuration.dim] + tuple(configuration.spacing)
    shape = tuple(max(1, size) for size in resampled_shape(data.shape[1:], spacing, target))
    properties = CaseProperties(
        case_id=case_id,
        geometry=image.geometry,
        shape_before_crop=_size(raw.shape[1:]),
        bbox=tuple((extent.start, extent.stop) for extent in box),  # type: ignore[arg-type]
        shape_after_crop=_size(data.shape[1:]),
    )
    data = resample_image(data, shape, spacing, target)
    return data, None if label is None else resample_label(segmentation, shape, spacing, target), properties


def _segmentation(label: Image | None, axes: Sequence[int], box: tuple[slice, ...], inside: np.ndarray) -> np.ndarray:
    """Return the cropped label map (1, Z, Y, X) int16, zeros without one; background outside the mask is OUTSIDE."""
    if label is None:
        segmentation = np.zeros((1, *inside.shape), dtype=np.int16)
    else:
        segmentation = label.array.transpose(axes)[(slice(None), *box)].astype(np.int16, order="C")
    if not inside.all():
        segmentation[0][~inside & (segmentation[0] == 0)] = OUTSIDE
    return segmentation


def _check(image: Image, label: Image | None, configuration: Configuration, labels: LabelSet) -> None:
    expected, found = len(configuration.normalization), len(image.array)
    if found != expected:
        raise UserError(f"the image has {found} channel(s), the plan was made for {expected}. Give the same channels.")
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
            f"{labels.all_values[-1]}."
        )
