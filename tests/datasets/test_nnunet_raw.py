"""The listing of a raw dataset: what it finds, and that it reports everything that is missing at once."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.datasets import Finding, findings_table, list_findings, read_dataset
from umamba.io import UserError


def change(root: Path, **entries: object) -> None:
    declared = json.loads((root / "dataset.json").read_text())
    declared |= entries
    (root / "dataset.json").write_text(json.dumps({key: value for key, value in declared.items() if value is not None}))


def errors(root: Path) -> list[tuple[str, str]]:
    return [(finding.case_id, finding.file) for finding in list_findings(root)[1] if finding.severity == "error"]


def test_sound_folder(raw: Path) -> None:
    dataset = read_dataset(raw)
    assert dataset.name == "Dataset001_Tiny"
    assert dataset.channel_names == ("T1", "T2")
    assert [case.case_id for case in dataset.training] == ["a", "b"]
    assert [path.name for path in dataset.training[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert dataset.training[1].label == raw / "labelsTr" / "b.nii.gz"
    assert [(case.case_id, case.label) for case in dataset.test] == [("c", None)]
    assert dataset.num_training == 2
    assert list_findings(raw)[1] == []


def test_test_labels_and_absent_num_training(raw: Path) -> None:
    shutil.copytree(raw / "labelsTr", raw / "labelsTs")
    (raw / "labelsTs" / "a.nii.gz").rename(raw / "labelsTs" / "c.nii.gz")
    (raw / "labelsTs" / "b.nii.gz").unlink()
    change(raw, numTraining=None)
    dataset = read_dataset(raw)
    assert dataset.test[0].label == raw / "labelsTs" / "c.nii.gz"
    assert dataset.num_training == 2


def test_all_problems_at_once(raw: Path) -> None:
    (raw / "imagesTr" / "a_0001.nii.gz").unlink()
    (raw / "labelsTr" / "b.nii.gz").unlink()
    shutil.copy(raw / "labelsTr" / "a.nii.gz", raw / "labelsTr" / "d.nii.gz")
    shutil.copy(raw / "imagesTr" / "b_0000.nii.gz", raw / "imagesTr" / "e.nii.gz")
    for channel in (0, 1, 2):
        shutil.copy(raw / "imagesTr" / "b_0000.nii.gz", raw / "imagesTr" / f"f_000{channel}.nii.gz")
    shutil.copy(raw / "labelsTr" / "a.nii.gz", raw / "labelsTr" / "f.nii.gz")
    (raw / "imagesTr" / "notes.txt").touch()
    (raw / "imagesTr" / ".DS_Store").touch()
    assert sorted(errors(raw)) == [
        ("", "imagesTr/e.nii.gz"),
        ("a", "imagesTr/a_0001.nii.gz"),
        ("b", "labelsTr/b.nii.gz"),
        ("d", "labelsTr/d.nii.gz"),
        ("f", "imagesTr/f_0002.nii.gz"),
    ]
    warnings = [finding.file for finding in list_findings(raw)[1] if finding.severity == "warning"]
    assert warnings == ["imagesTr/notes.txt"]
    with pytest.raises(UserError) as caught:
        read_dataset(raw)
    for name in ("a_0001.nii.gz", "labelsTr/b.nii.gz", "labelsTr/d.nii.gz", "f_0002.nii.gz", "e.nii.gz"):
        assert name in str(caught.value)


def test_all_mistakes_of_dataset_json_at_once(raw: Path) -> None:
    change(raw, channel_names={"1": "T1"}, labels={"liver": 1}, file_ending=".dcm")
    dataset, findings = list_findings(raw)
    assert dataset is None
    assert [finding.message.split(":")[0] for finding in findings] == ["channel_names", "labels", "file_ending"]


def test_malformed_or_missing_dataset_json(raw: Path) -> None:
    (raw / "dataset.json").write_text("{")
    assert errors(raw) == [("", "dataset.json")]
    (raw / "dataset.json").write_text("[]")
    assert errors(raw) == [("", "dataset.json")]
    (raw / "dataset.json").unlink()
    with pytest.raises(UserError, match="no such file"):
        read_dataset(raw)


def test_wrong_count_and_repeated_keys(raw: Path) -> None:
    change(raw, numTraining=3)
    assert "is 3, but 2" in list_findings(raw)[1][0].message
    text = (raw / "dataset.json").read_text().replace('"tumour": 2', '"liver": 2')
    (raw / "dataset.json").write_text(text)
    assert any('"liver" occurs twice' in finding.message for finding in list_findings(raw)[1])


def test_names_that_differ_in_capitals(raw: Path) -> None:
    for channel in range(2):
        shutil.copy(raw / "imagesTr" / f"a_000{channel}.nii.gz", raw / "imagesTr" / f"A_000{channel}.nii.gz")
    shutil.copy(raw / "labelsTr" / "a.nii.gz", raw / "labelsTr" / "A.nii.gz")
    assert any("only in upper and lower case" in finding.message for finding in list_findings(raw)[1])


def test_rgb_in_one_file(tmp_path: Path) -> None:
    for folder, name in (("imagesTr", "x_0000.png"), ("labelsTr", "x.png")):
        (tmp_path / folder).mkdir()
        pixels = np.zeros((5, 6, 3), np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / folder / name))
    declared = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "cell": 1},
        "file_ending": ".png",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(declared))
    dataset = read_dataset(tmp_path)
    assert dataset.training[0].images == (tmp_path / "imagesTr" / "x_0000.png",)


def test_cases_listed_in_dataset_json(raw: Path) -> None:
    (raw / "imagesTr").rename(raw / "scans")
    cases = {
        name: {"images": [f"scans/{name}_0000.nii.gz", f"scans/{name}_0001.nii.gz"], "label": f"labelsTr/{name}.nii.gz"}
        for name in ("b", "a")
    }
    change(raw, dataset=cases)
    dataset = read_dataset(raw)
    assert [case.case_id for case in dataset.training] == ["a", "b"]
    assert dataset.training[0].images[1] == raw / "scans" / "a_0001.nii.gz"
    cases["b"] = {"images": ["scans/a_0000.nii.gz", "scans/none.nii.gz"], "label": "labelsTr/b.nii.gz"}
    change(raw, dataset=cases | {"d": {}})
    assert errors(raw) == [("b", "scans/none.nii.gz"), ("b", "scans/a_0000.nii.gz"), ("d", "dataset.json")]


def test_table_is_sorted_and_bounded() -> None:
    findings = [Finding(f"case{index:03d}", "f", "error", "[bad]") for index in reversed(range(130))]
    lines = findings_table([Finding("case999", "f", "warning", "w"), *findings]).splitlines()
    assert lines[-1] == "+31 more"
    assert [line.split()[0] for line in lines[2:-1]] == [f"case{index:03d}" for index in range(100)]
    assert "[bad]" in lines[2]


def test_what_is_no_file_is_a_finding(raw: Path) -> None:
    for split, case_id in (("Tr", "a"), ("Ts", "c")):
        path = raw / f"images{split}" / f"{case_id}_0001.nii.gz"
        path.unlink()
        path.symlink_to("/nowhere/annex/objects/x.nii.gz")
    label = raw / "labelsTr" / "b.nii.gz"
    label.unlink()
    label.mkdir()
    (raw / "imagesTr" / "b_0000.nii.gz").unlink()
    os.mkfifo(raw / "imagesTr" / "b_0000.nii.gz")
    dataset, findings = list_findings(raw)
    said = {(finding.file, finding.severity): finding.message for finding in findings}
    assert "no such file: the link leads to /nowhere/annex" in said["imagesTr/a_0001.nii.gz", "error"]
    assert "no such file: the link leads to /nowhere/annex" in said["imagesTs/c_0001.nii.gz", "warning"]
    assert "is a folder" in said["labelsTr/b.nii.gz", "error"]
    assert "no regular file" in said["imagesTr/b_0000.nii.gz", "error"]
    assert dataset is not None
    assert (dataset.training, dataset.test) == ((), ())


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/b", "..", "", "a\\b", "a\x00b", "y" * 300])
def test_a_case_cannot_choose_another_folder(raw: Path, name: str) -> None:
    change(raw, dataset={name: {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}})
    dataset, findings = list_findings(raw)
    assert dataset is not None
    assert dataset.training == ()
    assert {finding.file for finding in findings if finding.severity == "error"} == {"dataset.json"}
    assert "Rename the case" in findings[0].message


def test_groups(raw: Path) -> None:
    assert read_dataset(raw).groups == {}
    change(raw, groups={"a": "p1", "b": 7})
    assert read_dataset(raw).groups == {"a": "p1", "b": "7"}
    (raw / "groups.csv").write_text("case,group\na,p1\n")
    assert errors(raw) == [("", "groups.csv")]  # both
    change(raw, groups=None)
    (raw / "groups.csv").write_text('\ufeffgroup,case,remark\n"Müller, 1",a,\n p2 ,b,x\n', encoding="utf-8")
    assert read_dataset(raw).groups == {"a": "Müller, 1", "b": "p2"}
    for content, words in (
        ("a;p1\n", "must name|first line"),
        ("case,group\na,\n", "line 2 has no case or no group"),
        ("case,group\na,p1\n\n\nb,\n", "line 5 has no case or no group"),
        ("case,group\na,p1\na,p2\n", "in the groups p1 and p2"),
    ):
        (raw / "groups.csv").write_text(content)
        with pytest.raises(UserError, match=words):
            read_dataset(raw)
    (raw / "groups.csv").write_text("case,group\nA,p1\nb,p1\n")
    findings = list_findings(raw)[1]
    assert [finding.severity for finding in findings] == ["warning"]
    assert "names 1 cases that are no training cases: A" in findings[0].message
    change(raw, groups=["a", "b"])
    (raw / "groups.csv").unlink()
    assert errors(raw) == [("", "dataset.json")]


def test_hippocampus(shared_dir: Path) -> None:
    dataset = read_dataset(shared_dir / "data" / "Dataset004_Hippocampus")
    assert (len(dataset.training), len(dataset.test), dataset.num_training) == (100, 20, 100)
    assert dataset.labels.names == ("Anterior", "Posterior")
