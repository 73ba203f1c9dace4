"""A second conversion into one folder: what is kept, what is replaced or removed, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.datasets import read_dataset
from umamba.datasets.archives import convert_archive
from umamba.datasets.convert_common import convert
from umamba.datasets.convert_endovis import endovis
from umamba.datasets.convert_patients import Layout
from umamba.datasets.made_from import FILE, origin
from umamba.datasets.phantom_2d import write_picture
from umamba.io import UserError

RNG = np.random.default_rng(5)
LAYOUT = Layout("Dataset500_Mine")


def volume(path: Path, array: np.ndarray) -> np.ndarray:
    """Write a volume; return its array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return array


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def patient(source: Path, name: str, *values: int) -> np.ndarray:
    """Write a patient with an image and a label map of these values; return the label map."""
    volume(source / name / f"{name}_t1.nii.gz", RNG.normal(size=(4, 5, 6)).astype(np.float32))
    label = RNG.permutation(np.resize([0, *values], 120)).reshape(4, 5, 6).astype(np.uint8)
    return volume(source / name / f"{name}_seg.nii.gz", label)


def folders(source: Path, raw: Path) -> Path:
    return convert_archive("folders", source, raw, 1, layout=LAYOUT)


def content(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def times(folder: Path) -> dict[str, int]:
    """Return when each image and label map was written."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def test_a_further_label_value_renumbers_the_cases_that_were_converted_before(tmp_path: Path) -> None:
    source, raw = tmp_path / "source", tmp_path / "raw"
    truths = {name: patient(source, name, 1, 4) for name in ("A", "B")}
    folders(source, raw)
    truths["C"] = patient(source, "C", 2, 4)
    dataset = read_dataset(folders(source, raw))
    assert dataset.labels.names == ("label_1", "label_2", "label_4")
    assert [case.case_id for case in dataset.training] == ["A", "B", "C"]
    for case in dataset.training:
        assert case.label is not None
        truth = truths[case.case_id]
        assert np.array_equal(voxels(case.label), (truth == 1) + 2 * (truth == 2) + 3 * (truth == 4))


def test_other_structures_are_read_again(tmp_path: Path) -> None:
    source, parts = tmp_path / "source", {}
    for name in ("liver", "spleen"):
        mask = RNG.integers(0, 2, (4, 5, 6)).astype(np.uint8)
        parts[name] = volume(source / "s1" / "segmentations" / f"{name}.nii.gz", mask)
    volume(source / "s1" / "ct.nii.gz", RNG.normal(size=(4, 5, 6)).astype(np.float32))
    for name in parts:
        layout = Layout("Dataset600_One", labels=(name,))
        dataset = read_dataset(convert_archive("totalsegmentator", source, tmp_path / "raw", 1, layout=layout))
        assert dataset.labels.names == (name,)
        assert dataset.training[0].label is not None
        assert np.array_equal(voxels(dataset.training[0].label), parts[name])


def test_another_source_replaces_and_removes_only_what_was_converted(tmp_path: Path) -> None:
    """Size and time of the other source's image are equal, as in two versions of an archive."""
    one, two, raw = tmp_path / "one", tmp_path / "two", tmp_path / "raw"
    for source, names in ((one, "AB"), (two, "A")):
        for name in names:
            volume(source / name / f"{name}_t1.nii", RNG.normal(size=(4, 5, 6)).astype(np.float32))
            volume(source / name / f"{name}_seg.nii", np.resize([0, 1], 120).reshape(4, 5, 6).astype(np.uint8))
            for path in (source / name).iterdir():
                os.utime(path, ns=(10**18, 10**18))
    root = folders(one, raw)
    for name in ("notes.txt", "imagesTr/notes.txt"):
        (root / name).write_text("of the user's")
    before = content(root)
    with pytest.raises(UserError, match="no such folder"):
        folders(tmp_path / "none", raw)
    assert content(root) == before
    folders(two, raw)
    assert np.array_equal(voxels(root / "imagesTr" / "A_0000.nii.gz"), voxels(two / "A" / "A_t1.nii"))
    assert set(times(root)) == {"imagesTr/A_0000.nii.gz", "labelsTr/A.nii.gz"}
    assert json.loads((root / "dataset.json").read_text())["numTraining"] == 1
    assert (root / "notes.txt").read_text() == (root / "imagesTr" / "notes.txt").read_text() == "of the user's"


def test_equal_files_are_kept_and_changed_ones_are_written_again(tmp_path: Path) -> None:
    source, raw = tmp_path / "source", tmp_path / "raw"
    for name in ("A", "B", "C"):
        patient(source, name, 1, 2)
    root = folders(source, raw)
    first, whole = times(root), content(root)
    folders(source, raw)
    assert (times(root), content(root)) == (first, whole)
    volume(source / "B" / "B_seg.nii.gz", np.resize([0, 2, 1], 120).reshape(4, 5, 6).astype(np.uint8))
    shutil.rmtree(source / "C")
    folders(source, raw)
    now = times(root)
    assert {name for name in first if name not in now} == {"imagesTr/C_0000.nii.gz", "labelsTr/C.nii.gz"}
    assert {name for name in now if now[name] != first[name]} == {"labelsTr/B.nii.gz"}
    assert np.array_equal(voxels(root / "labelsTr" / "B.nii.gz"), voxels(source / "B" / "B_seg.nii.gz"))


def test_a_case_that_moves_from_test_to_training_leaves_the_test(tmp_path: Path) -> None:
    source, raw = tmp_path / "source", tmp_path / "raw"
    for name in ("A", "B"):
        patient(source, name, 1)
    label = source / "B" / "B_seg.nii.gz"
    label.rename(tmp_path / "aside.nii.gz")
    assert [case.case_id for case in read_dataset(folders(source, raw)).test] == ["B"]
    (tmp_path / "aside.nii.gz").rename(label)
    dataset = read_dataset(folders(source, raw))
    assert ([case.case_id for case in dataset.training], dataset.test) == (["A", "B"], ())


def test_names_alone_change_no_image(tmp_path: Path) -> None:
    source, raw = tmp_path / "source", tmp_path / "raw"
    patient(source, "A", 1, 4)
    root = folders(source, raw)
    before = times(root)
    named = Layout(LAYOUT.name, labels=("edema", "core"))
    convert_archive("folders", source, raw, 1, layout=named)
    assert times(root) == before
    assert read_dataset(root).labels.names == ("edema", "core")


def test_whole_frames_follow_cropped_ones(tmp_path: Path) -> None:
    frame = RNG.integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    own = tmp_path / "source" / "instrument_dataset_1"
    for path, picture in (
        (own / "left_frames" / "frame000.png", frame),
        (own / "ground_truth" / "Left_Prograsp_Forceps_labels" / "frame000.png", frame[..., 0] // 128),
    ):
        path.parent.mkdir(parents=True)
        write_picture(path, picture)
    for crop, shape in ((True, (1024, 1280)), (False, (1080, 1920))):
        converter = endovis(crop=crop, videos="official")
        (case,) = read_dataset(convert(converter, tmp_path / "source", tmp_path / "raw", 1)).training
        assert case.label is not None
        assert (voxels(case.images[0]).shape[:2], voxels(case.label).shape) == (shape, shape)


def test_an_interrupted_second_conversion_ends_as_a_first_one(tmp_path: Path) -> None:
    source, raw = tmp_path / "source", tmp_path / "raw"
    for name in ("A", "B"):
        patient(source, name, 1, 4)
    root = folders(source, raw)
    patient(source, "C", 2)
    image = source / "B" / "B_t1.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[:50])
    with pytest.raises(UserError, match=r"B_t1\.nii\.gz"):
        folders(source, raw)
    assert not (root / "dataset.json").exists()  # it would give the values their former meaning
    written = times(root)
    image.write_bytes(whole)
    folders(source, raw)
    assert {name: times(root)[name] for name in written} == written
    assert content(root) == content(folders(source, tmp_path / "fresh"))


@pytest.mark.parametrize("state", ["earlier version", "damaged", "outside", "no dataset.json"])
def test_a_folder_of_unknown_origin_is_refused_and_stays(tmp_path: Path, state: str) -> None:
    source, raw = tmp_path / "source", tmp_path / "raw"
    patient(source, "A", 1)
    root = folders(source, raw)
    victim = tmp_path / "raw" / "keep.txt"
    victim.write_text("mine")
    if state in ("earlier version", "no dataset.json"):
        (root / FILE).unlink()
    if state == "no dataset.json":
        (root / "dataset.json").unlink()
    if state == "damaged":
        (root / FILE).write_text('{"files": ')
    if state == "outside":
        (root / FILE).write_text('{"files": {"../keep.txt": "", "imagesTr/A_0000.nii.gz": ""}}')
    before = content(tmp_path / "raw")
    with pytest.raises(UserError, match=rf"Dataset500_Mine.*({FILE}|not valid JSON)"):
        folders(source, raw)
    assert content(tmp_path / "raw") == before


def test_a_file_that_somebody_put_there_is_not_taken_for_a_converted_one(tmp_path: Path) -> None:
    source, raw = tmp_path / "source", tmp_path / "raw"
    patient(source, "A", 1)
    root = folders(source, raw)
    shutil.copy(root / "imagesTr" / "A_0000.nii.gz", root / "imagesTr" / "B_0000.nii.gz")
    patient(source, "B", 1)
    before = content(root)
    with pytest.raises(UserError, match=r"imagesTr/B_0000\.nii\.gz was not written by this program"):
        folders(source, raw)
    assert content(root) == before


def test_a_converted_file_that_somebody_corrected_is_not_replaced(tmp_path: Path) -> None:
    source, raw = tmp_path / "source", tmp_path / "raw"
    for name in ("A", "B"):
        patient(source, name, 1)
    root = folders(source, raw)
    corrected = root / "labelsTr" / "A.nii.gz"
    end = (root / "dataset.json").stat().st_mtime_ns
    volume(corrected, np.resize([1, 1, 0], 120).reshape(4, 5, 6).astype(np.uint8))
    os.utime(corrected, ns=(end + 10**9, end + 10**9))
    before = content(root)
    folders(source, raw)  # equal facts: it stays
    patient(source, "B", 1, 3)
    with pytest.raises(UserError, match=r"labelsTr/A\.nii\.gz was changed after its conversion"):
        folders(source, raw)
    assert content(root) == before
    corrected.unlink()
    assert read_dataset(folders(source, raw)).labels.names == ("label_1", "label_3")
    assert np.array_equal(voxels(corrected), voxels(source / "A" / "A_seg.nii.gz"))


def test_every_fact_of_a_source_file_counts(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text("1")
        os.utime(path, ns=(5, 5))
    found = [origin({"crop": False}, paths), origin({"crop": True}, paths), origin({"crop": False}, paths[::-1])]
    os.utime(paths[0], ns=(5, 6))
    found.append(origin({"crop": False}, paths))
    paths[0].write_text("12")
    os.utime(paths[0], ns=(5, 5))
    found.append(origin({"crop": False}, paths))
    assert len(set(found)) == 5
    paths[0].unlink()
    with pytest.raises(UserError, match=f"{paths[0]}: No such file"):
        origin({}, paths)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("tumour", "tumour"), "tumour is the name of label 1 and of label 2"),
        (("background", "tumour"), "background is the name of the background and of label 1"),
        (("ignore", "tumour"), '"ignore" is'),
    ],
)
def test_names_that_destroy_the_label_table_are_refused_before_anything_is_written(
    tmp_path: Path, labels: tuple[str, ...], said: str
) -> None:
    source, raw = tmp_path / "source", tmp_path / "raw"
    patient(source, "A", 1, 2)
    with pytest.raises(UserError, match=f"source={source}: labels: {said}"):
        convert_archive("folders", source, raw, 1, layout=Layout("Dataset500_Mine", labels=labels))
    assert not raw.exists()


def test_a_structure_is_chosen_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    volume(source / "s1" / "ct.nii.gz", np.zeros((4, 5, 6), np.float32))
    volume(source / "s1" / "segmentations" / "liver.nii.gz", np.ones((4, 5, 6), np.uint8))
    layout = Layout("Dataset600_Twice", labels=("liver", "liver"))
    with pytest.raises(UserError, match="liver is the name of label 1 and of label 2"):
        convert_archive("totalsegmentator", source, tmp_path / "raw", 1, layout=layout)
    assert not (tmp_path / "raw").exists()
