"""What all results in DICOM share: the series that was segmented, the labels, and who made them."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import umamba
from umamba.inference.label_files import label_entries
from umamba.inference.model import Model
from umamba.io.dicom_planes import Plane
from umamba.io.escape import printable
from umamba.labels import LabelSet, colours
from umamba.labels.codes import PRIVATE, Code, LabelCode, private_code
from umamba.labels.masks import mask_of

CHARACTERS = "ISO_IR 192"  # UTF-8
MANUFACTURER, MODEL_NAME = "umamba", "U-Mamba Lightning"
# Attributes of patient and study, which every object of the study repeats; empty where the source has none (type 2).
PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
)
LONGEST_TEXT = 64  # characters of DICOM's long string


@dataclass(frozen=True)
class Maker:
    """What made a result.

    Attributes:
        version: of this program.
        weights: starts of the hashes of the networks' weights, in hexadecimal; at most 64 characters.
    """

    version: str
    weights: str

    @classmethod
    def of(cls, models: Sequence[Model]) -> "Maker":
        """Return the maker of results of networks.

        Args:
            models: the networks.
        """
        longest = max(1, min(16, (LONGEST_TEXT + 1) // len(models) - 1))  # of a hash, so that all fit into a text
        return cls(umamba.__version__, ",".join(model.weights[:longest] for model in models))


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
    return printable(" ".join(value.split())).replace("\\", "/")[:LONGEST_TEXT].strip() or "segment"


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


def image_reference(plane: Plane) -> Dataset:
    """Return the reference to a slice: its file, and its frame in a file of several.

    Args:
        plane: the slice.
    """
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = plane.header.SOPClassUID, plane.header.SOPInstanceUID
    if int(plane.header.get("NumberOfFrames") or 1) > 1:
        item.ReferencedFrameNumber = plane.frame.index + 1
    return item


def highdicom_arguments(source: Source, maker: Maker) -> dict[str, Any]:
    """Return the arguments of highdicom's constructors that are the same for each form.

    Args:
        source: the series that was segmented.
        maker: what made the result.
    """
    return {
        "series_instance_uid": new_uid(),
        "series_number": source.number,
        "series_description": source.description,
        "sop_instance_uid": new_uid(),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MODEL_NAME,
        "software_versions": maker.version,
        "device_serial_number": maker.weights,
        "specific_character_set": CHARACTERS,
    }
