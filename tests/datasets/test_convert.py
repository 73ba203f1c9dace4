"""Converters on phantoms written in the archives' own layouts and formats, against the phantoms' own labels."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.measure import label as connected_components

from umamba.datasets import read_dataset
from umamba.datasets.convert_abdomen import AMOS, FLARE
from umamba.datasets.convert_cell import CELL
from umamba.datasets.convert_common import Converter, convert, count_lines
from umamba.datasets.convert_endovis import endovis, instrument_type
from umamba.datasets.phantom_2d import INSTRUMENTS, cell_instances, endoscopy_frame, write_picture
from umamba.io import StorageError, UserError

SizeLimit = Callable[[int], AbstractContextManager[None]]

# The organs 1 to 15 of AMOS22, from its dataset.json.
AMOS_ORGANS = (
    *("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota", "postcava"),
    *("pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus"),
)
SAME_ORGAN = {"gall bladder": "gallbladder", "arota": "aorta", "postcava": "inferior vena cava"}
TRAINING_MASKS = {1: "Maryland_Bipolar_Forceps_labels", 2: "Left_Prograsp_Forceps_labels"}


def volume(path: Path, array: np.ndarray) -> None:
    """Write a volume with a spacing and a direction that are not the defaults."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.5, 1.25, 5.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def voxels(path: Path) -> np.ndarray:
    """Return an image's array."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def picture(path: Path, array: np.ndarray) -> None:
    """Write a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, array)


def flare_archive(folder: Path, size: tuple[int, int, int] = (4, 8, 8)) -> Path:
    """Write two training, two test and one unlabelled case as FLARE22's archives have them."""
    rng = np.random.default_rng(0)
    for index in range(2):
        image, label = rng.integers(-1000, 1000, size).astype(np.int16), rng.integers(0, 14, size)
        volume(folder / "FLARE22Train" / "images" / f"FLARE22_Tr_{index + 1:04d}_0000.nii.gz", image)
        volume(folder / "FLARE22Train" / "labels" / f"FLARE22_Tr_{index + 1:04d}.nii.gz", label.astype(np.uint8))
        volume(folder / "Validation" / "images" / f"FLARETs_{index + 1:04d}_0000.nii.gz", image + np.int16(1))
        volume(folder / "Validation" / "labels" / f"FLARETs_{index + 1:04d}.nii.gz", label.astype(np.uint8))
    volume(folder / "Unlabeled" / "Case_00001_0000.nii.gz", rng.integers(0, 9, size).astype(np.int16))
    return folder


def endovis_archive(folder: Path) -> Path:
    """Write a training sequence of three frames, and its official continuation of two test frames."""
    for index in range(5):
        image, types = endoscopy_frame(np.random.default_rng([7, index]), (72, 96))
        types = np.where(types > 2, 0, types).astype(np.uint8)
        training = index < 3
        sequence = folder / ("instrument_1_4_training" if training else "instrument_2017_test") / "instrument_dataset_1"
        picture(sequence / "left_frames" / f"frame{index:03d}.png", image)
        picture(sequence / "right_frames" / f"frame{index:03d}.png", image[::-1])
        if training:
            for kind, name in TRAINING_MASKS.items():
                # Masks hold the values of the parts; in some sequences they have three equal channels.
                mask = np.where(types == kind, 10 * (1 + index), 0).astype(np.uint8)
                masks = np.stack([mask] * 3, axis=-1) if index == 2 else mask
                picture(sequence / "ground_truth" / name / f"frame{index:03d}.png", masks)
        else:
            picture(sequence / "gt" / "TypeSegmentation" / f"frame{index:03d}.png", types)
    return folder


def cell_archive(folder: Path) -> dict[str, np.ndarray]:
    """Write images in all formats of the challenge; return the instances by name."""
    instances = {}
    formats = (
        ("cell_00001.bmp", np.uint8, 3),
        ("cell_00002.tiff", np.uint16, 1),
        ("cell_00003.png", np.uint16, 3),
        ("cell_00004.tif", np.uint8, 1),
        ("cell_00005.png", np.uint8, 3),
    )
    for index, (name, dtype, channels) in enumerate(formats):
        image, cells = cell_instances(np.random.default_rng([3, index]), (64, 80))
        wide = image.astype(dtype) * (200 if dtype == np.uint16 else 1)
        part = "Tuning" if index == 4 else "Training-labeled"
        picture(folder / part / "images" / name, wide if channels == 3 else wide[..., 0])
        picture(folder / part / "labels" / f"{name.split('.')[0]}_label.tiff", cells)
        instances[name.split(".")[0]] = cells
    picture(folder / "Train-unlabeled" / "images" / "cell_09999.png", image)
    return instances


def test_flare_keeps_voxels_geometry_and_order(tmp_path: Path, messages: pytest.LogCaptureFixture) -> None:
    source = flare_archive(tmp_path / "source")
    root = convert(FLARE, source, tmp_path / "raw", 2)
    dataset = read_dataset(root)
    assert (len(dataset.training), len(dataset.test)) == (2, 2)
    assert dataset.labels.names[0] == "liver"
    assert dataset.labels.names[-1] == "left kidney"
    for case in (*dataset.training, *dataset.test):
        origin = next(source.rglob(case.images[0].name))
        ours, theirs = sitk.ReadImage(str(case.images[0])), sitk.ReadImage(str(origin))
        assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
        assert ours.GetSpacing() == theirs.GetSpacing()
        assert ours.GetDirection() == theirs.GetDirection()
        assert case.label is not None
        assert np.array_equal(voxels(case.label), voxels(next(source.rglob(case.label.name))))
    said = " ".join(messages.messages)
    assert "training cases: 2, the paper has 50. 48 are missing; they are published at zenodo.org" in said


def test_amos_takes_mr_cases_and_maps_each_organ(tmp_path: Path) -> None:
    values = np.arange(16).reshape(1, 4, 4)
    for number, folder in ((5, "Tr"), (507, "Tr"), (540, "Va")):
        volume(
            tmp_path / "amos22" / f"images{folder}" / f"amos_{number:04d}.nii.gz", (values + number).astype(np.int16)
        )
        volume(tmp_path / "amos22" / f"labels{folder}" / f"amos_{number:04d}.nii.gz", values.astype(np.uint8))
    authors = tmp_path / "Dataset702_AbdomenMR"
    volume(authors / "imagesTs" / "mr_01_0000.nii.gz", values.astype(np.int16))
    volume(authors / "labelsTs" / "mr_01.nii.gz", np.minimum(values, 13).astype(np.uint8))
    volume(tmp_path / "amos22" / "imagesTs" / "amos_0600.nii.gz", values.astype(np.int16))  # published without a label
    root = convert(AMOS, tmp_path, tmp_path / "raw", 1)
    dataset = read_dataset(root)
    assert [case.case_id for case in dataset.training] == ["amos_0507", "amos_0540"]
    (test,) = dataset.test
    assert test.label is not None
    assert np.array_equal(voxels(test.label), np.minimum(values, 13))  # the authors' files have the paper's order
    for case in dataset.training:
        assert case.label is not None
        mapped = dict(zip(values.ravel().tolist(), voxels(case.label).ravel().tolist(), strict=True))
        assert (mapped[0], mapped[14], mapped[15]) == (0, 0, 0)
        for value in range(1, 14):
            organ = AMOS_ORGANS[value - 1]
            assert dataset.labels.names[mapped[value] - 1] == SAME_ORGAN.get(organ, organ)


def test_endovis_merges_the_masks_of_instruments(tmp_path: Path) -> None:
    root = convert(endovis(crop=False, videos="official"), endovis_archive(tmp_path / "source"), tmp_path / "raw", 2)
    dataset = read_dataset(root)
    assert [case.case_id for case in dataset.training] == [f"seq01_frame{index:03d}" for index in range(3)]
    assert [case.case_id for case in dataset.test] == ["seq01_frame003", "seq01_frame004"]
    for index, case in enumerate((*dataset.training, *dataset.test)):
        image, types = endoscopy_frame(np.random.default_rng([7, index]), (72, 96))
        assert np.array_equal(voxels(case.images[0]), image)
        assert case.label is not None
        assert np.array_equal(voxels(case.label), np.where(types > 2, 0, types))


def test_a_video_in_training_and_test_is_refused_unless_its_end_is_tested_on_purpose(tmp_path: Path) -> None:
    source = endovis_archive(tmp_path / "source")
    with pytest.raises(UserError, match=r"the videos 1 are in training and test.*videos=official"):
        convert(endovis(crop=False, videos="separate"), source, tmp_path / "raw", 1)
    assert not (tmp_path / "raw" / "Dataset704_Endovis17" / "dataset.json").exists()
    new = source / "instrument_2017_test" / "instrument_dataset_9"
    picture(new / "left_frames" / "frame000.png", endoscopy_frame(np.random.default_rng(1), (72, 96))[0])
    dataset = read_dataset(convert(endovis(crop=False, videos="new"), source, tmp_path / "new", 1))
    assert [case.case_id for case in dataset.test] == ["seq09_frame000"]
    assert len(dataset.training) == 3
    late = source / "instrument_2017_test" / "instrument_dataset_1" / "left_frames"
    (late / "frame003.png").rename(late / "frame001.png")  # in the middle of the training frames
    with pytest.raises(UserError, match="lie among their training frames"):
        convert(endovis(crop=False, videos="official"), source, tmp_path / "raw", 1)
    with pytest.raises(UserError, match="separate, official, new"):
        endovis(crop=False, videos="all")


def test_the_same_frame_under_another_video_is_refused(tmp_path: Path) -> None:
    source = endovis_archive(tmp_path / "source")
    frame = source / "instrument_1_4_training" / "instrument_dataset_1" / "left_frames" / "frame000.png"
    picture(source / "instrument_2017_test" / "instrument_dataset_9" / "left_frames" / "frame000.png", voxels(frame))
    with pytest.raises(UserError, match=r"seq01_frame000 \(Tr\), seq09_frame000 \(Ts\)"):
        convert(endovis(crop=False, videos="official"), source, tmp_path / "raw", 1)


def test_endovis_crops_to_the_cameras_picture(tmp_path: Path) -> None:
    image = np.random.default_rng(7).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    own = tmp_path / "source" / "instrument_dataset_1"
    picture(own / "left_frames" / "frame000.png", image)
    picture(own / "ground_truth" / TRAINING_MASKS[2] / "frame000.png", image[..., 0] // 128)
    converter = endovis(crop=True, videos="official")
    (case,) = read_dataset(convert(converter, tmp_path / "source", tmp_path / "raw", 2)).training
    window = (slice(28, 28 + 1024), slice(320, 320 + 1280))
    assert np.array_equal(voxels(case.images[0]), image[window])
    assert case.label is not None
    assert np.array_equal(voxels(case.label), np.where(image[..., 0] >= 128, 2, 0)[window])
    small = endovis_archive(tmp_path / "small")
    with pytest.raises(UserError, match="crop=true"):
        convert(endovis(crop=True, videos="official"), small, tmp_path / "other", 1)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Right_Prograsp_Forceps_labels", "prograsp forceps"),
        ("Large_Needle_Driver_Left_labels", "large needle driver"),
        ("Left_Bipolar_Forceps", "bipolar forceps"),
        ("Right_Vessel_Sealer", "vessel sealer"),
        ("Left_Grasping_Retractor_labels", "grasping retractor"),
        ("Monopolar_Curved_Scissors_labels", "monopolar curved scissors"),
        ("Other_labels", "ultrasound probe"),
    ],
)
def test_mask_folders_of_the_published_archives_are_known(folder: str, name: str) -> None:
    assert INSTRUMENTS[instrument_type(folder) - 1] == name
    with pytest.raises(UserError, match="names no instrument type"):
        instrument_type("Banana_labels")


def test_cells_of_all_formats_become_rgb_bytes_with_interiors(tmp_path: Path) -> None:
    instances = cell_archive(tmp_path / "source")
    root = convert(CELL, tmp_path / "source", tmp_path / "raw", 2)
    dataset = read_dataset(root)
    assert (len(dataset.training), len(dataset.test)) == (4, 1)
    for case in (*dataset.training, *dataset.test):
        image = voxels(case.images[0])
        assert image.shape == (64, 80, 3)
        assert image.dtype == np.uint8
        assert case.label is not None
        classes, cells = voxels(case.label), instances[case.case_id]
        assert np.array_equal(classes > 0, cells > 0)
        assert connected_components(classes == 1, connectivity=2).max() == len(np.unique(cells)) - 1
    first = cell_instances(np.random.default_rng([3, 0]), (64, 80))[0]
    assert np.array_equal(voxels(dataset.training[0].images[0]), first)  # 8-bit values are kept
    grey = voxels(dataset.training[1].images[0])
    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert (grey.min(), grey.max()) == (0, 255)
    kept = voxels(root / "instancesTs" / "cell_00005_label.tiff")
    assert np.array_equal(kept, instances["cell_00005"])


def test_an_interrupted_conversion_continues(tmp_path: Path) -> None:
    source, raw = flare_archive(tmp_path / "source"), tmp_path / "raw"
    damaged = source / "Validation" / "labels" / "FLARETs_0002.nii.gz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"FLARETs_0002\.nii\.gz"):
        convert(FLARE, source, raw, 1)
    root = raw / FLARE.folder
    assert not (root / "dataset.json").exists()
    first = root / "imagesTr" / "FLARE22_Tr_0001_0000.nii.gz"
    before = first.stat().st_mtime_ns
    damaged.write_bytes(whole)
    convert(FLARE, source, raw, 1)
    assert first.stat().st_mtime_ns == before
    assert len(read_dataset(root).test) == 2
    assert not [path for path in root.rglob(".*") if path.is_file()]


def test_a_full_disk_leaves_no_cut_image_and_the_next_conversion_ends_as_an_undisturbed_one(
    tmp_path: Path, file_size_limit: SizeLimit
) -> None:
    source = flare_archive(tmp_path / "source", (8, 16, 16))  # so that images are larger than the lists of files
    whole = convert(FLARE, source, tmp_path / "whole", 1)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.*") if path.is_file())
    sizes = sorted((whole / path).stat().st_size for path in files)
    target = tmp_path / "raw" / FLARE.folder
    for limit in (0, 1, 300, sizes[0] - 1, *sizes[:-1:3], sizes[-1] - 1):
        with file_size_limit(limit), pytest.raises(StorageError, match=f"{target}/.*could not be written"):
            convert(FLARE, source, tmp_path / "raw", 2)
        found = sorted(path.relative_to(target) for path in target.rglob("*.*") if path.is_file())
        assert set(found) <= set(files)  # no partial file
        for path in found:
            assert (target / path).read_bytes() == (whole / path).read_bytes()
    assert any(path.parent.name == "imagesTr" for path in found)
    assert len(found) < len(files) - 1  # an image and dataset.json were not written
    convert(FLARE, source, tmp_path / "raw", 2)
    for path in files:
        assert (target / path).read_bytes() == (whole / path).read_bytes()


@pytest.mark.parametrize(
    "converter", [FLARE, AMOS, endovis(crop=False, videos="official"), CELL], ids=lambda entry: entry.folder
)
def test_an_empty_source_says_where_the_data_are(tmp_path: Path, converter: Converter) -> None:
    with pytest.raises(UserError, match="published at"):
        convert(converter, tmp_path, tmp_path / "raw", 1)
    with pytest.raises(UserError, match="no such folder"):
        convert(converter, tmp_path / "none", tmp_path / "raw", 1)


def test_the_same_image_in_training_and_test_is_refused(tmp_path: Path) -> None:
    source = flare_archive(tmp_path / "source")
    image = source / "FLARE22Train" / "images" / "FLARE22_Tr_0002_0000.nii.gz"
    copy = sitk.ReadImage(str(image))  # other header, other compression, same voxels
    copy.SetOrigin((3, 4, 5))
    sitk.WriteImage(copy, str(source / "Validation" / "images" / "FLARETs_0001_0000.nii.gz"), True, 1)
    with pytest.raises(UserError, match=r"FLARE22_Tr_0002 \(Tr\), FLARETs_0001 \(Ts\)"):
        convert(FLARE, source, tmp_path / "raw", 1)
    assert not (tmp_path / "raw" / FLARE.folder / "dataset.json").exists()


def test_counts_are_set_beside_the_papers() -> None:
    published = {entry.folder: entry.published for entry in (FLARE, AMOS, endovis(crop=False, videos="official"), CELL)}
    assert list(published.values()) == [(50, 50), (60, 50), (1800, 1200), (1000, 101)]  # Table 1
    assert count_lines(CELL, 1000, 101) == [
        "training cases: 1000, the paper has 1000.",
        "test cases: 101, the paper has 101.",
    ]
    assert "more than" in count_lines(CELL, 1001, 101)[0]
