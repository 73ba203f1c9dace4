"""List a dataset in nnU-Net's raw layout and what is missing in it, without decoding an image.

    NAME/dataset.json                     channel_names, labels, file_ending, numTraining
    NAME/imagesTr/CASE_0000.nii.gz        one file per channel, or one file with all channels if no case has more (RGB)
    NAME/labelsTr/CASE.nii.gz
    NAME/imagesTs, NAME/labelsTs          optional
    NAME/groups.csv                       optional: case,group for each training case
    NAME/annotated_labels.csv             optional: case,label for each label of a partly labelled case

Instead, dataset.json may list the training cases: {"dataset": {CASE: {"images": [...], "label": ...}}}, with paths
relative to the dataset's folder.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from umamba.datasets.declared import (
    declared_channels,
    declared_ending,
    declared_labels,
    declared_reader,
    declared_training,
    json_finding,
)
from umamba.datasets.findings import Finding, findings_table
from umamba.datasets.groups import read_groups
from umamba.datasets.missing_json import remedy
from umamba.io import UserError, read_json, wrong_name
from umamba.io.tiff_spacing import TIFF_ENDINGS
from umamba.labels import LabelSet
from umamba.labels.annotated import Annotated, read_annotated

log = logging.getLogger(__name__)

FIRST_CHANNEL = "_0000"
CHANNEL_NAME = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")  # an image's name without its file ending
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class RawCase:
    """One case of a dataset.

    Attributes:
        case_id: its name.
        images: one file per channel, or one file with all channels.
        label: its label map, or None.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class RawDataset:
    """A dataset in nnU-Net's raw layout.

    Attributes:
        name: name of its folder, such as "Dataset004_Hippocampus".
        root: its folder.
        channel_names: names of the image channels.
        labels: the declared labels.
        file_ending: ending of images and labels, such as ".nii.gz".
        training: training cases, sorted by name.
        test: cases of imagesTs, sorted by name; `label` is None if labelsTs does not have the case.
        num_training: `numTraining` of dataset.json, or the number of training cases if it is not given.
        reader: `REORIENTING_READER` if dataset.json asks for it: images and labels are turned to RAS. Otherwise None.
        groups: training case -> its group, such as its patient; see `umamba.datasets.groups`.
        annotated: labels of each case that does not carry all; see `umamba.labels.annotated`.
    """

    name: str
    root: Path
    channel_names: tuple[str, ...]
    labels: LabelSet
    file_ending: str
    training: tuple[RawCase, ...]
    test: tuple[RawCase, ...]
    num_training: int
    reader: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict, hash=False)
    annotated: Annotated = field(default_factory=dict, hash=False)


def read_dataset(root: Path) -> RawDataset:
    """List a dataset in nnU-Net's raw layout; no image is decoded. Warnings are logged.

    Args:
        root: the dataset's folder, with dataset.json in it.

    Raises:
        UserError: with a table of all problems of the listing.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from umamba.datasets import write_phantom_2d
        >>> with TemporaryDirectory() as folder:
        ...     root = Path(folder) / "Dataset001_Cells"
        ...     _ = write_phantom_2d(root, scene="cells", num_training=2, num_test=1, seed=0, size=(32, 32))
        ...     dataset = read_dataset(root)
        >>> [case.case_id for case in dataset.training], dataset.labels.names
        (['phantom_000', 'phantom_001'], ('interior', 'boundary'))
    """
    dataset, findings = list_findings(root)
    if dataset is None or any(finding.severity == "error" for finding in findings):
        raise UserError(f"{Path(root)}: the dataset has errors and cannot be used.\n{findings_table(findings)}")
    if findings:
        log.warning("%s:\n%s", root, findings_table(findings))
    return dataset


def list_findings(root: Path) -> tuple[RawDataset | None, list[Finding]]:
    """List a dataset and its problems without raising an error for them.

    Args:
        root: the dataset's folder.

    Returns:
        The dataset, or None if dataset.json cannot be read; if there are errors, it holds only the complete cases.
        And the problems.
    """
    root = Path(root).absolute()
    findings: list[Finding] = []
    path = root / "dataset.json"
    if not path.exists() and root.is_dir():
        return None, [json_finding(remedy(root))]
    try:
        declared = read_json(path)
    except UserError as error:
        return None, [json_finding(str(error).removeprefix(f"{path}: "))]
    if not isinstance(declared, Mapping):
        return None, [json_finding("must hold a JSON object with channel_names, labels and file_ending.")]
    channel_names = declared_channels(declared, findings)
    labels = declared_labels(declared, findings)
    file_ending = declared_ending(declared, findings)
    reader = declared_reader(declared, findings)
    if channel_names is None or labels is None or file_ending is None:
        return None, findings
    if "dataset" in declared:
        training = _declared_cases(root, declared["dataset"], findings)
    else:
        training = _folder_cases(root, "Tr", file_ending, len(channel_names), findings)
    test = _folder_cases(root, "Ts", file_ending, len(channel_names), findings)
    if not training and not any(finding.severity == "error" for finding in findings):
        message = f"holds no image NAME{FIRST_CHANNEL}{file_ending}. Check the folder and file_ending."
        findings.append(Finding("", "imagesTr", "error", message))
    known = {case.case_id for case in training}
    findings += [
        Finding(case.case_id, "imagesTs", "warning", "a training case has the same name; is it the same image?")
        for case in test
        if case.case_id in known
    ]
    num_training = declared_training(declared, len(training), findings)
    groups = read_groups(root, declared, known, findings)
    annotated, mistakes = read_annotated(root, declared, labels, known | {case.case_id for case in test})
    findings += [json_finding(mistake) for mistake in mistakes]
    dataset = RawDataset(
        root.name, root, channel_names, labels, file_ending, training, test, num_training, reader, groups, annotated
    )
    return dataset, findings


def _declared_cases(root: Path, cases: Any, findings: list[Finding]) -> tuple[RawCase, ...]:
    """Return the complete cases that the "dataset" entry of dataset.json lists, with absolute paths."""
    if not isinstance(cases, Mapping):
        findings.append(json_finding('dataset: must map each case to {"images": [...], "label": ...}.'))
        return ()
    complete = []
    owner: dict[Path, str] = {}
    for case_id in sorted(cases):
        entry = cases[case_id]
        if not isinstance(entry, Mapping) or not entry.get("images") or not entry.get("label"):
            message = 'dataset: the case must have "images" (a list of paths) and "label" (a path).'
            findings.append(Finding(case_id, "dataset.json", "error", message))
            continue
        wrong = wrong_name(case_id)
        if wrong:
            message = f"dataset: the name of this case {wrong}, so no file can have it. Rename the case."
            findings.append(Finding(case_id, "dataset.json", "error", message))
            continue
        if not _is_text(entry["images"]) or not isinstance(entry["label"], str):
            message = "dataset: images must be a list of paths, and label a path."
            findings.append(Finding(case_id, "dataset.json", "error", message))
            continue
        images = tuple(root / image for image in entry["images"])
        case = RawCase(case_id, images, root / entry["label"])
        unreadable = _unreadable(case_id, (*images, root / entry["label"]), root, "error")
        findings += unreadable
        for path in images:
            if owner.setdefault(path, case_id) != case_id:
                message = f"is also the image of case {owner[path]}; each case needs its own."
                findings.append(Finding(case_id, relative(path, root), "error", message))
        if not unreadable:
            complete.append(case)
    return tuple(complete)


def _is_text(paths: Any) -> bool:
    return isinstance(paths, list) and all(isinstance(path, str) for path in paths)


def _unreadable(case_id: str, paths: Iterable[Path], root: Path, severity: Severity) -> list[Finding]:
    """Return a finding for each path that is no readable file: a dangling link, a folder, a device."""
    found = []
    for path in paths:
        if os.path.islink(path) and not os.path.exists(path):
            message = f"no such file: the link leads to {os.readlink(path)}. Fetch that file, or remove the case."
        elif os.path.isdir(path):
            message = "is a folder, but must be a file."
        elif not os.path.exists(path):
            message = "no such file."
        elif not os.path.isfile(path):
            message = "is no regular file (a pipe or a device)."
        elif not os.access(path, os.R_OK):
            message = "cannot be read: permission denied."
        else:
            continue
        found.append(Finding(case_id, relative(path, root), severity, message))
    return found


def _folder_cases(
    root: Path, split: str, file_ending: str, num_channels: int, findings: list[Finding]
) -> tuple[RawCase, ...]:
    """Return the complete cases of imagesTr with labelsTr (split "Tr"), or of imagesTs with optional labels ("Ts")."""
    images_folder, labels_folder = root / f"images{split}", root / f"labels{split}"
    severity: Severity = "error" if split == "Tr" else "warning"
    if not images_folder.is_dir():
        if split == "Tr":
            findings.append(Finding("", images_folder.name, "error", "no such folder. Put the training images there."))
        return ()
    images = _list_channels(images_folder, file_ending, num_channels, severity, findings)
    labels = _list_labels(labels_folder, file_ending)
    broken = {finding.case_id for finding in findings if finding.file.startswith(images_folder.name)}
    for case_id in sorted(set(labels) - set(images) - broken):
        message = "the label has no image; add the image or remove the label."
        findings.append(Finding(case_id, relative(labels[case_id], root), severity, message))
    if split == "Tr":
        for case_id in sorted(set(images) - set(labels)):
            file = f"{labels_folder.name}/{case_id}{file_ending}"
            findings.append(Finding(case_id, file, "error", "the label is missing; add it or remove the image."))
        images = {case_id: paths for case_id, paths in images.items() if case_id in labels}
    cases = []
    for case_id in sorted(images):
        case = RawCase(case_id, images[case_id], labels.get(case_id))
        unreadable = _unreadable(case_id, (*case.images, *([case.label] if case.label else [])), root, severity)
        findings += unreadable
        if not unreadable:
            cases.append(case)
    return tuple(cases)


def _list_labels(folder: Path, file_ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = (path for path in folder.iterdir() if path.name.endswith(file_ending) and not path.name.startswith("."))
    return {path.name.removesuffix(file_ending): path for path in files}


def _list_channels(
    folder: Path, file_ending: str, num_channels: int, severity: Severity, findings: list[Finding]
) -> dict[str, tuple[Path, ...]]:
    """Return the image files of each complete case of a folder, and report the other cases.

    If several channels are declared but every case has only the file _0000, this file holds all channels (RGB, vector).
    """
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (path.suffix == ".json" and file_ending.lower() in TIFF_ENDINGS):
            continue  # the spacing of a TIFF volume stands in CASE.json beside it
        file = f"{folder.name}/{path.name}"
        match = CHANNEL_NAME.match(path.name.removesuffix(file_ending))
        if not path.name.endswith(file_ending):
            message = f"does not end with the declared file_ending {file_ending}, so it is ignored."
            findings.append(Finding("", file, "warning", message))
        elif match is None:
            message = (
                f"has no channel number. Rename it to NAME{FIRST_CHANNEL}{file_ending}, where 0000 is the channel."
            )
            findings.append(Finding("", file, severity, message))
        else:
            channels[match["case"]][int(match["channel"])] = path
    one_file = all(set(files) == {0} for files in channels.values())
    wanted = set(range(1 if one_file else num_channels))
    complete = {}
    spelled: dict[str, str] = {}
    for case_id, files in channels.items():
        problems = [
            (channel, "the file of this channel is missing; add it.") for channel in sorted(wanted - set(files))
        ]
        problems += [
            (channel, "channel_names does not name this channel; name it or remove the file.")
            for channel in sorted(set(files) - wanted)
        ]
        for channel, message in problems:
            file = f"{folder.name}/{case_id}_{channel:04d}{file_ending}"
            findings.append(Finding(case_id, file, severity, message))
        twin = spelled.setdefault(case_id.casefold(), case_id)
        if twin != case_id:
            message = f"its name differs from that of case {twin} only in upper and lower case; rename one."
            findings.append(Finding(case_id, folder.name, severity, message))
        if not problems:
            complete[case_id] = tuple(files[channel] for channel in sorted(files))
    return complete


def relative(path: Path, root: Path) -> str:
    """Return a path relative to a folder if it is inside it, otherwise the path itself.

    Args:
        path: the path.
        root: the folder.
    """
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
