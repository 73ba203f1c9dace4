"""Read the entries of nnU-Net's dataset.json and name the mistakes in them; write a dataset.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from umamba.datasets.findings import Finding
from umamba.io import UserError, supported_endings
from umamba.labels import LabelSet
from umamba.settings.wording import shown

REORIENTING_READER = "NibabelIOWithReorient"  # nnU-Net's reader that turns images to RAS
# nnU-Net's readers; all but the one above give the images as they are stored
READERS = ("SimpleITKIO", "NibabelIO", REORIENTING_READER, "NaturalImage2DIO", "Tiff3DIO")

_MOST_CASES = 100_000_000


def dataset_json(
    channel_names: Sequence[str], labels: Sequence[str], num_training: int, file_ending: str, **facts: Any
) -> dict[str, Any]:
    """Return the content of a dataset.json.

    Args:
        channel_names: names of the image channels.
        labels: names of the labels 1, 2, ...
        num_training: number of training cases.
        file_ending: ending of images and labels.
        **facts: further entries, such as the licence.

    Raises:
        UserError: two labels have the same name, or a name cannot be that of a label.
    """
    values: dict[str, int] = {}
    for value, name in enumerate(("background", *labels)):
        if values.setdefault(name, value) != value:
            meaning = "the background" if name == "background" else f"label {values[name]}"
            raise UserError(f"labels: {shown(name)} is the name of {meaning} and of label {value}. Rename one of them.")
    LabelSet.from_json(values)
    return {
        "channel_names": {str(index): name for index, name in enumerate(channel_names)},
        "labels": values,
        "numTraining": num_training,
        "file_ending": file_ending,
        **facts,
    }


def json_finding(message: str) -> Finding:
    """Return an error of dataset.json.

    Args:
        message: what is wrong and what to do.
    """
    return Finding("", "dataset.json", "error", message)


def declared_channels(declared: Mapping[str, Any], findings: list[Finding]) -> tuple[str, ...] | None:
    """Return the names of the channels from `channel_names` or the older `modality`; None after a mistake.

    Args:
        declared: the content of dataset.json.
        findings: mistakes are added to it.
    """
    names = declared.get("channel_names", declared.get("modality"))
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, Mapping) or not names:
        findings.append(json_finding('channel_names: missing. Name the channels, like {"0": "CT"}.'))
        return None
    expected = [str(index) for index in range(len(names))]
    if sorted(names, key=lambda key: (len(key), key)) != expected:
        keys, needed = shown(sorted(names)), shown(expected)
        findings.append(json_finding(f"channel_names: the keys are {keys}, but must be {needed}."))
        return None
    wrong = next((key for key in expected if not isinstance(names[key], str | int | float)), None)
    if wrong is not None:
        findings.append(json_finding(f"channel_names.{wrong}={shown(names[wrong])}: must be a name, like CT."))
        return None
    return tuple(str(names[key]) for key in expected)


def declared_labels(declared: Mapping[str, Any], findings: list[Finding]) -> LabelSet | None:
    """Return the labels; None after a mistake.

    Args:
        declared: the content of dataset.json.
        findings: mistakes are added to it.
    """
    try:
        return LabelSet.from_json(declared.get("labels") or {}, declared.get("regions_class_order"))
    except UserError as error:
        findings.append(json_finding(str(error)))
        return None


def declared_ending(declared: Mapping[str, Any], findings: list[Finding]) -> str | None:
    """Return `file_ending`; None if files of this ending cannot be read.

    Args:
        declared: the content of dataset.json.
        findings: mistakes are added to it.
    """
    ending = declared.get("file_ending")
    if not isinstance(ending, str) or ending.lower() not in supported_endings():
        known = ", ".join(supported_endings())
        findings.append(
            json_finding(f"file_ending: {shown(json.dumps(ending))} cannot be read. Choose one of {known}.")
        )
        return None
    return ending


def declared_reader(declared: Mapping[str, Any], findings: list[Finding]) -> str | None:
    """Return `REORIENTING_READER` if `overwrite_image_reader_writer` asks for it, else None.

    Args:
        declared: the content of dataset.json.
        findings: an unknown reader is added to it.
    """
    reader = declared.get("overwrite_image_reader_writer")
    if reader not in (None, "None", *READERS):
        found = shown(json.dumps(reader))
        message = f"overwrite_image_reader_writer: {found} is not known. Choose one of {', '.join(READERS)}."
        findings.append(json_finding(message))
    return REORIENTING_READER if reader == REORIENTING_READER else None


def declared_training(declared: Mapping[str, Any], found: int, findings: list[Finding]) -> int:
    """Return `numTraining`, or the number of cases found if it is missing or not an integer.

    Args:
        declared: the content of dataset.json.
        found: number of training cases found.
        findings: mistakes are added to it.
    """
    number = declared.get("numTraining")
    if number is None:
        return found
    if not isinstance(number, int) or isinstance(number, bool):
        findings.append(json_finding(f"numTraining: {shown(number)} is not an integer. Set it to {found}."))
        return found
    if number < 1 or number > _MOST_CASES:
        findings.append(json_finding(f"numTraining: is {number}, but {found} cases were found. Correct it."))
        return found
    if number != found and not any(f.severity == "error" and f.case_id for f in findings):
        message = f"numTraining: is {number}, but {found} cases were found. Add missing files, or correct it."
        findings.append(json_finding(message))
    return number
