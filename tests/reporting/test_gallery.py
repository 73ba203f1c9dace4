"""Pictures of cases: the same patient stored along other axes gives the same picture, with the letters at its sides."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
import SimpleITK as sitk

from umamba.datasets import read_dataset
from umamba.io import read_image, read_label
from umamba.labels.view import View, letters_of
from umamba.records import RunFolder
from umamba.reporting import write_report
from umamba.reporting.gallery import CasePicture, draw_case, gallery, picture, planes_of
from umamba.reporting.results import SCORE_COLUMNS, Results
from umamba.sweeps import PlannedRun, RunState

SHAPE = (5, 7, 9)  # Z, Y, X, voxels; SimpleITK's identity runs to the patient's left (X), back (Y) and head (Z)
SPACING_XYZ = (1.0, 1.5, 4.0)
CODES = ["".join(code) for code in itertools.product("RL", "AP", "IS")]
ORDERS = ["".join(order) for code in CODES for order in itertools.permutations(code)]


def patient() -> tuple[sitk.Image, sitk.Image]:
    """Return an image and a label: a block at the patient's right, front and head."""
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[3:, :2, :3] = 1  # head, front, right
    grey = np.random.default_rng(0).integers(0, 50, SHAPE).astype(np.int16) + label * np.int16(100)
    made = []
    for array in (grey, label):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING_XYZ)
        made.append(image)
    return made[0], made[1]


def write_dataset(root: Path, order: str) -> None:
    """Write a dataset with one test case whose axes run to the three directions of `order`, as SimpleITK stores it."""
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (root / name).mkdir(parents=True)
    declared = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "block": 1}, "numTraining": 1}
    (root / "dataset.json").write_text(json.dumps(declared | {"file_ending": ".nii.gz"}))
    image, label = (sitk.DICOMOrient(part, order) for part in patient())
    for split in ("Tr", "Ts"):
        sitk.WriteImage(image, str(root / f"images{split}" / "a_0000.nii.gz"))
        sitk.WriteImage(label, str(root / f"labels{split}" / "a.nii.gz"))


@pytest.mark.parametrize("oblique", [False, True])
def test_a_block_lies_at_the_letters_of_its_side_whatever_the_axes(tmp_path: Path, oblique: bool) -> None:
    assert len(set(ORDERS)) == 48
    seen = []
    for order in ORDERS:
        label = sitk.DICOMOrient(patient()[1], order)
        if oblique:  # turned by 20 degrees about the patient's long axis, as a tilted head is
            turn = sitk.Euler3DTransform((0, 0, 0), 0, 0, np.deg2rad(20)).GetMatrix()
            mixed = np.reshape(turn, (3, 3)) @ np.reshape(label.GetDirection(), (3, 3))
            label.SetDirection(mixed.ravel().tolist())
        path = tmp_path / f"{order}.nrrd"
        sitk.WriteImage(label, str(path))
        stored = read_label(path)
        view = View.of(letters_of(stored.geometry))
        turned = view.turn(stored.array[0]) > 0
        planes = planes_of(view, turned, stored.geometry.spacing)
        assert [plane.name.split()[0] for plane in planes] == ["axial", "coronal", "sagittal"]
        for plane, sides in zip(planes, ("RA", "RS", "AS"), strict=True):
            rows, columns = np.nonzero(plane.cut(turned))
            height, width = plane.cut(turned).shape
            left, right, top, bottom = plane.edges
            assert set(plane.edges) == {*sides, *("RLAPSI"["RLAPSI".index(side) ^ 1] for side in sides)}
            across = left if columns.mean() < (width - 1) / 2 else right
            along = top if rows.mean() < (height - 1) / 2 else bottom
            assert {across, along} == set(sides)
        seen.append([(plane.cut(turned).tolist(), plane.size, plane.edges) for plane in planes])
    assert all(planes == seen[0] for planes in seen)
    x, y, z = (size * spacing for size, spacing in zip(SHAPE[::-1], SPACING_XYZ, strict=True))
    assert [size for _, size, _ in seen[0]] == [(y, x), (z, x), (z, y)]


def drawn(root: Path, order: str) -> CasePicture:
    """Return the picture of the case of a dataset, with its reference as the prediction of one method."""
    write_dataset(root, order)
    folder = RunFolder(root / "run")
    folder.predictions.mkdir(parents=True)
    predicted = sitk.DICOMOrient(patient()[1], order)
    sitk.WriteImage(predicted, str(folder.predictions / "a.nii.gz"))
    dataset = read_dataset(root)
    return picture(dataset.test[0], dataset, {"umamba_bot": folder}, "lowest", 0.5, "dsc")


def test_the_whole_picture_is_the_same_for_other_axes(tmp_path: Path) -> None:
    first, second = (drawn(tmp_path / order, order) for order in ("LPS", "IRA"))
    assert [panel.title for panel in first.drawing.panels] == ["image", "reference", "U-Mamba_Bot"]
    assert first.drawing.panels == second.drawing.panels
    assert first.drawing.panels[1].webp == first.drawing.panels[2].webp != first.drawing.panels[0].webp
    assert [name for name, _ in first.drawing.legend] == ["block"]
    for found, order in ((first, "LPS"), (second, "IRA")):
        image = read_image((tmp_path / order / "imagesTs" / "a_0000.nii.gz",)).array[0]
        slices = dict(part.split() for part in found.drawing.place.split(", ")[:3])
        # The stored axis across each plane: SimpleITK's order is x, y, z, so that of the array is reversed.
        for name, letters in (("axial", "SI"), ("coronal", "AP"), ("sagittal", "LR")):
            axis = 2 - next(place for place, letter in enumerate(order) if letter in letters)
            stored = np.take(image, int(slices[name]), axis=axis)
            assert (stored >= 100).sum() > 0  # the slice in the file goes through the block


def test_the_slices_with_most_of_a_focus_are_drawn(tmp_path: Path) -> None:
    write_dataset(tmp_path, "LPS")
    dataset = read_dataset(tmp_path)
    (case,) = dataset.test
    assert case.label is not None
    focus = np.zeros(SHAPE, dtype=bool)
    focus[1, 5, 6] = True
    found = draw_case(read_image(case.images), {"labels": read_label(case.label)}, dataset.labels, focus)
    assert found.place.startswith("axial 1, coronal 5, sagittal 6, grey values")
    assert [panel.title for panel in found.panels] == ["image", "labels"]
    assert found.legend == ()  # these slices do not go through the block


def test_the_most_telling_cases_come_first_and_the_size_is_bounded(tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", "LPS")
    for number in range(5):
        for kind, ending in (("images", "_0000"), ("labels", "")):
            source = tmp_path / "raw" / f"{kind}Ts" / f"a{ending}.nii.gz"
            (tmp_path / "raw" / f"{kind}Ts" / f"{'bcdef'[number]}{ending}.nii.gz").write_bytes(source.read_bytes())
    folder = RunFolder(tmp_path / "run")
    folder.predictions.mkdir(parents=True)
    folder.config.write_text(f"dataset:\n  root: {tmp_path / 'raw'}\n")
    rows = [
        ("toy", "unet", "0", 0, case, "block", "dsc", score / 10)
        for case, score in zip("abcdef", (5, 1, 4, 2, 6, 3), strict=True)
    ]
    run = PlannedRun((), folder, "toy", "unet", 0, 0, 1, 1, "x")
    results = Results("s", "", (RunState(run, "done"),), pandas.DataFrame(rows, columns=list(SCORE_COLUMNS)), {}, {})
    found = gallery(results, "toy", 1e6)
    assert [(entry.case, entry.rank) for entry in found] == [
        *(("b", "lowest"), ("c", "median"), ("e", "highest")),
        *(("d", ""), ("f", ""), ("a", "")),
    ]
    most = found[0].drawing.size + found[1].drawing.size
    assert [entry.case for entry in gallery(results, "toy", most)] == ["b", "c"]
    assert gallery(results, "toy", 0) == []
    text = write_report(results, tmp_path / "report").read_text()
    pictures = re.findall(r"data:image/webp;base64,([^\"]+)", text)
    assert sum(map(len, pictures)) == sum(entry.drawing.size for entry in found)
    assert len(pictures) == 2 * len(found)  # image and reference
    assert "data:image/webp" not in write_report(results, tmp_path / "report", pictures_mb=0).read_text()
