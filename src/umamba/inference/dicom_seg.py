"""DICOM SEG through highdicom: one bit for each segment and voxel, or a label map (PS3.3 A.51 and its label map)."""

import logging
import warnings
from collections.abc import Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset
from skimage.color import rgb2lab

from umamba.inference.dicom_objects import (
    MANUFACTURER,
    MODEL_NAME,
    Maker,
    Segment,
    Source,
    code_item,
    highdicom_arguments,
    schemes,
)
from umamba.io import UserError
from umamba.io.dicom_planes import headers_of
from umamba.labels.codes import Code

_FAMILY = Code("123110", "DCM", "Artificial Intelligence")


def segmentation_object(
    source: Source, segmentation: np.ndarray, segments: Sequence[Segment], maker: Maker, *, as_map: bool
) -> Dataset:
    """Return a segmentation as a DICOM object.

    Args:
        source: the series that was segmented.
        segmentation: label map (Z, Y, X), a slice for each plane of the source.
        segments: the labels.
        maker: what made the segmentation.
        as_map: a label map instead of a bit for each segment and voxel.

    Raises:
        UserError: highdicom cannot refer to the series, because it lacks something.
    """
    headers = headers_of(source.planes)
    planes = segmentation
    if len(headers) == 1 and len(source.planes) > 1:  # highdicom wants the frames in the order of the file
        planes = np.empty_like(segmentation)
        for plane, values in zip(source.planes, segmentation, strict=True):
            planes[plane.frame.index] = values
    overlapping = len({value for segment in segments for value in segment.values}) < sum(
        len(segment.values) for segment in segments
    )
    if as_map or not (overlapping or any(len(segment.values) > 1 for segment in segments)):
        pixels = planes.astype(np.uint8 if planes.max(initial=0) < 256 else np.uint16, copy=False)
    else:
        pixels = np.stack([segment.mask(planes) for segment in segments], axis=-1).astype(np.uint8)
    logging.getLogger("highdicom").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of identifiers in the source that are not quite as the standard wants
            made = Segmentation(
                source_images=headers,
                pixel_array=pixels,
                segmentation_type="LABELMAP" if as_map else "BINARY",
                segment_descriptions=[_description(segment, maker) for segment in segments],
                content_description=source.description,
                content_label="SEGMENTATION",
                coding_schemes=[
                    CodingSchemeIdentificationItem(
                        scheme["designator"], name=scheme["name"], responsible_organization=scheme["organization"]
                    )
                    for scheme in schemes(segments)
                ]
                or None,
                **highdicom_arguments(source, maker),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source.first.get('SeriesInstanceUID')}: the series lacks what a DICOM segmentation must repeat or refer "
            f"to ({str(error).splitlines()[0].rstrip('.')}). Leave dicom_seg and dicom_labelmap out of export."
        ) from None
    return made


def _description(segment: Segment, maker: Maker) -> SegmentDescription:
    family = CodedConcept(_FAMILY.value, _FAMILY.scheme, _FAMILY.meaning)
    lightness = rgb2lab(np.array(segment.colour, dtype=np.float64)[None, None] / 255)[0, 0]
    code = segment.code
    description = SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.name,
        segmented_property_category=CodedConcept(code.category.value, code.category.scheme, code.category.meaning),
        segmented_property_type=CodedConcept(code.kind.value, code.kind.scheme, code.kind.meaning),
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            MODEL_NAME, family, maker.version, source=MANUFACTURER, parameters={"weights": maker.weights}
        ),
        display_color=CIELabColor(*(float(value) for value in lightness)),
    )
    if code.modifier is not None:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [code_item(code.modifier)]
    return description
