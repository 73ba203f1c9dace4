"""Check the voxels and the geometry of one case, decoding each file once.

The checks are those of nnU-Net's `--verify_dataset_integrity` (label values, shape, spacing, origin and direction of
image and label, number of channels), and further mistakes that would silently harm a training: NaN, a spacing that is
not positive, skewed axes, fractional or empty labels, files that cannot be decoded.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba.datasets.findings import Finding
from umamba.datasets.nnunet_raw import RawCase, RawDataset, Severity, relative
from umamba.io import (
    Geometry,
    Image,
    UserError,
    geometry_difference,
    orientation_of,
    ras_turn,
    read_image,
    read_label,
    turned,
)
from umamba.io.nifti import header_warnings
from umamba.labels import LabelSet
from umamba.labels.annotated import values_of

# Origins further apart than this cause a warning. The rounding of float32 headers is smaller.
_ORIGIN_TOLERANCE_MM = 1e-2

Report = Callable[[Path, Severity, str], None]


@dataclass(frozen=True)
class Inspection:
    """The result of checking one case.

    Attributes:
        findings: its problems.
        image: the decoded image (C, Z, Y, X); None if a file cannot be decoded or the channels do not fit together.
        label: the decoded label map (1, Z, Y, X); None if there is none or it cannot be decoded.
        orientation: in which the first image is stored, such as "RAS"; None for 2D images and undecodable ones.
        values: the values of the label map; None if there is none, it cannot be decoded or its values are no integers.
    """

    findings: tuple[Finding, ...]
    image: Image | None
    label: Image | None
    orientation: str | None = None
    values: tuple[int, ...] | None = None


def inspect_case(dataset: RawDataset, case: RawCase) -> Inspection:
    """Decode a case and check it. Problems of the data are returned, not raised.

    If the dataset has a reorienting reader, image and label are turned to RAS before they are compared.

    Args:
        dataset: the dataset, for its labels, channels and reader.
        case: the case.
    """
    findings: list[Finding] = []

    def report(path: Path, severity: Severity, message: str) -> None:
        findings.append(Finding(case.case_id, relative(path, dataset.root), severity, message))

    parts: list[tuple[Path, Image]] = []
    orientation = None
    for path in case.images:
        part = _decode(path, False, report)
        if part is not None and path == case.images[0]:
            orientation = orientation_of(part.geometry)
        part = _turned(path, part, dataset.reader, report)
        if part is not None:
            parts.append((path, part))
            _report_header(path, report)
            _check_intensities(path, part.array, report)
    image = _join(case, parts, len(dataset.channel_names), report) if len(parts) == len(case.images) else None
    label = values = None
    if case.label is not None:
        label = _turned(case.label, _decode(case.label, True, report), dataset.reader, report)
    if case.label is not None and label is not None:
        _report_header(case.label, report)
        if parts:
            _check_same_grid(case.label, label.geometry, parts[0][0], parts[0][1].geometry, report)
        carried = dataset.annotated.get(case.case_id, dataset.labels.names)
        values = _check_label_values(case.label, label.array, dataset.labels, carried, report)
    return Inspection(tuple(findings), image, label, orientation, values)


def unseen_labels(dataset: RawDataset, values: Mapping[str, Collection[int] | None]) -> list[Finding]:
    """Return a warning if a declared label occurs in no label map of the cases that carry it.

    There is none if a label map could not be read, because the label may occur there. The ignore label may be absent.

    Args:
        dataset: the dataset, for its labels and the labels that each case carries.
        values: training case -> the values of its label map; None if it could not be read.
    """
    labels, maps = dataset.labels, list(values.values())
    if None in maps:
        return []
    absent: dict[int, list[str]] = defaultdict(list)
    for name, declared in zip(labels.names, labels.values, strict=True):
        carriers = [found for case_id, found in values.items() if name in dataset.annotated.get(case_id, labels.names)]
        for value in set(declared).difference(*(found for found in carriers if found is not None)):
            absent[value].append(name)
    if not absent:
        return []
    entries = [f"{' and '.join(names)} ({value})" for value, names in sorted(absent.items())]
    shown = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    verb, it = ("occurs", "it") if len(entries) == 1 else ("occur", "them")
    message = (
        f"labels: {shown} {verb} in no training case. Check the export and the numbering of the label maps, or remove "
        f"{it} from dataset.json."
    )
    return [Finding("", "dataset.json", "warning", message)]


def _decode(path: Path, is_label: bool, report: Report) -> Image | None:
    try:
        return read_label(path) if is_label else read_image([path])
    except UserError as error:
        report(path, "error", str(error).removeprefix(f"{path}: "))
        return None


def _turned(path: Path, part: Image | None, reader: str | None, report: Report) -> Image | None:
    """Return the image turned to RAS if the dataset has a reorienting reader."""
    if reader is None or part is None:
        return part
    try:
        image = turned(part, ras_turn(part.geometry))
    except UserError as error:
        report(path, "error", str(error))
        return None
    return Image(np.ascontiguousarray(image.array), image.geometry)


def _report_header(path: Path, report: Report) -> None:
    for message in header_warnings(path):
        report(path, "warning", message)


def _check_intensities(path: Path, array: np.ndarray, report: Report) -> None:
    if array.min() == array.max():
        report(path, "warning", f"all voxels are {array.flat[0]}; is the image empty?")


def _join(case: RawCase, parts: list[tuple[Path, Image]], num_channels: int, report: Report) -> Image | None:
    """Concatenate the channels of a case; report channels on different grids and a wrong number of channels."""
    first_path, first = parts[0]
    fits = True
    for path, part in parts[1:]:
        fits = _check_same_grid(path, part.geometry, first_path, first.geometry, report) and fits
    if not fits:
        return None
    array = first.array if len(parts) == 1 else np.concatenate([part.array for _, part in parts])
    if len(array) != num_channels:
        message = f"{len(array)} channel(s) in the files but {num_channels} in channel_names. Correct one of the two."
        report(case.images[0], "error", message)
    return Image(array, first.geometry)


def _check_same_grid(path: Path, geometry: Geometry, first_path: Path, first: Geometry, report: Report) -> bool:
    """Report if two files of a case have different grids; return whether their voxels correspond."""
    difference = geometry_difference(first, geometry)
    if difference:
        report(path, "error", f"{difference} (first: {first_path.name}). Resample both onto one grid.")
        return False
    distance = float(np.linalg.norm(np.subtract(first.origin_xyz, geometry.origin_xyz)))
    if distance > _ORIGIN_TOLERANCE_MM:
        report(path, "warning", f"origin is {distance:.3g} mm away from that of {first_path.name}; do they correspond?")
    return True


def _check_label_values(
    path: Path, array: np.ndarray, labels: LabelSet, carried: Sequence[str], report: Report
) -> tuple[int, ...] | None:
    """Report wrong values of a label map; return its values, or None if they are no integers."""
    found = np.unique(array)
    if np.issubdtype(array.dtype, np.floating):
        fractional = [value for value in found if value != np.round(value)]
        if fractional:
            examples = ", ".join(f"{value:g}" for value in fractional[:3])
            report(path, "error", f"holds values that are not integers ({examples}). Export it again as a label map.")
            return None
    values = {int(value) for value in found}
    unexpected = sorted(values - set(labels.all_values))
    if unexpected:
        shown = ", ".join(map(str, unexpected[:5])) + (", ..." if len(unexpected) > 5 else "")
        declared = ", ".join(map(str, labels.all_values))
        report(path, "error", f"holds {shown}, not declared in dataset.json ({declared}). Correct one of the two.")
    elif values - values_of(labels, carried):
        other = ", ".join(map(str, sorted(values - values_of(labels, carried))[:5]))
        message = f"holds {other}, a label that annotated_labels does not name for this case. Correct one of the two."
        report(path, "error", message)
    elif values <= {0, labels.ignore}:
        report(path, "warning", "the label map is empty (background only).")
    return tuple(sorted(values))
