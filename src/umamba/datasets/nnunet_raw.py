"""Read a data set in nnU-Net's raw layout: what there is and what is missing, without decoding an image.

    NAME/dataset.json                     channel_names, labels, file_ending, numTraining
    NAME/imagesTr/CASE_0000.nii.gz        one file per channel; one file for all channels if no case has more (RGB)
    NAME/labelsTr/CASE.nii.gz
    NAME/imagesTs, NAME/labelsTs          optional

dataset.json may instead list the training cases itself: {"dataset": {CASE: {"images": [...], "label": ...}}}, paths
relative to the data set's folder.
"""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from umamba.datasets.findings import Finding, findings_table
from umamba.io import UserError, read_json, supported_endings
from umamba.labels import LabelSet

log = logging.getLogger(__name__)

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class RawCase:
    """One case: its image files, a file per channel or one for all, and its label map if there is one."""

    case_id: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class RawDataset:
    """A data set in nnU-Net's raw layout.

    Attributes:
        name: name of its folder, e.g. "Dataset004_Hippocampus".
        root: the folder.
        channel_names: in channel order.
        labels: the declared label set.
        file_ending: of images and labels, e.g. ".nii.gz".
        training: training cases in the order of their names.
        test: cases of imagesTs; `label` is None where labelsTs has none.
        num_training: `numTraining` of dataset.json, or the number of training cases where it does not say.
    """

    name: str
    root: Path
    channel_names: tuple[str, ...]
    labels: LabelSet
    file_ending: str
    training: tuple[RawCase, ...]
    test: tuple[RawCase, ...]
    num_training: int


def read_dataset(root: Path) -> RawDataset:
    """Read a data set's listing. Raises UserError with a table of all structural problems; warnings are logged."""
    dataset, findings = list_findings(root)
    if dataset is None or any(finding.severity == "error" for finding in findings):
        raise UserError(f"{Path(root)}: the data set cannot be used as it is.\n{findings_table(findings)}")
    if findings:
        log.warning("%s:\n%s", root, findings_table(findings))
    return dataset


def list_findings(root: Path) -> tuple[RawDataset | None, list[Finding]]:
    """Return the data set and its structural problems, without raising; None if dataset.json cannot be understood.

    With errors among the findings the data set holds the cases that are complete.
    """
    root = Path(root).absolute()
    findings: list[Finding] = []
    path = root / "dataset.json"
    try:
        declared = read_json(path)
    except UserError as error:
        return None, [_json_finding(str(error).removeprefix(f"{path}: "))]
    if not isinstance(declared, Mapping):
        return None, [_json_finding("must hold a JSON object with channel_names, labels and file_ending.")]
    findings += [_json_finding(f'"{key}" stands twice in one object; keep one.') for key in _repeated_keys(path)]
    channel_names = _channel_names(declared, findings)
    labels = _labels(declared, findings)
    file_ending = _file_ending(declared, findings)
    if channel_names is None or labels is None or file_ending is None:
        return None, findings
    if "dataset" in declared:
        training = _declared_cases(root, declared["dataset"], findings)
    else:
        training = _folder_cases(root, "Tr", file_ending, len(channel_names), findings)
    test = _folder_cases(root, "Ts", file_ending, len(channel_names), findings)
    if not training and not any(finding.severity == "error" for finding in findings):
        findings.append(Finding("", "imagesTr", "error", f"no image NAME_0000{file_ending} was found."))
    known = {case.case_id for case in training}
    findings += [
        Finding(case.case_id, "imagesTs", "warning", "a training case has the same name; is it the same image?")
        for case in test
        if case.case_id in known
    ]
    num_training = _num_training(declared, training, findings)
    return RawDataset(root.name, root, channel_names, labels, file_ending, training, test, num_training), findings


def list_images(folder: Path, file_ending: str, num_channels: int) -> tuple[RawCase, ...]:
    """List the cases of a folder of images NAME_0000<ending>, without labels (what is to be predicted).

    Raises UserError with a table of all problems if the folder is missing, empty, or a case lacks a channel.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Pass the folder with the images.")
    findings: list[Finding] = []
    images = _list_channels(folder, file_ending, num_channels, "error", findings)
    if any(finding.severity == "error" for finding in findings):
        raise UserError(f"{folder}: some images cannot be used.\n{findings_table(findings)}")
    if not images:
        raise UserError(f"{folder}: holds no image NAME_0000{file_ending}. Check the folder and the file names.")
    return tuple(RawCase(case_id, images[case_id], None) for case_id in sorted(images))


def _json_finding(message: str) -> Finding:
    return Finding("", "dataset.json", "error", message)


def _repeated_keys(path: Path) -> list[str]:
    """Return keys that stand twice in one JSON object; `json` itself silently keeps the last."""
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=collect)
    return repeated


def _channel_names(declared: Mapping[str, Any], findings: list[Finding]) -> tuple[str, ...] | None:
    names = declared.get("channel_names", declared.get("modality"))
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, Mapping) or not names:
        findings.append(_json_finding('channel_names: missing; name the channels, like {"0": "CT"}.'))
        return None
    expected = [str(index) for index in range(len(names))]
    if sorted(names, key=lambda key: (len(key), key)) != expected:
        findings.append(_json_finding(f"channel_names: keys are {sorted(names)}, must be {expected}."))
        return None
    return tuple(str(names[key]) for key in expected)


def _labels(declared: Mapping[str, Any], findings: list[Finding]) -> LabelSet | None:
    try:
        return LabelSet.from_json(declared.get("labels") or {}, declared.get("regions_class_order"))
    except UserError as error:
        findings.append(_json_finding(str(error)))
        return None


def _file_ending(declared: Mapping[str, Any], findings: list[Finding]) -> str | None:
    ending = declared.get("file_ending")
    if not isinstance(ending, str) or ending.lower() not in supported_endings():
        known = ", ".join(supported_endings())
        findings.append(_json_finding(f"file_ending: {json.dumps(ending)} cannot be read; it must be one of {known}."))
        return None
    return ending


def _num_training(declared: Mapping[str, Any], training: tuple[RawCase, ...], findings: list[Finding]) -> int:
    number = declared.get("numTraining")
    if number is None:
        return len(training)
    if not isinstance(number, int) or isinstance(number, bool):
        findings.append(_json_finding(f"numTraining: {number!r} is no integer; set it to {len(training)}."))
        return len(training)
    if number != len(training) and not any(f.severity == "error" and f.case_id for f in findings):
        message = f"numTraining: says {number} but {len(training)} cases were found. Were files lost? Else correct it."
        findings.append(_json_finding(message))
    return number


def _declared_cases(root: Path, cases: Any, findings: list[Finding]) -> tuple[RawCase, ...]:
    """Return the cases that the "dataset" entry of dataset.json lists, with their paths made absolute."""
    if not isinstance(cases, Mapping):
        findings.append(_json_finding('dataset: must map each case to {"images": [...], "label": ...}.'))
        return ()
    complete = []
    owner: dict[Path, str] = {}
    for case_id in sorted(cases):
        entry = cases[case_id]
        if not isinstance(entry, Mapping) or not entry.get("images") or not entry.get("label"):
            message = 'dataset: the case must have "images" (a list of paths) and "label" (a path).'
            findings.append(Finding(case_id, "dataset.json", "error", message))
            continue
        images = tuple(root / image for image in entry["images"])
        case = RawCase(case_id, images, root / entry["label"])
        missing = [path for path in (*images, root / entry["label"]) if not path.is_file()]
        findings += [Finding(case_id, relative(path, root), "error", "no such file.") for path in missing]
        for path in images:
            if owner.setdefault(path, case_id) != case_id:
                message = f"is also the image of case {owner[path]}; each case needs its own."
                findings.append(Finding(case_id, relative(path, root), "error", message))
        if not missing:
            complete.append(case)
    return tuple(complete)


def _folder_cases(
    root: Path, split: str, file_ending: str, num_channels: int, findings: list[Finding]
) -> tuple[RawCase, ...]:
    """Return the complete cases of imagesTr + labelsTr ("Tr"), or of imagesTs and perhaps labelsTs ("Ts")."""
    images_folder, labels_folder = root / f"images{split}", root / f"labels{split}"
    severity: Severity = "error" if split == "Tr" else "warning"
    if not images_folder.is_dir():
        if split == "Tr":
            findings.append(Finding("", images_folder.name, "error", "no such folder; it holds the training images."))
        return ()
    images = _list_channels(images_folder, file_ending, num_channels, severity, findings)
    labels = _list_labels(labels_folder, file_ending)
    broken = {finding.case_id for finding in findings if finding.file.startswith(images_folder.name)}
    for case_id in sorted(set(labels) - set(images) - broken):
        message = "label without an image; add the image or remove the label."
        findings.append(Finding(case_id, relative(labels[case_id], root), severity, message))
    if split == "Tr":
        for case_id in sorted(set(images) - set(labels)):
            file = f"{labels_folder.name}/{case_id}{file_ending}"
            findings.append(Finding(case_id, file, "error", "the label is missing; add it or remove the image."))
        images = {case_id: paths for case_id, paths in images.items() if case_id in labels}
    return tuple(RawCase(case_id, images[case_id], labels.get(case_id)) for case_id in sorted(images))


def _list_labels(folder: Path, file_ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = (path for path in folder.iterdir() if path.name.endswith(file_ending) and not path.name.startswith("."))
    return {path.name.removesuffix(file_ending): path for path in files}


def _list_channels(
    folder: Path, file_ending: str, num_channels: int, severity: Severity, findings: list[Finding]
) -> dict[str, tuple[Path, ...]]:
    """Return the image files of each complete case of a folder and report the others.

    Where several channels are declared but no case has a file beyond _0000, one file holds all channels (RGB, vector).
    """
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        file = f"{folder.name}/{path.name}"
        match = _CHANNEL.match(path.name.removesuffix(file_ending))
        if not path.name.endswith(file_ending):
            message = f"does not end with the declared file_ending {file_ending}; it is left out."
            findings.append(Finding("", file, "warning", message))
        elif match is None:
            findings.append(
                Finding("", file, severity, f"rename it to NAME_0000{file_ending}, 0000 being the channel.")
            )
        else:
            channels[match["case"]][int(match["channel"])] = path
    one_file = all(set(files) == {0} for files in channels.values())
    wanted = set(range(1 if one_file else num_channels))
    complete = {}
    spelled: dict[str, str] = {}
    for case_id, files in channels.items():
        problems = [(channel, "the channel's file is missing.") for channel in sorted(wanted - set(files))]
        problems += [(channel, "more channels than channel_names.") for channel in sorted(set(files) - wanted)]
        for channel, message in problems:
            file = f"{folder.name}/{case_id}_{channel:04d}{file_ending}"
            findings.append(Finding(case_id, file, severity, message))
        twin = spelled.setdefault(case_id.casefold(), case_id)
        if twin != case_id:
            message = f"the same name as case {twin} but for capitals; rename one."
            findings.append(Finding(case_id, folder.name, severity, message))
        if not problems:
            complete[case_id] = tuple(files[channel] for channel in sorted(files))
    return complete


def relative(path: Path, root: Path) -> str:
    """Return `path` relative to `root` where it lies below it, else in full."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
