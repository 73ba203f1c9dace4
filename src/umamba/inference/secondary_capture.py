"""Secondary capture: one picture of the slices with their labels, for stations that show no segmentations."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.sc import SCImage
from pydicom.dataset import Dataset

from umamba.inference.dicom_objects import Maker, Source, highdicom_arguments, image_reference
from umamba.inference.exports import draw_outlines
from umamba.io import UserError, read_image
from umamba.labels import LabelSet

_MOST_SLICES = 16
_GAP = 2  # black pixels between slices


def picture(
    source: Source, segmentation: np.ndarray, labels: LabelSet, images: Sequence[Path], maker: Maker
) -> Dataset:
    """Return a picture of up to 16 slices, evenly spread over those that hold labels, as a DICOM object.

    Args:
        source: the series that was segmented.
        segmentation: label map (Z, Y, X).
        labels: the label set, for the colours.
        images: files of the image.
        maker: what made the segmentation.

    Raises:
        UserError: highdicom cannot describe the picture, because the series lacks something.
    """
    shown = chosen_slices(segmentation)
    image = read_image(images, time_is_channels=True).array
    drawn = montage([draw_outlines(image[:, z], segmentation[z], None, labels) for z in shown])
    letters = [direction_letters(axis) for axis in source.planes[0].frame.axes_xyz[:2]]
    repeated: dict[str, Any] = {name: source.first.get(keyword) or None for keyword, name in _ARGUMENTS.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = SCImage(
                pixel_array=drawn,
                photometric_interpretation="RGB",
                bits_allocated=8,
                coordinate_system="PATIENT",
                study_instance_uid=source.first.StudyInstanceUID,
                patient_orientation=(letters[0][0], letters[1][0]),  # highdicom takes one letter an axis
                **highdicom_arguments(source, maker),
                **repeated,
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source.first.get('SeriesInstanceUID')}: the series lacks what a secondary capture must repeat "
            f"({str(error).splitlines()[0].rstrip('.')}). Leave secondary_capture out of export."
        ) from None
    made.PatientOrientation, made.BurnedInAnnotation = letters, "NO"
    made.DerivationDescription = "Slices with outlines of automatic labels, which nobody has reviewed"
    made.SourceImageSequence = [image_reference(source.planes[z]) for z in dict.fromkeys(shown)]
    return made


# Attribute -> name of highdicom's argument.
_ARGUMENTS = {
    "PatientName": "patient_name",
    "PatientID": "patient_id",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
    "StudyDate": "study_date",
    "StudyTime": "study_time",
    "AccessionNumber": "accession_number",
    "ReferringPhysicianName": "referring_physician_name",
    "StudyID": "study_id",
}


def chosen_slices(segmentation: np.ndarray) -> list[int]:
    """Return up to 16 slices, evenly spread over those that hold labels, or over all if none does.

    Args:
        segmentation: label map (Z, Y, X).

    >>> chosen_slices(np.array([[[0]], [[1]], [[1]]]))
    [1, 2]
    """
    held = np.flatnonzero(segmentation.any(axis=(1, 2)))
    held = held if len(held) else np.arange(len(segmentation))
    places = np.linspace(0, len(held) - 1, min(_MOST_SLICES, len(held))).round().astype(int)
    return [int(held[place]) for place in places]


def montage(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return pictures side by side, row by row.

    Args:
        pictures: (Y, X, 3) uint8, all of one size.
    """
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    whole = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), np.uint8)
    for number, one in enumerate(pictures):
        top, left = (number // columns) * (height + _GAP), (number % columns) * (width + _GAP)
        whole[top : top + height, left : left + width] = one
    return whole


def direction_letters(axis_xyz: np.ndarray) -> str:
    """Return the direction of an axis as DICOM's patient orientation: L, P, H and their opposites, the largest first.

    Args:
        axis_xyz: unit vector in the patient (X to the left, Y to the back, Z to the head).

    >>> direction_letters(np.array([-1.0, 0.0, 0.0]))
    'R'
    """
    order = sorted(range(3), key=lambda index: -abs(axis_xyz[index]))
    return "".join(
        "LPH"[index] if axis_xyz[index] > 0 else "RAF"[index] for index in order if abs(axis_xyz[index]) > 0.1
    )
