"""Preparing a dataset with one fault of each kind ends in a table that names case and file of each fault."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.io import UserError
from umamba.runs.preparation import fingerprint_dataset, listed_dataset

Spoil = Callable[[sitk.Image], sitk.Image]


def voxel(value: float, kind: int = sitk.sitkFloat32) -> Spoil:
    """Return a function that sets one voxel."""

    def spoil(image: sitk.Image) -> sitk.Image:
        image = sitk.Cast(image, kind)
        image[3, 3, 3] = value
        return image

    return spoil


def turned(image: sitk.Image) -> sitk.Image:
    """Rotate the axes of an image by 180 degrees."""
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return image


def header(offset: int, value: float) -> Callable[[Path], None]:
    """Return a function that sets a number in a NIfTI header: pixdim begins at byte 76, the sform at byte 280."""

    def change(path: Path) -> None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[offset : offset + 4] = struct.pack("<f", value)
        path.write_bytes(gzip.compress(content))

    return change


# The file with the fault, the fault, and a word that the table must show for it.
VOXELS: dict[str, tuple[str, Spoil, str]] = {
    "nan": ("imagesTr/nan_0000.nii.gz", voxel(np.nan), "NaN"),
    "inf": ("imagesTr/inf_0000.nii.gz", voxel(np.inf), "infinite"),
    "fraction": ("labelsTr/fraction.nii.gz", voxel(1.5), "integers"),
    "gap": ("labelsTr/gap.nii.gz", voxel(4, sitk.sitkUInt8), "declared"),
    "empty": ("labelsTr/empty.nii.gz", lambda image: image * 0, "empty"),
    "turned": ("labelsTr/turned.nii.gz", turned, "direction"),
    "shape": ("labelsTr/shape.nii.gz", lambda image: image[:-1], "shape"),
}
BYTES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "zero": ("imagesTr/zero_0000.nii.gz", header(84, 0.0), "positive"),
    "minus": ("imagesTr/minus_0000.nii.gz", header(80, -1.0), "positive"),
    "garbage": ("imagesTr/garbage_0000.nii.gz", lambda path: path.write_bytes(b"no image"), "gzip"),  # type: ignore[dict-item,return-value]
    "cut": ("labelsTr/cut.nii.gz", lambda path: path.write_bytes(path.read_bytes()[:-9]), "truncated"),  # type: ignore[dict-item,return-value]
}


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Return a raw dataset with a valid case, and one case for each fault."""
    root = tmp_path / "Dataset066_Faults"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = ["sound", *VOXELS, *BYTES]
    for name in names:
        image = sitk.GetImageFromArray(rng.normal(size=(8, 9, 10)).astype(np.float32))
        label = sitk.GetImageFromArray(rng.integers(0, 3, (8, 9, 10)).astype(np.uint8))
        sitk.WriteImage(image, str(root / "imagesTr" / f"{name}_0000.nii.gz"))
        sitk.WriteImage(label, str(root / "labelsTr" / f"{name}.nii.gz"))
    for file, spoil, _ in VOXELS.values():
        sitk.WriteImage(spoil(sitk.ReadImage(str(root / file))), str(root / file))
    for file, change, _ in BYTES.values():
        change(root / file)
    declared = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(declared))
    return root


def table_of(root: Path, out: Path, workers: int = 1) -> str:
    """Return the error message of preparing the dataset."""
    with pytest.raises(UserError) as caught:
        fingerprint_dataset(listed_dataset(root, workers), out, workers)
    return str(caught.value)


def rows(table: str) -> dict[str, str]:
    """Return the text of each row by "case file"."""
    found: dict[str, str] = {}
    key = ""
    for line in table.splitlines():
        words = line.split()
        if len(words) > 3 and words[2] in ("error", "warning"):
            key = " ".join(words[:2])
        found[key] = found.get(key, "") + " " + line
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_each_fault_is_found_and_named_by_file(faulty: Path, tmp_path: Path, workers: int) -> None:
    found = rows(table_of(faulty, tmp_path / "out", workers))
    for name, (file, _, word) in {**VOXELS, **BYTES}.items():
        assert word in found[f"{name} {file}"], name
    assert not any(key.startswith("sound") for key in found)


def test_faults_of_the_listing_come_with_those_of_the_files(faulty: Path, tmp_path: Path) -> None:
    (faulty / "labelsTr" / "sound.nii.gz").unlink()
    image = faulty / "imagesTr" / "nan_0000.nii.gz"
    image.with_name("extra_0000.nii.gz").write_bytes(image.read_bytes())
    image.with_name("NAN_0000.nii.gz").write_bytes(image.read_bytes())
    (faulty / "labelsTr" / "NAN.nii.gz").write_bytes((faulty / "labelsTr" / "nan.nii.gz").read_bytes())
    found = rows(table_of(faulty, tmp_path / "out"))
    assert "missing" in found["sound labelsTr/sound.nii.gz"]
    assert "missing" in found["extra labelsTr/extra.nii.gz"]
    assert "upper and lower case" in found["nan imagesTr"]
    assert "NaN" in found["nan imagesTr/nan_0000.nii.gz"]
    assert "truncated" in found["cut labelsTr/cut.nii.gz"]


def test_cases_with_other_channels_are_named(faulty: Path, tmp_path: Path) -> None:
    declared = json.loads((faulty / "dataset.json").read_text())
    (faulty / "dataset.json").write_text(json.dumps(declared | {"channel_names": {"0": "T1", "1": "T2"}}))
    for name in ("sound", "empty"):
        first = faulty / "imagesTr" / f"{name}_0000.nii.gz"
        first.with_name(f"{name}_0001.nii.gz").write_bytes(first.read_bytes())
    found = rows(table_of(faulty, tmp_path / "out"))
    assert "missing" in found["gap imagesTr/gap_0001.nii.gz"]
    assert not any(key.startswith("sound") for key in found)


def test_axes_that_are_not_perpendicular(faulty: Path, tmp_path: Path) -> None:
    image, label = faulty / "imagesTr" / "sound_0000.nii.gz", faulty / "labelsTr" / "sound.nii.gz"
    for path in (image, label):
        header(284, 0.4)(path)  # shear row x of the sform along y
    content = bytearray(gzip.decompress(label.read_bytes()))
    content[252:254] = struct.pack("<h", 0)  # remove the qform, so that only the skewed sform is left
    label.write_bytes(gzip.compress(content))
    found = rows(table_of(faulty, tmp_path / "out"))
    assert "perpendicular" in found["sound imagesTr/sound_0000.nii.gz"]
    assert "orthonormal" in found["sound labelsTr/sound.nii.gz"]


def test_labels_that_are_not_consecutive(faulty: Path, tmp_path: Path) -> None:
    declared = json.loads((faulty / "dataset.json").read_text())
    declared["labels"]["two"] = 5
    (faulty / "dataset.json").write_text(json.dumps(declared))
    assert "consecutive" in table_of(faulty, tmp_path / "out")
