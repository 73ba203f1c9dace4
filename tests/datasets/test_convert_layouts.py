"""Converters of layouts that people have: files of the sources, read by nibabel and PIL, against the converted ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture
from skimage.measure import label as connected_components

from umamba.datasets import list_findings, read_dataset
from umamba.datasets.archives import convert_archive
from umamba.datasets.convert_nuclei import decoded_runs
from umamba.datasets.convert_patients import Layout
from umamba.io import UserError, read_json
from umamba.settings import ConvertSettings, InvalidSettings

RNG = np.random.default_rng(0)
AFFINE = np.array([[-0.9, 0, 0, 20], [0, 1.1, 0, -7], [0, 0, 2.5, 3], [0, 0, 0, 1]])


def nifti(path: Path, array: np.ndarray) -> np.ndarray:
    """Write an array (X, Y, Z, ...) by nibabel; return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return array


def volume(*shape: int) -> np.ndarray:
    """Return random intensities."""
    return RNG.normal(100, 20, shape or (6, 5, 4)).astype(np.float32)


def labels(*values: int) -> np.ndarray:
    """Return a label map that holds the values and background."""
    return RNG.permutation(np.resize([0, *values], 120)).reshape(6, 5, 4).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    """Return an array (X, Y, Z), whose affine must be that of the source."""
    image: nibabel.Nifti1Image = nibabel.load(path)  # type: ignore[assignment]
    assert np.allclose(image.affine, AFFINE, atol=1e-5)
    return np.asarray(image.dataobj)


def test_decathlon(tmp_path: Path) -> None:
    task = tmp_path / "Task01_BrainTumour"
    images = {name: nifti(task / "imagesTr" / f"{name}.nii.gz", volume(6, 5, 4, 2)) for name in ("B_001", "B_002")}
    truths = {name: nifti(task / "labelsTr" / f"{name}.nii.gz", labels(1, 2)) for name in images}
    nifti(task / "imagesTs" / "B_009.nii.gz", volume(6, 5, 4, 2))
    (task / "imagesTr" / "._B_001.nii.gz").write_bytes(b"of macOS")
    facts = {
        "name": "BRATS",
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"},
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in images],
        "test": ["./imagesTs/B_009.nii.gz"],
    }
    (task / "dataset.json").write_text(json.dumps(facts))
    root = convert_archive("msd", tmp_path, tmp_path / "raw", 1, layout=Layout())
    dataset = read_dataset(root)
    assert (dataset.name, dataset.channel_names) == ("Dataset001_BrainTumour", ("FLAIR", "T1w"))
    assert dataset.labels.names == ("edema", "tumour")
    assert [case.case_id for case in (*dataset.training, *dataset.test)] == ["B_001", "B_002", "B_009"]
    for case in dataset.training:
        for channel, path in enumerate(case.images):
            assert np.array_equal(read(path), images[case.case_id][..., channel])
        assert case.label is not None
        assert np.array_equal(read(case.label), truths[case.case_id])
    nifti(task / "imagesTs" / "B_009.nii.gz", volume())
    with pytest.raises(UserError, match=r"the case has 1 channel, but must have 2 \(FLAIR, T1w\)"):
        convert_archive("msd", task, tmp_path / "raw1", 1, layout=Layout())
    facts["training"] = [{"image": "../../../etc/passwd", "label": "./labelsTr/B_001.nii.gz"}]
    (task / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"'\.\.' is no name"):
        convert_archive("msd", task, tmp_path / "raw2", 1, layout=Layout())


def hippocampus_task(folder: Path, *names: str) -> Path:
    """Write a task of the Decathlon with one case and two labels of these names."""
    task = folder / "Task04_Hippocampus"
    nifti(task / "imagesTr" / "hippocampus_001.nii.gz", volume())
    nifti(task / "labelsTr" / "hippocampus_001.nii.gz", labels(1, 2))
    facts = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": names[0], "2": names[1]},
        "training": [{"image": "./imagesTr/hippocampus_001.nii.gz", "label": "./labelsTr/hippocampus_001.nii.gz"}],
        "test": [],
    }
    (task / "dataset.json").write_text(json.dumps(facts))
    return task


def test_the_presets_names(tmp_path: Path) -> None:
    task = hippocampus_task(tmp_path, "Anterior", "Posterior")
    root = convert_archive("msd", task, tmp_path / "raw", 1, layout=Layout())
    preset = Path("configs/dataset/hippocampus.yaml").read_text()
    assert root.name in preset
    assert "Dataset703_Nuclei" in Path("configs/experiment/nuclei_unet.yaml").read_text()


def test_total_segmentator(tmp_path: Path) -> None:
    source, masks = tmp_path / "Totalsegmentator_dataset_v201", {}
    for patient in ("s0000", "s0011", "s0020"):
        nifti(source / patient / "ct.nii.gz", volume().astype(np.int16))
        parts = labels(1, 2, 3)
        masks[patient] = parts
        for value, name in enumerate(("aorta", "liver", "spleen"), start=1):
            nifti(source / patient / "segmentations" / f"{name}.nii.gz", (parts == value).astype(np.uint8))
    (source / "meta.csv").write_text("image_id;age;split\ns0000;60;train\ns0011;61;val\ns0020;70;test\n")
    every = convert_archive("totalsegmentator", source, tmp_path / "raw", 2, layout=Layout("Dataset600_All"))
    dataset = read_dataset(every)
    assert dataset.labels.names == ("aorta", "liver", "spleen")
    assert dataset.channel_names == ("CT",)
    assert [case.case_id for case in dataset.test] == ["s0020"]
    for case in (*dataset.training, *dataset.test):
        assert case.label is not None
        assert np.array_equal(read(case.label), masks[case.case_id])
    two = Layout("Dataset601_Two", labels=("spleen", "aorta"))
    dataset = read_dataset(convert_archive("totalsegmentator", source, tmp_path / "raw", 1, layout=two))
    assert dataset.labels.names == ("spleen", "aorta")
    assert dataset.training[0].label is not None
    parts = masks["s0000"]
    assert np.array_equal(read(dataset.training[0].label), (parts == 3) + 2 * (parts == 1))
    with pytest.raises(UserError, match=r"heart is no structure.*aorta, liver, spleen"):
        convert_archive("totalsegmentator", source, tmp_path, 1, layout=Layout("X", labels=("heart",)))


def totals(source: Path) -> None:
    """Write three patients of TotalSegmentator."""
    for patient in ("s0000", "s0011", "s0020"):
        nifti(source / patient / "ct.nii.gz", volume().astype(np.int16))
        nifti(source / patient / "segmentations" / "liver.nii.gz", labels(1))


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_the_split_of_meta_csv_is_kept(tmp_path: Path, delimiter: str, messages: pytest.LogCaptureFixture) -> None:
    totals(tmp_path)
    rows = ("\ufeffimage_id,age,split", "s0000,60,train", "s0020,70,test")
    text = "\n".join(rows).replace(",", delimiter)
    (tmp_path / "meta.csv").write_text(text, encoding="utf-8")
    layout = Layout("Dataset600_All")
    dataset = read_dataset(convert_archive("totalsegmentator", tmp_path, tmp_path / "raw", 1, layout=layout))
    assert [case.case_id for case in dataset.training] == ["s0000", "s0011"]
    assert [case.case_id for case in dataset.test] == ["s0020"]
    assert "does not list s0011 (patients: 1). They become training cases." in " ".join(messages.messages)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"image_id;age\ns0000;60\n", r"must name the columns: image_id,split \(separated by a semicolon or a comma\)"),
        (b"", "must name the columns"),
        ("image_id;split\nM\u00fcller;test\n".encode("latin-1"), "cannot be read as text.*Save it as UTF-8"),
        ("image_id;split\ns0000;test\n".encode("utf-16-le"), "cannot be read as text.*Save it as UTF-8"),
    ],
)
def test_a_meta_csv_without_a_split_is_named(tmp_path: Path, text: bytes, said: str) -> None:
    totals(tmp_path)
    (tmp_path / "meta.csv").write_bytes(text)
    with pytest.raises(UserError, match=rf"meta\.csv: .*{said}"):
        convert_archive("totalsegmentator", tmp_path, tmp_path / "raw", 1, layout=Layout("Dataset600_All"))
    assert not (tmp_path / "raw").exists()


def brats(source: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Write three patients of two channels with the label values of BraTS; the last one without a label map."""
    images, truths = {}, {}
    for patient in ("BraTS_001", "BraTS_002", "BraTS_003"):
        for kind in ("flair", "t1ce"):
            images[patient, kind] = nifti(source / patient / f"{patient}_{kind}.nii.gz", volume())
        if patient != "BraTS_003":
            truths[patient] = nifti(source / patient / f"{patient}_seg.nii.gz", labels(1, 2, 4))
    return images, truths  # type: ignore[return-value]


def test_a_folder_for_each_patient(tmp_path: Path) -> None:
    images, truths = brats(tmp_path / "source")
    layout = Layout("Dataset500_Tumour", labels=("necrosis", "edema", "enhancing"))
    dataset = read_dataset(convert_archive("folders", tmp_path / "source", tmp_path / "raw", 2, layout=layout))
    assert dataset.channel_names == ("FLAIR", "T1CE")
    assert dataset.labels.names == layout.labels
    assert [case.case_id for case in dataset.test] == ["BraTS_003"]
    for case in dataset.training:
        for kind, path in zip(("flair", "t1ce"), case.images, strict=True):
            assert np.array_equal(read(path), images[case.case_id, kind])  # type: ignore[index]
        assert case.label is not None
        truth = truths[case.case_id]
        assert np.array_equal(read(case.label), np.where(truth == 4, 3, truth))


def test_cases_with_an_equal_first_channel_are_different_images(tmp_path: Path) -> None:
    """A modality that is missing everywhere was filled with zeros; copies of all channels are still found."""
    source = tmp_path / "source"
    brats(source)
    for path in source.rglob("*_flair.nii.gz"):
        nifti(path, np.zeros_like(read(path)))
    layout = Layout("Dataset500_Tumour", labels=("necrosis", "edema", "enhancing"))
    convert_archive("folders", source, tmp_path / "raw", 1, layout=layout)
    training, test = next(source.rglob("BraTS_001_t1ce.nii.gz")), next(source.rglob("BraTS_003_t1ce.nii.gz"))
    shutil.copy(training, test)
    with pytest.raises(UserError, match="The same image is a training and a test image"):
        convert_archive("folders", source, tmp_path / "again", 1, layout=layout)


def test_a_folder_that_cannot_be_told_apart_says_what_to_give(tmp_path: Path) -> None:
    source = tmp_path / "source"
    brats(source)
    for patient in ("BraTS_001", "BraTS_002"):
        nifti(source / patient / f"{patient}_mask2.nii.gz", labels(1))
        nifti(source / patient / f"{patient}_brain-mask.nii.gz", labels(1))
    with pytest.raises(UserError, match=r"Say label=ENDING.*_seg\.nii\.gz \(2\)"):
        convert_archive("folders", source, tmp_path / "raw", 1, layout=Layout("Dataset500_X"))
    layout = Layout("Dataset500_X", label="_seg.nii.gz", channels=("_t1ce.nii.gz",))
    dataset = read_dataset(convert_archive("folders", source, tmp_path / "raw", 1, layout=layout))
    assert dataset.channel_names == ("T1CE",)
    with pytest.raises(UserError, match="label: _gt fits no file"):
        convert_archive("folders", source, tmp_path / "raw", 1, layout=Layout("Dataset500_X", label="_gt"))
    layout = Layout("Dataset500_X", label="_seg.nii.gz", channels=("_mask2.nii.gz",))
    with pytest.raises(UserError, match=r"BraTS_003 has no _mask2\.nii\.gz"):
        convert_archive("folders", source, tmp_path / "raw", 1, layout=layout)
    layout = Layout("Dataset500_X", label="_seg.nii.gz", labels=("one",))
    with pytest.raises(UserError, match="1 names are given, but the label maps hold the values 1, 2, 4"):
        convert_archive("folders", source, tmp_path / "raw", 1, layout=layout)
    with pytest.raises(UserError, match="the new dataset needs a name"):
        convert_archive("folders", source, tmp_path / "raw", 1, layout=Layout(label="_seg.nii.gz"))
    with pytest.raises(UserError, match="has a slash"):
        convert_archive("folders", source, tmp_path / "raw", 1, layout=Layout("../X", label="_seg.nii.gz"))


def test_bids(tmp_path: Path) -> None:
    source, derived = tmp_path / "ds", tmp_path / "ds" / "derivatives" / "manual"
    images, truths = {}, {}
    for subject, session in (("01", "a"), ("01", "b"), ("02", "a"), ("03", "a")):
        name = f"sub-{subject}_ses-{session}"
        folder = Path(f"sub-{subject}") / f"ses-{session}" / "anat"
        for kind in ("T1w", "FLAIR"):
            images[name, kind] = nifti(source / folder / f"{name}_{kind}.nii.gz", volume())
        if subject != "03":
            truths[name] = nifti(derived / folder / f"{name}_space-T1w_dseg.nii.gz", labels(7, 20))
            nifti(derived / folder / f"{name}_label-lesion_mask.nii.gz", labels(1))
    (derived / "dseg.tsv").write_text(
        "index\tname\tabbreviation\n0\tbackground\tBG\n7\twhite matter\tWM\n20\tcsf\tCSF\n"
    )
    with pytest.raises(UserError, match=r"label=KIND.*dseg \(3\), label-lesion_mask \(3\)"):
        convert_archive("bids", source, tmp_path / "raw", 1, layout=Layout("Dataset501_Brain"))
    layout = Layout("Dataset501_Brain", channels=("T1w", "FLAIR"), label="dseg")
    root = convert_archive("bids", source, tmp_path / "raw", 1, layout=layout)
    dataset = read_dataset(root)
    assert dataset.channel_names == ("T1w", "FLAIR")
    assert dataset.labels.names == ("white matter", "csf")
    assert dataset.groups == {"sub-01_ses-a": "sub-01", "sub-01_ses-b": "sub-01", "sub-02_ses-a": "sub-02"}
    assert [case.case_id for case in dataset.test] == ["sub-03_ses-a"]
    for case in dataset.training:
        for kind, path in zip(("T1w", "FLAIR"), case.images, strict=True):
            assert np.array_equal(read(path), images[case.case_id, kind])
        assert case.label is not None
        truth = truths[case.case_id]
        assert np.array_equal(read(case.label), (truth == 7) + 2 * (truth == 20))


def test_nuclei(tmp_path: Path) -> None:
    instances = np.zeros((20, 24), np.int64)
    instances[2:8, 3:9], instances[8:14, 3:9], instances[5:9, 12:20] = 1, 2, 3
    colours = RNG.integers(0, 256, (20, 24, 4)).astype(np.uint8)
    training, test = tmp_path / "stage1_train" / "ab12", tmp_path / "stage1_test" / "cd34"
    for folder in (training / "images", training / "masks", test / "images"):
        folder.mkdir(parents=True)
    Picture.fromarray(colours, "RGBA").save(training / "images" / "ab12.png")
    Picture.fromarray(colours[::-1], "RGBA").save(test / "images" / "cd34.png")
    for number in (1, 2, 3):
        Picture.fromarray(np.where(instances == number, 255, 0).astype(np.uint8)).save(
            training / "masks" / f"{number}.png"
        )
    flat = instances.T.ravel()
    rows = []
    for number in (1, 2, 3):
        pixels = np.flatnonzero(flat == number) + 1
        starts = pixels[np.diff(pixels, prepend=-9) > 1]
        runs = " ".join(f"{start} {np.count_nonzero((pixels >= start) & (pixels < start + 20))}" for start in starts)
        rows.append(f"cd34,{runs},20,24,Public")
    (tmp_path / "stage1_solution.csv").write_text("\n".join(["ImageId,EncodedPixels,Height,Width,Usage", *rows]))
    root = convert_archive("nuclei", tmp_path, tmp_path / "raw", 1, layout=Layout())
    dataset = read_dataset(root)
    assert (dataset.name, dataset.labels.names) == ("Dataset703_Nuclei", ("interior", "boundary"))
    for split, (case,) in (("Tr", dataset.training), ("Ts", dataset.test)):
        picture = np.asarray(Picture.open(case.images[0]))
        assert np.array_equal(picture, (colours if split == "Tr" else colours[::-1])[..., :3])
        assert case.label is not None
        classes = np.asarray(Picture.open(case.label))
        assert np.array_equal(classes > 0, instances > 0)
        assert connected_components(classes == 1).max() == 3
        kept = np.asarray(Picture.open(root / f"instances{split}" / f"{case.case_id}_label.tiff"))
        assert np.array_equal(kept, instances)
    with pytest.raises(UserError, match="the run 7 9 is outside picture x"):
        decoded_runs("x", [("7 9", 3, 4)])


def test_a_missing_dataset_json_is_answered_with_its_lines_and_can_be_written(tmp_path: Path) -> None:
    root = tmp_path / "Dataset500_Mine"
    for case_id in ("a", "b"):
        for channel in range(2):
            nifti(root / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz", volume())
        nifti(root / "labelsTr" / f"{case_id}.nii.gz", labels(1, 2, 3))
    _, (finding,) = list_findings(root)
    assert "umamba convert archive=folders" in finding.message
    written = json.loads(finding.message[finding.message.index("{") :])
    assert written == {
        "channel_names": {"0": "channel_0", "1": "channel_1"},
        "labels": {"background": 0, "label_1": 1, "label_2": 2, "label_3": 3},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    layout = Layout(channels=("T1", "CT"), labels=("x", "y", "z"))
    assert convert_archive("folders", root, tmp_path / "raw", 1, layout=layout) == root
    dataset = read_dataset(root)
    assert (dataset.channel_names, dataset.labels.names) == (("T1", "CT"), ("x", "y", "z"))
    with pytest.raises(UserError, match="exists already"):
        convert_archive("folders", root, tmp_path / "raw", 1, layout=layout)
    (root / "dataset.json").unlink()
    with pytest.raises(UserError, match="1 name is given, but the images have 2 channels"):
        convert_archive("folders", root, tmp_path / "raw", 1, layout=replace(layout, channels=("T1",)))
    nifti(root / "labelsTr" / "b.nii.gz", labels(1, 2, 5))
    with pytest.raises(UserError, match="the values are 1, 2, 3, 5, but must be"):
        convert_archive("folders", root, tmp_path / "raw", 1, layout=layout)
    (root / "imagesTr" / "b_0000.nii.gz").rename(root / "imagesTr" / "b.nii.gz")
    with pytest.raises(UserError, match=r"b\.nii\.gz: has no channel number"):
        convert_archive("folders", root, tmp_path / "raw", 1, layout=layout)
    (tmp_path / "empty").mkdir()
    (message,) = (finding.message for finding in list_findings(tmp_path / "empty")[1])
    assert "not in nnU-Net's raw layout" in message


def test_a_key_that_an_archive_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="label: archive=msd does not have this key, only bids and folders"):
        ConvertSettings(archive="msd", source=tmp_path, label="seg")


def test_a_label_map_with_fractions_is_named(tmp_path: Path) -> None:
    brats(tmp_path / "source")
    nifti(tmp_path / "source" / "BraTS_002" / "BraTS_002_seg.nii.gz", labels(1).astype(np.float32) + 0.5)
    with pytest.raises(UserError, match=r"BraTS_002_seg\.nii\.gz: holds other values than the integers"):
        convert_archive("folders", tmp_path / "source", tmp_path / "raw", 1, layout=Layout("Dataset500_X"))


def test_groups_are_written_only_if_one_has_several_cases(tmp_path: Path) -> None:
    for subject in ("01", "02"):
        nifti(tmp_path / "ds" / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii", volume())
        nifti(tmp_path / "ds" / "derivatives" / "x" / f"sub-{subject}" / f"sub-{subject}_dseg.nii.gz", labels(1))
    root = convert_archive("bids", tmp_path / "ds", tmp_path / "raw", 1, layout=Layout("Dataset502_One"))
    assert "groups" not in read_json(root / "dataset.json")
    assert read_dataset(root).labels.names == ("label_1",)


def brain(source: Path, table: bytes) -> np.ndarray:
    """Write a subject with the label values 3, 5 and 8 and a table of their names; return the label map."""
    nifti(source / "sub-01" / "anat" / "sub-01_T1w.nii.gz", volume())
    truth = nifti(source / "derivatives" / "x" / "sub-01" / "sub-01_dseg.nii.gz", labels(3, 5, 8))
    (source / "derivatives" / "x" / "dseg.tsv").write_bytes(table)
    (source / "derivatives" / "._dseg.tsv").write_bytes(b"\xff\0of macOS")
    return truth


def test_values_of_one_name_keep_their_own_label(tmp_path: Path, messages: pytest.LogCaptureFixture) -> None:
    table = b"index\tname\n3\thippocampus\n\n5\tbackground\n8\thippocampus\n9\n11\thippocampus\n"
    truth = brain(tmp_path / "ds", table)
    root = convert_archive("bids", tmp_path / "ds", tmp_path / "raw", 1, layout=Layout("Dataset502_One"))
    dataset = read_dataset(root)
    assert dataset.labels.names == ("hippocampus_3", "background_5", "hippocampus_8")
    assert dataset.training[0].label is not None
    assert np.array_equal(read(dataset.training[0].label), (truth == 3) + 2 * (truth == 5) + 3 * (truth == 8))
    assert "background_5, hippocampus_3, hippocampus_8 have their value" in " ".join(messages.messages)


def test_a_table_of_names_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    layout = Layout("Dataset502_One")
    for table, said in (
        ("index\tname\n3\tHirnh\u00e4lfte\n".encode("latin-1"), "cannot be read as text"),
        (b"index\tname\n3\ta\0b\n", "cannot be read as text"),
        (b"index\tname\n3\ta\n\n3\tb\n", "line 4 names 3 b, an earlier one a"),
    ):
        brain(tmp_path / "ds", table)
        with pytest.raises(UserError, match=rf"dseg\.tsv: {said}"):
            convert_archive("bids", tmp_path / "ds", tmp_path / "raw", 1, layout=layout)
    named = Layout("Dataset502_One", labels=("a", "b", "c"))  # names that are given need no table
    root = convert_archive("bids", tmp_path / "ds", tmp_path / "raw", 1, layout=named)
    assert read_dataset(root).labels.names == ("a", "b", "c")


def test_a_task_with_two_labels_of_one_name_is_refused(tmp_path: Path) -> None:
    task = hippocampus_task(tmp_path, "Part", "Part")
    with pytest.raises(UserError, match=f"source={task}: labels: Part is the name of label 1 and of label 2"):
        convert_archive("msd", task, tmp_path / "raw", 1, layout=Layout())
    assert not (tmp_path / "raw").exists()


def test_a_solution_that_is_no_table_is_named(tmp_path: Path) -> None:
    solution = tmp_path / "stage1_solution.csv"
    for text, said in (
        ("ImageId,EncodedPixels,Height,Width\n\na,1 2 3,3,4\n", "line 3 has no pairs"),
        ("ImageId,EncodedPixels,Height,Width\na,1 2,3,x\n", "line 2 has no pairs"),
        ("ImageId,Height,Width\na,3,4\n", "must name the columns"),
        ("ImageId,EncodedPixels,Height,Width\na," + "1 2 " * 50000 + ",3,4\n", "cannot be read as a table"),
    ):
        solution.write_text(text)
        with pytest.raises(UserError, match=rf"stage1_solution\.csv: .*{said}"):
            convert_archive("nuclei", tmp_path, tmp_path / "raw", 1, layout=Layout())
