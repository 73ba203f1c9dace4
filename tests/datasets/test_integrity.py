"""Each planted fault of a case is found and named, and nothing else is reported."""

import gzip
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.datasets import Inspection, inspect_case, read_dataset, unseen_labels

Change = Callable[[sitk.Image], sitk.Image]


def inspect(root: Path) -> Inspection:
    dataset = read_dataset(root)
    return inspect_case(dataset, dataset.training[0])


def spoil(path: Path, change: Change) -> None:
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(path))


def with_voxel(value: float, kind: int) -> Change:
    def change(image: sitk.Image) -> sitk.Image:
        image = sitk.Cast(image, kind)
        image[1, 2, 3] = value
        return image

    return change


def with_spacing(image: sitk.Image) -> sitk.Image:
    image.SetSpacing((1, 1, 2.5))
    return image


def with_origin(image: sitk.Image) -> sitk.Image:
    image.SetOrigin((3, 4, 0))
    return image


def with_direction(image: sitk.Image) -> sitk.Image:
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return image


def test_sound_case(raw: Path) -> None:
    inspection = inspect(raw)
    assert inspection.findings == ()
    assert inspection.image is not None
    assert inspection.image.array.shape == (2, 4, 6, 8)
    assert inspection.label is not None
    assert inspection.label.array.shape == (1, 4, 6, 8)


@pytest.mark.parametrize(
    ("file", "change", "severity", "word"),
    [
        ("imagesTr/a_0001", with_voxel(np.nan, sitk.sitkFloat32), "error", "1 voxels are NaN"),
        ("imagesTr/a_0000", with_voxel(np.inf, sitk.sitkFloat32), "error", "1 voxels are NaN"),
        ("imagesTr/a_0001", lambda image: image[:7], "error", "shape"),
        ("imagesTr/a_0001", with_spacing, "error", "spacing"),
        ("imagesTr/a_0001", with_direction, "error", "direction"),
        ("imagesTr/a_0001", with_origin, "warning", "origin is 5 mm"),
        ("imagesTr/a_0001", lambda image: image * 0, "warning", "all voxels are 0"),
        ("labelsTr/a", lambda image: image[:, :5], "error", "shape"),
        ("labelsTr/a", with_spacing, "error", "spacing"),
        ("labelsTr/a", with_direction, "error", "direction"),
        ("labelsTr/a", with_origin, "warning", "origin"),
        ("labelsTr/a", with_voxel(7, sitk.sitkUInt8), "error", "holds 7"),
        ("labelsTr/a", with_voxel(-1, sitk.sitkInt16), "error", "holds -1"),
        ("labelsTr/a", with_voxel(1.5, sitk.sitkFloat32), "error", r"not integers \(1.5"),
        ("labelsTr/a", lambda image: image * 0, "warning", "empty"),
    ],
)
def test_one_fault(raw: Path, file: str, change: Change, severity: str, word: str) -> None:
    spoil(raw / f"{file}.nii.gz", change)
    (finding,) = inspect(raw).findings
    assert (finding.case_id, finding.file, finding.severity) == ("a", f"{file}.nii.gz", severity)
    assert re.search(word, finding.message)


@pytest.mark.parametrize("value", [0.0, -2.0, float("nan")])
def test_spacing_that_itk_repairs_silently(raw: Path, value: float) -> None:
    path = raw / "labelsTr" / "a.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[84:88] = struct.pack("<f", value)
    path.write_bytes(gzip.compress(content))
    assert any("must be positive" in finding.message for finding in inspect(raw).findings)


def test_skewed_axes(raw: Path) -> None:
    for path in raw.rglob("*.nii.gz"):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ".mha"))
        path.unlink()
    for path in raw.rglob("a*.mha"):
        path.write_bytes(path.read_bytes().replace(b"Matrix = 1 0 0", b"Matrix = 1 .3 0"))
    (raw / "dataset.json").write_text((raw / "dataset.json").read_text().replace(".nii.gz", ".mha"))
    assert [finding.message.split(":")[0] for finding in inspect(raw).findings] == ["direction"] * 3


def test_undecodable_files_are_reported_together(raw: Path) -> None:
    for file in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (raw / file).write_bytes((raw / file).read_bytes()[:-60])
    inspection = inspect(raw)
    assert [finding.file for finding in inspection.findings] == ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"]
    assert all("truncated" in finding.message for finding in inspection.findings)
    assert inspection.image is None
    assert inspection.label is None


def test_number_of_channels(raw: Path) -> None:
    for path in (raw / "imagesTr").glob("*_0001*"):
        path.unlink()
    (finding,) = inspect(raw).findings
    assert "1 channel(s) in the files but 2" in finding.message


@pytest.mark.parametrize(
    ("declared", "values", "said"),
    [
        ({}, {"a": (0, 1), "b": (0, 1, 2)}, ""),
        ({}, {"a": (0, 1), "b": (0, 1)}, "labels: tumour (2) occurs in no training case. Check the export"),
        ({}, {"a": (0,), "b": (0,)}, "labels: liver (1), tumour (2) occur in no training case. "),
        ({}, {"a": (0, 1), "b": None}, ""),  # an unreadable label map may hold it
        ({"annotated_labels": ["liver"]}, {"a": (0, 1), "b": (0, 1)}, "labels: tumour (2) occurs"),
        ({"annotated_labels": {"b": ["tumour"]}}, {"a": (0, 2), "b": (0, 1, 2)}, "labels: liver (1) occurs"),
        ({"annotated_labels": {"b": ["tumour"]}}, {"a": (0, 1), "b": (0, 2)}, ""),
        ({"labels": {"background": 0, "liver": 1, "ignore": 2}}, {"a": (0, 1), "b": (0,)}, ""),
        (
            {"labels": {"background": 0, "whole": [1, 2], "core": 2, "rim": [1, 3]}, "regions_class_order": [1, 2, 3]},
            {"a": (0, 1), "b": (0, 1)},
            "labels: whole and core (2), rim (3) occur in no training case. ",
        ),
    ],
)
def test_a_label_that_occurs_nowhere_is_named(
    raw: Path, declared: dict[str, object], values: dict[str, tuple[int, ...] | None], said: str
) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(content | declared))
    found = unseen_labels(read_dataset(raw), values)
    assert len(found) == bool(said)
    for finding in found:
        assert (finding.case_id, finding.file, finding.severity) == ("", "dataset.json", "warning")
        assert finding.message.startswith(said)
        assert "from dataset.json" in finding.message


def test_hippocampus_is_sound(shared_dir: Path) -> None:
    dataset = read_dataset(shared_dir / "data" / "Dataset004_Hippocampus")
    assert [finding for case in dataset.training for finding in inspect_case(dataset, case).findings] == []
