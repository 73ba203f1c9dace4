"""Write results in DICOM, the forms of `export` that an archive of a hospital takes, or refuse them before any work.

A result refers to the slices that were segmented, lies in their frame of reference and belongs to their patient and
study; it is a new series of one object.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM

from umamba.inference.dicom_objects import CHARACTERS, PATIENT_AND_STUDY, Maker, Source, segments_of, value_segments
from umamba.inference.outputs import DICOM_FORMS
from umamba.io import StorageError, UserError, atomic_path, storage_errors
from umamba.io.dicom_planes import Plane, headers_of, is_dicom_image, read_planes
from umamba.labels import LabelSet
from umamba.labels.codes import LabelCode

log = logging.getLogger(__name__)
_SEXES = ("", "M", "F", "O")
_MOMENTS = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
DESCRIPTIONS = {
    "dicom_seg": "Segmentation (automatic, not reviewed)",
    "dicom_labelmap": "Label map (automatic, not reviewed)",
    "rtstruct": "Contours (automatic, not reviewed)",
    "secondary_capture": "Picture of a segmentation (automatic, not reviewed)",
}


def check_dicom_exports(forms: Sequence[str], images: Sequence[Path]) -> None:
    """Refuse forms in DICOM of an image that cannot have them, before it is segmented.

    Args:
        forms: names of forms, with at least one in DICOM.
        images: files of the image; the first one is the series that results belong to.

    Raises:
        UserError: the image does not come from DICOM, or lacks what results must refer to.
    """
    if not is_dicom_image(images[0]):
        wanted = ",".join(form for form in forms if form in DICOM_FORMS)
        raise UserError(
            f"export=[{wanted}]: is for images from DICOM, because the result belongs to their patient and "
            f"study; {images[0].name} is none. Give the series itself, or leave the form away."
        )
    read_planes(images[0])


def write_dicom_exports(
    exports: Sequence[tuple[str, Path]],
    segmentation: np.ndarray,
    labels: LabelSet,
    codes: Sequence[LabelCode],
    images: Sequence[Path],
    maker: Maker,
) -> list[str]:
    """Write the forms in DICOM among the wanted ones; one that cannot be written does not stop the others.

    Args:
        exports: forms and their files; those that are not in DICOM are left out.
        segmentation: label map (Z, Y, X) on the grid of the series.
        labels: the label set.
        codes: the coded name of each label.
        images: files of the image.
        maker: what made the segmentation.

    Returns:
        What is wrong with the forms that could not be written, because the series lacks what they need.

    Raises:
        UserError: the series cannot be read any more.
        StorageError: a file cannot be written.
    """
    planes = read_planes(images[0])
    problems = []
    for form, path in exports:
        if form in DICOM_FORMS:
            try:
                write_form(form, path, segmentation, labels, codes, planes, images, maker)
            except StorageError:
                raise
            except UserError as error:
                problems.append(f"export=[{form}]: {error}")
    return problems


def write_form(
    form: str,
    path: Path,
    segmentation: np.ndarray,
    labels: LabelSet,
    codes: Sequence[LabelCode],
    planes: Sequence[Plane],
    images: Sequence[Path],
    maker: Maker,
) -> None:
    """Write one form.

    Args:
        form: one of `DICOM_FORMS`.
        path: the file.
        segmentation: label map (Z, Y, X).
        labels: the label set.
        codes: the coded name of each label.
        planes: the slices, in the order of the label map.
        images: files of the image, for the picture.
        maker: what made the segmentation.

    Raises:
        UserError: the series lacks what the form needs.
        StorageError: the file cannot be written.
    """
    complete(planes)
    source = Source(planes, _series_number(planes[0].header, form), DESCRIPTIONS[form])
    if form == "rtstruct":
        from umamba.inference.rtstruct import structure_set

        made: Dataset = structure_set(source, segmentation, segments_of(labels, codes), maker)
    elif form == "secondary_capture":
        from umamba.inference.secondary_capture import picture

        made = picture(source, segmentation, labels, images, maker)
    else:
        from umamba.inference.dicom_seg import segmentation_object

        as_map = form == "dicom_labelmap"
        segments = value_segments(labels, codes) if as_map else segments_of(labels, codes)
        made = segmentation_object(source, segmentation, segments, maker, as_map=as_map)
    with storage_errors(path), atomic_path(path) as temporary:
        made.save_as(temporary, enforce_file_format=True)


def complete(planes: Sequence[Plane]) -> None:
    """Give the headers what every object of their study repeats, and one orientation.

    What is missing is empty, and so is what the standard does not allow, because no valid object can repeat it. A
    warning names such attributes.

    Args:
        planes: the slices.
    """
    headers = headers_of(planes)
    odd: dict[str, None] = {}
    for header in headers:
        if header.get("SpecificCharacterSet") != CHARACTERS:
            header.decode()  # by its own character set, before that of the result takes its place
        for keyword in PATIENT_AND_STUDY:
            value = header.get(keyword)
            text = "" if value is None else str(value)
            if not _allowed(keyword, text):
                odd[keyword], text = None, ""
            setattr(header, keyword, text)
        header.SpecificCharacterSet = CHARACTERS
        if len(headers) > 1:  # of slices whose rounding differs; the reader has compared them
            header.ImageOrientationPatient = headers[0].ImageOrientationPatient
    for plane in planes:
        if len(headers) > 1 and not plane.header.get("SliceThickness"):
            plane.header.SliceThickness = plane.frame.thickness
    if odd:
        log.warning(
            "%s: DICOM does not allow the value of %s. The results in DICOM leave it empty.",
            *(headers[0].filename, " and ".join(odd)),
        )


def _allowed(keyword: str, value: str) -> bool:
    """Return whether the standard allows a value of an attribute of patient or study (PS3.3 C.7.1.1, PS3.5 6.2)."""
    if keyword == "PatientSex":
        return value in _SEXES
    if value and keyword in _MOMENTS:
        try:
            _MOMENTS[keyword](value)
        except (TypeError, ValueError):
            return False
    return True


def _series_number(header: Dataset, form: str) -> int:
    """Return the number of the new series: that of the source with the form's digits behind it."""
    try:
        number = int(header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    number = number if 0 <= number < 10**6 else 0
    return 100 * number + 90 + DICOM_FORMS.index(form)
