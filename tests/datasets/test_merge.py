"""Datasets with different labels joined into a partly labelled one, voxel by voxel."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from umamba.cli.compose import settings_of
from umamba.datasets import inspect_case, read_dataset
from umamba.datasets.archives import convert_archive
from umamba.datasets.convert_patients import Layout
from umamba.io import UserError
from umamba.settings import ConvertSettings


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture
def second(raw: Path) -> Path:
    """Return a dataset beside `raw` (liver 1, tumour 2) with spleen 1, liver 2 and ignore 3; one image is the same."""
    root = raw.with_name("Dataset002_Other")
    shutil.copytree(raw, root)
    for path in (root / "imagesTr").glob("b_*"):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image + 1, str(path))
    label = sitk.ReadImage(str(root / "labelsTr" / "b.nii.gz"))
    sitk.WriteImage(label + sitk.Cast(label == 2, label.GetPixelID()), str(root / "labelsTr" / "b.nii.gz"))
    content = json.loads((root / "dataset.json").read_text())
    content["labels"] = {"background": 0, "spleen": 1, "liver": 2, "ignore": 3}
    content["groups"] = {"a": "p", "b": "p"}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def joined(raw: Path, *datasets: str) -> Path:
    """Join datasets beside `raw`."""
    layout = Layout("Dataset700_Joined")
    return convert_archive("merge", raw.parent, raw.parent, 2, layout=layout, datasets=datasets)


def test_joined_labels_keep_their_voxels(raw: Path, second: Path) -> None:
    before = {path: path.read_bytes() for path in raw.parent.rglob("*") if path.is_file()}
    target = joined(raw, raw.name, second.name)
    dataset = read_dataset(target)
    assert dataset.labels.to_json()["labels"] == {"background": 0, "liver": 1, "tumour": 2, "spleen": 3, "ignore": 4}
    assert [case.case_id for case in dataset.training] == [
        f"{root.name}_{case}" for root in (raw, second) for case in "ab"
    ]
    assert set(dataset.annotated.values()) == {("liver", "tumour"), ("liver", "spleen")}
    for case in dataset.training:
        root, values = (raw, {0: 0, 1: 1, 2: 2}) if "001" in case.case_id else (second, {0: 0, 1: 3, 2: 1, 3: 4})
        old = voxels(root / "labelsTr" / f"{case.case_id[-1]}.nii.gz")
        assert case.label is not None
        assert np.array_equal(voxels(case.label), np.vectorize(values.get)(old))
        assert [path.resolve() for path in case.images] == [
            root / "imagesTr" / f"{case.case_id[-1]}_000{channel}.nii.gz" for channel in (0, 1)
        ]
        assert [finding for finding in inspect_case(dataset, case).findings if finding.severity == "error"] == []
    assert len(set(dataset.groups.values())) == 1  # a is in both, and both cases of the second share a patient
    assert set(dataset.groups) == {case.case_id for case in dataset.training} - {"Dataset001_Tiny_b"}
    assert all(path.read_bytes() == content for path, content in before.items())
    with pytest.raises(UserError, match="is a dataset already"):
        joined(raw, raw.name, second.name)


def test_what_cannot_be_joined_is_refused(raw: Path, second: Path) -> None:
    with pytest.raises(UserError, match=r"datasets=\[A,B\].*Dataset001_Tiny, Dataset002_Other"):
        joined(raw, "Dataset001_Tiny")
    content = json.loads((second / "dataset.json").read_text())
    for entry, said in (
        ({"labels": {"background": 0, "Liver": 1, "spleen": 2}}, "one spelling"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}, "regions"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "channel_names: Dataset001_Tiny has T1, T2"),
        ({"labels": {"background": 0, "spleen": 1, "liver": 2}}, "does not declare"),
    ):
        (second / "dataset.json").write_text(json.dumps({**content, **entry}))
        with pytest.raises(UserError, match=said):
            joined(raw, raw.name, second.name)
    assert not (raw.parent / "Dataset700_Joined" / "dataset.json").exists()


def test_the_command_names_its_keys(raw: Path) -> None:
    settings = settings_of(ConvertSettings, ["archive=merge", f"source={raw.parent}", "datasets=[A,B]", "name=C"])
    assert settings.datasets == ("A", "B")
    with pytest.raises(UserError, match="datasets: archive=msd does not have this key"):
        settings_of(ConvertSettings, ["archive=msd", f"source={raw.parent}", "datasets=[A,B]"])
    with pytest.raises(UserError, match="name=Dataset700_Joined"):
        convert_archive("merge", raw.parent, raw.parent, 1, layout=Layout())


def test_tiff_volumes_keep_their_spacing(tmp_path: Path) -> None:
    """nnU-Net keeps it in a file CASE.json beside the image and beside the label map."""
    rng = np.random.default_rng(0)
    spacings = {"Dataset001_A": [4.0, 0.5, 0.75], "Dataset002_B": None}
    for (name, spacing), label in zip(spacings.items(), ("liver", "spleen"), strict=True):
        root = tmp_path / name
        for folder, file in (("imagesTr", "c_0000"), ("labelsTr", "c")):
            (root / folder).mkdir(parents=True)
            array = rng.integers(0, 2 if folder == "labelsTr" else 255, (6, 16, 16)).astype(np.uint8)
            tifffile.imwrite(root / folder / f"{file}.tif", array)
            if spacing:
                (root / folder / "c.json").write_text(json.dumps({"spacing": spacing}))
        facts = {"channel_names": {"0": "x"}, "labels": {"background": 0, label: 1}, "numTraining": 1}
        (root / "dataset.json").write_text(json.dumps({**facts, "file_ending": ".tif"}))
    layout = Layout("Dataset700_Joined")
    target = convert_archive("merge", tmp_path, tmp_path, 1, layout=layout, datasets=tuple(spacings))
    dataset = read_dataset(target)
    for case, expected in zip(dataset.training, ((4.0, 0.5, 0.75), (1.0, 1.0, 1.0)), strict=True):
        inspection = inspect_case(dataset, case)
        assert inspection.image is not None
        assert inspection.label is not None
        assert inspection.label.geometry.spacing == inspection.image.geometry.spacing == expected
        assert [finding for finding in inspection.findings if finding.severity == "error"] == []
