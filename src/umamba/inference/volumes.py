"""volumes.csv: voxels and millilitres of each label in each segmentation of an output."""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from umamba.inference.problems import Problems
from umamba.io import Geometry, atomic_path, read_label, storage_errors
from umamba.io.escape import from_cell, to_cell
from umamba.labels import LabelSet

_COLUMNS = ("case", "label", "voxels", "ml")
_FEW = 48  # labels
Volumes = tuple[int, ...]  # voxels of each label


def count_voxels(segmentation: np.ndarray, labels: LabelSet) -> Volumes:
    """Return the voxels of each label, or of each region, which may overlap.

    Args:
        segmentation: label map (Z, Y, X).
        labels: the label set.

    >>> count_voxels(np.array([[[0, 1, 2, 2]]]), LabelSet(("whole", "core"), ((1, 2), (2,)), region_order=(1, 2)))
    (3, 2)
    """
    found = np.zeros(labels.all_values[-1] + 1, dtype=np.int64)
    few = segmentation.dtype == np.uint8 and len(found) <= _FEW
    for plane in segmentation:  # because bincount copies to 8 bytes a voxel
        if few:  # comparing bytes is several times faster than bincount
            found += [np.count_nonzero(plane == value) for value in range(len(found))]
        else:
            found += np.bincount(plane.ravel(), minlength=len(found))[: len(found)]
    return tuple(int(sum(found[value] for value in values)) for values in labels.values)


def voxel_ml(geometry: Geometry) -> float | None:
    """Return the millilitres of a voxel; None for a two-dimensional file, whose pixels have no thickness.

    Args:
        geometry: of the segmentation.
    """
    return None if geometry.is_2d else math.prod(geometry.spacing) / 1000


def volume_rows(case_id: str, segmentation: np.ndarray, geometry: Geometry, labels: LabelSet) -> list[dict[str, str]]:
    """Return the rows of a case.

    Args:
        case_id: name of the case.
        segmentation: label map (Z, Y, X).
        geometry: its spacing.
        labels: the label set.

    Returns:
        For each label: case, label, voxels, and ml (six digits; empty for a two-dimensional file).
    """
    ml = voxel_ml(geometry)
    return [
        {"case": case_id, "label": name, "voxels": str(count), "ml": "" if ml is None else f"{count * ml:.6g}"}
        for name, count in zip(labels.names, count_voxels(segmentation, labels), strict=True)
    ]


def read_volumes(path: Path) -> dict[str, list[dict[str, str]]]:
    """Return the rows of a table by case; a missing or foreign table has none.

    Args:
        path: the table.
    """
    rows: dict[str, list[dict[str, str]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) == _COLUMNS:
                for row in reader:
                    own = {**row, "case": from_cell(row["case"]), "label": from_cell(row["label"])}
                    rows.setdefault(own["case"], []).append(own)
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    return rows


def write_volumes(
    path: Path,
    segmentations: Iterable[tuple[str, Path]],
    new: Mapping[str, list[dict[str, str]]],
    labels: LabelSet,
    problems: Problems,
) -> None:
    """Write the table of all segmentations that exist, those of earlier commands included.

    Rows of an earlier table are kept. A segmentation without rows, such as that of an interrupted command, is read.

    Args:
        path: the table.
        segmentations: case and file, first those of this command.
        new: rows of the cases that were segmented now.
        labels: the label set.
        problems: receives the segmentations that cannot be read.

    Raises:
        StorageError: the table cannot be written.
    """
    known = {**read_volumes(path), **new}
    names = list(labels.names)
    rows: list[dict[str, str]] = []
    for case_id, file in segmentations:
        if not file.exists():
            continue
        own = known.get(case_id, [])
        if [row["label"] for row in own] != names:
            own = []
            with problems.noting(case_id):
                found = read_label(file)
                own = volume_rows(case_id, found.array[0], found.geometry, labels)
        rows += own
    with (
        storage_errors(path),
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file_out,
    ):
        writer = csv.DictWriter(file_out, _COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "case": to_cell(row["case"]), "label": to_cell(row["label"])} for row in rows)
