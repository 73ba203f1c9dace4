"""Results in DICOM (forms of `export`): which series they belong to, what they say of themselves, and who writes them.

A result refers to the slices that were segmented, lies in their frame of reference and belongs to their patient and
study; it is a new series of one object.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import umamba
from umamba.inference.label_files import label_entries
from umamba.inference.model import Model
from umamba.inference.outputs import DICOM_FORMS
from umamba.io import UserError, atomic_path, storage_errors
from umamba.io.dicom_planes import Plane, headers_of, is_dicom_image, read_planes
from umamba.io.escape import printable
from umamba.labels import LabelSet, colours
from umamba.labels.codes import PRIVATE, Code, LabelCode, private_code
from umamba.labels.masks import mask_of

DESCRIPTIONS = {
    "dicom_seg": "Segmentation (automatic, not reviewed)",
    "dicom_labelmap": "Label map (automatic, not reviewed)",
    "rtstruct": "Contours (automatic, not reviewed)",
    "secondary_capture": "Picture of a segmentation (not reviewed)",
}
CHARACTERS = "ISO_IR 192"  # UTF-8
MANUFACTURER, MODEL_NAME = "umamba", "U-Mamba Lightning"
# Attributes of patient and study, which every object of the study repeats; empty where the source has none (type 2).
PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
)
_LONGEST_TEXT = 64  # characters of DICOM's long string


@dataclass(frozen=True)
class Maker:
    """What made a result.

    Attributes:
        version: of this program.
        weights: hash of the networks' weights, in hexadecimal.
    """

    version: str
    weights: str

    @classmethod
    def of(cls, models: Sequence[Model]) -> "Maker":
        """Return the maker of results of networks.

        Args:
            models: the networks.
        """
        return cls(umamba.__version__, ",".join(model.weights[:16] for model in models))


@dataclass(frozen=True)
class Segment:
    """One label of a result.

    Attributes:
        number: from 1 on.
        name: at most 64 characters.
        values: of the label map.
        colour: red, green and blue from 0 to 255.
        code: its coded name.
    """

    number: int
    name: str
    values: tuple[int, ...]
    colour: tuple[int, int, int]
    code: LabelCode

    def mask(self, segmentation: np.ndarray) -> np.ndarray:
        """Return where it is.

        Args:
            segmentation: label map.
        """
        return mask_of(segmentation, self.values)


@dataclass(frozen=True)
class Source:
    """The series that was segmented.

    Attributes:
        planes: in the order of the label map's slices.
        number: of the new series.
        description: of the new series.
    """

    planes: Sequence[Plane]
    number: int
    description: str

    @property
    def first(self) -> Dataset:
        """Header of the first slice, with patient and study."""
        return self.planes[0].header


def check_dicom_exports(forms: Sequence[str], images: Sequence[Path]) -> None:
    """Refuse forms in DICOM of an image that cannot have them, before it is segmented.

    Args:
        forms: names of forms.
        images: files of the image; the first one is the series that results belong to.

    Raises:
        UserError: the image does not come from DICOM, or lacks what results must refer to.
    """
    wanted = [form for form in forms if form in DICOM_FORMS]
    if not wanted:
        return
    if not is_dicom_image(images[0]):
        raise UserError(
            f"export=[{','.join(wanted)}]: is for images from DICOM, because the result belongs to their patient and "
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
) -> None:
    """Write the forms in DICOM among the wanted ones.

    Args:
        exports: forms and their files; others than `DICOM_FORMS` are left out.
        segmentation: label map (Z, Y, X) on the grid of the series.
        labels: the label set.
        codes: the coded name of each label.
        images: files of the image.
        maker: what made the segmentation.

    Raises:
        UserError: the series lacks what the form needs.
        StorageError: a file cannot be written.
    """
    wanted = [(form, path) for form, path in exports if form in DICOM_FORMS]
    if not wanted:
        return
    planes = read_planes(images[0])
    for form, path in wanted:
        write_form(form, path, segmentation, labels, codes, planes, images, maker)


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


def segments_of(labels: LabelSet, codes: Sequence[LabelCode]) -> list[Segment]:
    """Return a segment for each label, or for each region, which may overlap.

    Args:
        labels: the label set.
        codes: the coded name of each label.
    """
    table = [(int(red), int(green), int(blue)) for red, green, blue in colours(len(labels.names))]
    entries = zip(labels.names, labels.values, table, codes, strict=True)
    return [
        Segment(number, text(name), values, colour, code)
        for number, (name, values, colour, code) in enumerate(entries, start=1)
    ]


def value_segments(labels: LabelSet, codes: Sequence[LabelCode]) -> list[Segment]:
    """Return a segment for each value of the label map, numbered by the values.

    Args:
        labels: the label set.
        codes: the coded name of each label; a value in several regions has a private code of its joined name.
    """
    found = []
    for entry in label_entries(labels):
        owners = [code for code, values in zip(codes, labels.values, strict=True) if entry.value in values]
        code = owners[0] if len(owners) == 1 else private_code(entry.name)
        found.append(Segment(entry.value, text(entry.name), (entry.value,), entry.colour, code))
    return found


def text(value: str) -> str:
    """Return a text that DICOM's long string can hold: 64 characters, no backslash.

    Args:
        value: any text.
    """
    return printable(" ".join(value.split())).replace("\\", "/")[:_LONGEST_TEXT].strip() or "segment"


def complete(planes: Sequence[Plane]) -> None:
    """Give the headers what every object of their study repeats, empty where it is missing, and one orientation.

    Args:
        planes: the slices.
    """
    headers = headers_of(planes)
    for header in headers:
        if header.get("SpecificCharacterSet") != CHARACTERS:
            header.decode()  # by its own character set, before that of the result takes its place
        for keyword in PATIENT_AND_STUDY:
            value = header.get(keyword)
            setattr(header, keyword, "" if value is None else str(value))
        header.SpecificCharacterSet = CHARACTERS
        if len(headers) > 1:  # of slices whose rounding differs; the reader has compared them
            header.ImageOrientationPatient = headers[0].ImageOrientationPatient
    for plane in planes:
        if len(headers) > 1 and not plane.header.get("SliceThickness"):
            plane.header.SliceThickness = plane.frame.thickness


def schemes(segments: Sequence[Segment]) -> list[dict[str, str]]:
    """Return what an object says of the private scheme of codes, if it has such codes.

    Args:
        segments: the labels.
    """
    used = {code.scheme for segment in segments for code in (segment.code.kind, segment.code.category)}
    if PRIVATE not in used:
        return []
    return [{"designator": PRIVATE, "name": "Names of labels without a public code", "organization": MANUFACTURER}]


def code_item(code: Code) -> Dataset:
    """Return a code as an item of a sequence.

    Args:
        code: the code.
    """
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def new_uid() -> str:
    """Return a new unique identifier."""
    return str(generate_uid(prefix=None))


def now() -> tuple[str, str]:
    """Return date and time of this moment as DICOM writes them."""
    moment = datetime.datetime.now()
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")


def _series_number(header: Dataset, form: str) -> int:
    """Return the number of the new series: that of the source with the form's digits behind it."""
    try:
        number = int(header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    number = number if 0 <= number < 10**6 else 0
    return 100 * number + 90 + DICOM_FORMS.index(form)
