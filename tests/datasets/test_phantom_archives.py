"""The phantoms in the layouts of the archives: after conversion they hold what was drawn."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.datasets import read_dataset
from umamba.datasets.phantom import phantom_case
from umamba.datasets.phantom_2d import cell_instances, endoscopy_frame
from umamba.datasets.phantom_archives import converted_phantom
from umamba.io import UserError

# Values of the phantom's organs among the paper's 13: liver, right kidney, spleen, left kidney, aorta.
ORGAN_VALUES = (0, 1, 2, 3, 13, 5)


def voxels(path: Path) -> np.ndarray:
    """Return an image's array."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def converted(tmp_path: Path, archive: str, num_training: int, num_test: int) -> Path:
    """Return a converted phantom."""
    numbers = {"num_training": num_training, "num_test": num_test, "seed": 5, "workers": 1}
    return converted_phantom(tmp_path / "raw" / "Dataset990_Small", archive=archive, **numbers)


@pytest.mark.parametrize("archive", ["flare", "amos"])
def test_abdomens_have_the_papers_organs(tmp_path: Path, archive: str) -> None:
    dataset = read_dataset(converted(tmp_path, archive, 2, 1))
    assert (len(dataset.training), len(dataset.test), len(dataset.labels.names)) == (2, 1, 13)
    for index, case in enumerate((*dataset.training, *dataset.test)):
        drawn = phantom_case(5, index, 6.0)
        image = sitk.ReadImage(str(case.images[0]))
        assert np.array_equal(sitk.GetArrayFromImage(image), drawn.image + (1024 if archive == "amos" else 0))
        assert image.GetSpacing() == pytest.approx(drawn.spacing_xyz)
        assert case.label is not None
        assert np.array_equal(voxels(case.label), np.array(ORGAN_VALUES)[drawn.label])
    assert dataset.channel_names == (("CT",) if archive == "flare" else ("MR",))


def test_videos_go_on_in_the_test_set(tmp_path: Path) -> None:
    dataset = read_dataset(converted(tmp_path, "endovis", 5, 3))
    training, test = ([case.case_id for case in cases] for cases in (dataset.training, dataset.test))
    assert training == [f"seq01_frame{n:03d}" for n in range(2)] + [f"seq02_frame{n:03d}" for n in range(3)]
    assert test == ["seq01_frame002", "seq09_frame000", "seq09_frame001"]
    for index, case in enumerate((*dataset.training, *dataset.test)):
        image, types = endoscopy_frame(np.random.default_rng([5, index]), (96, 128))
        assert np.array_equal(voxels(case.images[0]), image)
        assert case.label is not None
        assert np.array_equal(voxels(case.label), types)


def test_cells_are_numbered_in_all_formats(tmp_path: Path) -> None:
    root = converted(tmp_path, "cell", 5, 1)
    assert {path.suffix for path in (tmp_path / "raw").rglob("Training-labeled/images/*")} == {
        *(".bmp", ".png", ".tif", ".tiff")
    }
    dataset = read_dataset(root)
    for index, case in enumerate((*dataset.training, *dataset.test)):
        assert case.label is not None
        assert np.array_equal(
            voxels(case.label) > 0, cell_instances(np.random.default_rng([5, index]), (96, 128))[1] > 0
        )
    assert len(list((root / "instancesTs").iterdir())) == 1


def test_a_phantom_is_kept_and_another_is_refused(tmp_path: Path) -> None:
    root = converted(tmp_path, "cell", 2, 1)
    before = (root / "dataset.json").stat().st_mtime_ns
    assert converted(tmp_path, "cell", 2, 1) == root
    assert (root / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other settings"):
        converted(tmp_path, "cell", 3, 1)
    with pytest.raises(UserError, match="archive=mars"):
        converted(tmp_path, "mars", 2, 1)
