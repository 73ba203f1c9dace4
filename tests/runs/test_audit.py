"""`umamba audit`: the whole command on a generated cross-validation, and how networks vote."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.cli.main import main
from umamba.datasets import RawCase, read_dataset
from umamba.io import UserError
from umamba.io.tabular import read_table
from umamba.labels import LabelSet
from umamba.runs.label_audit import value_names
from umamba.runs.out_of_fold import out_of_fold, vote

LABELS = LabelSet(("a", "b"), ((1,), (2,)))
NAMES = {"<b>front": 1, "back": 2}


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


def block(height: int) -> np.ndarray:
    labels = np.zeros((10, 16, 14), dtype=np.uint8)
    labels[2:8, 3:8, 3:11], labels[2:8, 8 : 8 + height, 3:11] = 1, 2
    return labels


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A dataset of ten cases, and the run that segmented them: case 4 is labelled the other way round."""
    root, run = tmp_path / "Dataset001_Test", tmp_path / "runs" / "x" / "3d_fullres"
    rng = np.random.default_rng(0)
    for index in range(10):
        truth = block(4 + index % 3)
        write(root / "imagesTr" / f"case{index}_0000.nii.gz", rng.normal(size=truth.shape).astype(np.float32) + truth)
        given = np.array([0, 2, 1], dtype=np.uint8)[truth] if index == 4 else truth
        write(root / "labelsTr" / f"case{index}.nii.gz", given)
        folder = run / f"fold_{index % 5}" / "seed_0" / "validation"
        write(folder / f"case{index}.nii.gz", np.roll(truth, index % 2, axis=2))
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, **NAMES}, "numTraining": 10}
    (root / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    return root


def audited(raw: Path, *further: str) -> Path:
    output = raw.parent / "audit"
    runs = raw.parent / "runs" / "x" / "3d_fullres"
    assert main(["audit", f"runs={runs}", f"raw_dataset={raw}", f"output={output}", "workers=1", *further]) == 0
    return output


def test_the_command_finds_the_case_and_writes_what_it_says(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = audited(raw, "pictures_mb=0")
    printed = capsys.readouterr().out
    assert "case4: <b>front and back are exchanged: 100% of their common voxels are crossed." in printed
    assert "1 of 10 cases are listed for review." in printed
    assert "poorly" not in printed
    cases = read_table(output / "cases.csv", ("case", "review", "kind", "reason", "label_file"))
    assert cases["case"][0] == "case4"
    assert cases["review"].tolist() == ["yes"] + ["no"] * 9
    assert (cases["kind"][0], cases["dsc"][0]) == ("swapped", 0.0)
    assert cases["score"].tolist() == sorted(cases["score"], reverse=True)
    assert cases["label_file"][0] == str(raw / "labelsTr" / "case4.nii.gz")
    parts = read_table(output / "parts.csv", ("case", "kind", "label", "segmentation", "reason"))
    mistaken = parts[parts["case"] == "case4"]
    assert set(mistaken["kind"]) == {"mistaken"}
    assert set(zip(mistaken["label"], mistaken["segmentation"], strict=True)) == {
        ("back", "<b>front"),
        ("<b>front", "back"),
    }
    front = mistaken[mistaken["label"] == "back"].iloc[0]
    assert [front[f"{axis}_{side}"] for axis in "zyx" for side in ("first", "last")] == [2, 7, 3, 7, 3, 10]
    pairs = read_table(output / "pairs.csv", ("label", "segmentation", "worst_case"))
    assert pairs["worst_case"].tolist() == ["case4", "case4"]
    assert pairs["voxels"].tolist() == sorted((6 * 5 * 8, 6 * 5 * 8), reverse=True)
    slices = read_table(output / "slices.csv", ("case", "axis"))
    assert slices["case"][0] == "case4"
    page = (output / "index.html").read_text()
    assert "<figure" not in page
    assert 'href="#case-case4"' not in page


def test_the_page_shows_the_case_and_runs_nothing(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umamba.runs.label_audit._LEAST_PICTURES", 2)
    page = (audited(raw) / "index.html").read_text()
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert "<b>front" not in page
    assert "&lt;b&gt;front and back are exchanged" in page
    assert page.count("<figure") == 2
    assert page.index("1. case4") < page.index("2. case")
    assert set(re.findall('href="#([^"]+)"', page)) >= {"case-case4", "cases", "parts", "slices", "pairs", "pictures"}
    assert set(re.findall('href="#([^"]+)"', page)) <= set(re.findall('id="([^"]+)"', page))


def test_networks_that_segment_badly_are_named(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (raw.parent / "runs").rglob("validation/*.nii.gz"):
        write(path, np.zeros_like(block(4)))
    page = (audited(raw, "pictures_mb=0") / "index.html").read_text()
    said = "The networks agree with the labels poorly (median DSC 0.00), so what differs is probably their fault"
    assert said in " ".join("".join(capsys.readouterr()).split())
    assert said in page


def test_cases_without_a_segmentation_are_named(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = raw.parent / "runs" / "x" / "3d_fullres"
    (run / "fold_3" / "seed_0" / "validation" / "case3.nii.gz").unlink()
    write(run / "fold_1" / "seed_0" / "validation" / "case1.nii.gz", block(4)[1:])  # another shape
    output = audited(raw, "pictures_mb=0")
    complaints = capsys.readouterr().err
    assert "1 of 10 training cases are left out, because no fold has segmented them, such as case3." in complaints
    assert "case1.nii.gz: has the shape (9, 16, 14)" in complaints
    assert len(read_table(output / "cases.csv", ("case", "review", "kind", "reason", "label_file"))) == 8


def test_a_folder_without_validation_is_refused(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["audit", f"runs={raw.parent}", f"raw_dataset={raw}", f"output={raw.parent / 'audit'}"]
    assert main(line) == 2
    assert "predict.validation=true" in capsys.readouterr().err
    assert not (raw.parent / "audit").exists()


def test_folds_that_saw_the_case_do_not_count(raw: Path) -> None:
    run = raw.parent / "runs" / "x" / "3d_fullres"
    write(run / "fold_all" / "seed_0" / "validation" / "case0.nii.gz", block(4))
    write(run / "fold_0" / "seed_1" / "validation" / "case0.nii.gz", block(4))
    write(run / "fold_0" / "seed_0" / "validation" / "foreign.nii.gz", block(4))
    nnunet = raw.parent / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    write(nnunet / "fold_2" / "validation" / "case0.nii.gz", block(4))
    found = out_of_fold([run, nnunet], read_dataset(raw))
    assert sorted(found) == [f"case{index}" for index in range(10)]
    places = [path.relative_to(raw.parent).parts[-4:-1] for path in found["case0"]]
    assert places == [
        ("fold_0", "seed_0", "validation"),
        ("fold_0", "seed_1", "validation"),
        ("nnUNetTrainer__nnUNetPlans__3d_fullres", "fold_2", "validation"),
    ]


def row(*values: int) -> np.ndarray:
    return np.array([[values]], dtype=np.uint8)


def test_networks_vote_by_hand(tmp_path: Path) -> None:
    case = RawCase("a", (), write(tmp_path / "label" / "a.nii.gz", row(1, 1, 1, 0, 2)))
    given = [row(1, 2, 2, 0, 1), row(1, 2, 1, 0, 0), row(1, 2, 2, 1, 2), row(1, 0, 1, 0, 0)]
    files = [write(tmp_path / str(index) / "a.nii.gz", each) for index, each in enumerate(given)]
    found = vote(case, files, LABELS, ".nii.gz")
    assert found.predicted.array[0].tolist() == row(1, 2, 1, 0, 0).tolist()  # of 2:2 votes the given label wins
    np.testing.assert_allclose(found.margin.ravel(), [0, 3 / 4, 0, 0, 2 / 4 - 1 / 4])
    alone = vote(case, files[:1], LABELS, ".nii.gz")
    assert alone.predicted.array[0].tolist() == given[0].tolist()
    np.testing.assert_allclose(alone.margin.ravel(), [0, 1, 1, 0, 1])


def test_probabilities_count_where_all_networks_stored_them(tmp_path: Path) -> None:
    case = RawCase("a", (), write(tmp_path / "label" / "a.nii.gz", row(1, 2)))
    files = [write(tmp_path / str(index) / "a.nii.gz", row(1, 1)) for index in range(2)]
    stored = np.array([[[0.1, 0.2], [0.5, 0.7], [0.4, 0.1]], [[0.0, 0.0], [0.2, 0.5], [0.8, 0.5]]], dtype=np.float32)
    np.savez_compressed(files[0].with_name("a.npz"), probabilities=stored[0].reshape(3, 1, 1, 2))
    assert vote(case, files, LABELS, ".nii.gz").margin.tolist() == [[[0, 1]]]  # only one network has them
    np.savez(files[1].with_name("a.npz"), probabilities=stored[1].reshape(3, 1, 1, 2))
    found = vote(case, files, LABELS, ".nii.gz")
    assert found.predicted.array[0].tolist() == row(2, 1).tolist()
    np.testing.assert_allclose(found.margin.ravel(), [0.6 - 0.35, 0.6 - 0.3], rtol=1e-6)
    regions = LabelSet(("whole", "core", "x"), ((1, 2), (2,), (2,)), region_order=(1, 2, 2))
    assert vote(case, files, regions, ".nii.gz").margin.tolist() == [[[0, 1]]]  # sigmoids do not exclude each other
    np.savez(files[1].with_name("a.npz"), probabilities=stored[1].reshape(3, 1, 2, 1))
    with pytest.raises(UserError, match="not probabilities of the shape"):
        vote(case, files, LABELS, ".nii.gz")


def test_labels_that_a_case_does_not_carry_are_background(tmp_path: Path) -> None:
    case = RawCase("a", (), write(tmp_path / "label" / "a.nii.gz", row(1, 1, 0, 0)))
    files = [write(tmp_path / str(index) / "a.nii.gz", each) for index, each in enumerate([row(1, 2, 2, 1)] * 3)]
    found = vote(case, files, LABELS, ".nii.gz", carried=("a",))
    assert found.predicted.array[0].tolist() == row(1, 0, 0, 1).tolist()
    assert found.margin.tolist() == [[[0, 1, 0, 1]]]
    stored = np.array([[0.1, 0.3, 0.5, 0.1], [0.8, 0.4, 0.1, 0.7], [0.1, 0.3, 0.4, 0.2]], np.float32)
    for file in files:
        np.savez(file.with_name("a.npz"), probabilities=stored.reshape(3, 1, 1, 4))
    found = vote(case, files, LABELS, ".nii.gz", carried=("a",))
    assert found.predicted.array[0].tolist() == row(1, 0, 0, 1).tolist()
    np.testing.assert_allclose(found.margin.ravel(), [0, 0.6 - 0.4, 0, 0.7 - 0.3], atol=1e-6)


def test_labels_turned_in_their_header_are_compared_in_place(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3
    image = sitk.GetImageFromArray(array)
    (tmp_path / "p").mkdir()
    sitk.WriteImage(image, str(tmp_path / "p" / "a.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(image, "RAS"), str(tmp_path / "a.nii.gz"))
    found = vote(RawCase("a", (), tmp_path / "a.nii.gz"), [tmp_path / "p" / "a.nii.gz"], LABELS, ".nii.gz")
    np.testing.assert_array_equal(found.given, array)
    assert not found.margin.any()


def test_names_of_values() -> None:
    regions = LabelSet(("whole", "core", "rim"), ((1, 2, 3), (2,), (1, 3)), region_order=(1, 2, 3))
    assert value_names(regions) == {1: "rim", 2: "core", 3: "rim"}
