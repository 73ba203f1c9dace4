"""Conversion of folders of numbered instances to datasets of classes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.measure import label as connected_components

from umamba.cli.compose import settings_of
from umamba.datasets import read_dataset
from umamba.datasets.numbered_instances import classes_of_instances, holds_instances
from umamba.io import UserError
from umamba.runs.network_at_plan import network_at_plan
from umamba.settings import DescribeSettings


def voxels(path: Path) -> np.ndarray:
    """Return an image's array."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture
def nuclei(shared_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of three training and two test pictures."""
    source, target = shared_dir / "data" / "Dataset703_Nuclei", tmp_path / "Dataset703_Nuclei"
    for split, count in (("Tr", 3), ("Ts", 2)):
        for image in sorted((source / f"images{split}").iterdir())[:count]:
            for kind, name in (("images", image.name), ("instances", f"{image.stem}_label.tiff")):
                (target / f"{kind}{split}").mkdir(parents=True, exist_ok=True)
                shutil.copy(source / f"{kind}{split}" / name, target / f"{kind}{split}" / name)
    return target


def test_instances_become_classes(nuclei: Path, tmp_path: Path) -> None:
    assert holds_instances(nuclei)
    root = classes_of_instances(nuclei, tmp_path / "classes", 1)
    assert not holds_instances(root)
    dataset = read_dataset(root)
    assert (dataset.name, dataset.labels.names) == ("Dataset703_Nuclei", ("interior", "boundary"))
    assert (len(dataset.training), len(dataset.test)) == (3, 2)
    for case in (*dataset.training, *dataset.test):
        split = "Tr" if case in dataset.training else "Ts"
        assert case.label is not None
        classes = voxels(case.label)
        instances = voxels(nuclei / f"instances{split}" / f"{case.case_id}_label.tiff")
        assert np.array_equal(classes > 0, instances > 0)
        assert np.array_equal(voxels(root / f"instances{split}" / f"{case.case_id}_label.tiff"), instances)
        # The definition, written as a slow loop: an interior pixel has no neighbour of another value.
        padded = np.pad(instances, 1, mode="edge").astype(int)
        shifts = [padded[1 + y : padded.shape[0] - 1 + y, 1 + x : padded.shape[1] - 1 + x]
                  for y, x in ((0, 1), (1, 0), (0, -1), (-1, 0))]  # fmt: skip
        touching = np.any([shift != instances for shift in shifts], axis=0)
        large = np.isin(instances, np.unique(instances[~touching & (instances > 0)]))
        assert np.array_equal((classes == 2)[large], touching[large])
        assert connected_components(classes == 1).max() >= len(np.unique(instances)) - 1


def test_a_changed_folder_is_made_again(nuclei: Path, tmp_path: Path) -> None:
    root = classes_of_instances(nuclei, tmp_path / "classes", 1)
    made = (root / "dataset.json").stat().st_mtime_ns
    classes_of_instances(nuclei, tmp_path / "classes", 1)
    assert (root / "dataset.json").stat().st_mtime_ns == made
    picture = sorted((nuclei / "imagesTr").iterdir())[0]
    picture.unlink()
    assert len(read_dataset(classes_of_instances(nuclei, tmp_path / "classes", 1)).training) == 2


def test_classes_of_unchanged_pictures_are_never_removed(nuclei: Path, tmp_path: Path) -> None:
    """A training may be reading them."""
    picture = sorted((nuclei / "imagesTr").iterdir())[0]
    instances = nuclei / "instancesTr" / f"{picture.stem}_label.tiff"
    for path in (picture, instances):
        path.rename(tmp_path / path.name)
    root = classes_of_instances(nuclei, tmp_path / "classes", 1)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.glob("*T[rs]/*")}
    assert len(before) == 3 * (2 + 2)
    for path in (picture, instances):
        (tmp_path / path.name).rename(path)
    assert classes_of_instances(nuclei, tmp_path / "classes", 1) == root
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before} == before
    assert len(read_dataset(root).training) == 3


def test_folders_of_one_name_keep_their_own_classes(nuclei: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / nuclei.name
    shutil.copytree(nuclei, other)
    for picture in sorted((other / "imagesTr").iterdir())[1:]:
        picture.unlink()
    first = classes_of_instances(nuclei, tmp_path / "classes", 1)
    made = {path: path.stat().st_mtime_ns for path in first.rglob("*.*")}
    second = classes_of_instances(other, tmp_path / "classes", 1)
    assert [len(read_dataset(root).training) for root in (first, second)] == [3, 1]
    assert first.name == second.name == nuclei.name  # the name of the prepared cases
    relative = tmp_path / "other" / ".." / nuclei.name
    assert classes_of_instances(relative, tmp_path / "classes", 1) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.*")} == made


def test_classes_whose_conversion_was_interrupted_are_completed(nuclei: Path, tmp_path: Path) -> None:
    root = classes_of_instances(nuclei, tmp_path / "classes", 1)
    whole = {path: path.read_bytes() for path in root.rglob("*.*")}
    for path in (root / "dataset.json", sorted(root.glob("labelsTr/*"))[0]):
        path.unlink()
        classes_of_instances(nuclei, tmp_path / "classes", 1)
        assert {path: path.read_bytes() for path in root.rglob("*.*")} == whole


def test_a_picture_without_instances_is_named(nuclei: Path, tmp_path: Path) -> None:
    lost = sorted((nuclei / "instancesTr").iterdir())[0]
    lost.unlink()
    with pytest.raises(UserError, match=lost.name.removesuffix("_label.tiff")):
        classes_of_instances(nuclei, tmp_path / "classes", 1)


def test_a_network_is_described_at_the_plan_of_numbered_instances(nuclei: Path, tmp_path: Path) -> None:
    """describe used to ask for dataset.json, although train accepts such a folder."""
    overrides = ["dataset=cell", f"dataset.root={nuclei}", f"paths.preprocessed={tmp_path / 'pre'}", "plan=2d"]
    found = network_at_plan(settings_of(DescribeSettings, [*overrides, "data.prepare_workers=1"]))
    assert (found.in_channels, found.num_classes, found.configuration.dim) == (3, 3, 2)


def test_instances_become_levels_of_depth(nuclei: Path, tmp_path: Path) -> None:
    root = classes_of_instances(nuclei, tmp_path / "classes", 1, "depth")
    assert root.name == "Dataset703_NucleiDepth"
    dataset = read_dataset(root)
    assert dataset.labels.names == ("depth 1", "depth 2", "depth 3", "depth 4")
    for case in dataset.training:
        assert case.label is not None
        classes = voxels(case.label)
        instances = voxels(nuclei / "instancesTr" / f"{case.case_id}_label.tiff")
        assert np.array_equal(classes > 0, instances > 0)
        assert set(np.unique(instances[classes == 4])) == set(np.unique(instances[instances > 0]))
    assert classes_of_instances(nuclei, tmp_path / "classes", 1).name == "Dataset703_Nuclei"
