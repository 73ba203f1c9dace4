"""The fingerprint against its definition in plain numpy, and the errors of its datasets."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.datasets import read_dataset
from umamba.io import UserError
from umamba.planning import Fingerprint, compute_fingerprint, inspect_dataset
from umamba.planning.fingerprint import draw_intensities, intensity_of


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return a raw dataset of two cases of different size and spacing."""
    root = tmp_path / "Dataset001_Test"
    rng = np.random.default_rng(0)
    for number, case_id in enumerate("ab"):
        voxels = np.zeros((6, 10 + number, 12), np.float32)
        voxels[1:5, 2:, 3:10] = rng.normal(100, 20, voxels[1:5, 2:, 3:10].shape)
        label = np.zeros(voxels.shape, np.uint8)
        label[2:4, 4:8, 5:9] = 1
        for folder, name, array in (("imagesTr", f"{case_id}_0000", voxels), ("labelsTr", case_id, label)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((1.0, 1.5, 2.0 + number))
            (root / folder).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(root / folder / f"{name}.nii.gz"))
    declared = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "one": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(declared))
    return root


def test_shapes_spacings_and_crop(raw: Path) -> None:
    fingerprint = compute_fingerprint(read_dataset(raw), workers=1)
    assert fingerprint.shapes_after_crop == ((4, 8, 7), (4, 9, 7))
    assert fingerprint.spacings == ((2.0, 1.5, 1.0), (3.0, 1.5, 1.0))
    ratios = [4 * 8 * 7 / (6 * 10 * 12), 4 * 9 * 7 / (6 * 11 * 12)]
    assert fingerprint.median_relative_size_after_cropping == pytest.approx(np.median(ratios))
    voxels = np.concatenate(
        [
            sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / f"{case}_0000.nii.gz")))[2:4, 4:8, 5:9].ravel()
            for case in "ab"
        ]
    )
    # With fifty million draws from 32 voxels per case, the statistics of the sample are those of the population.
    (intensity,) = fingerprint.intensity
    assert intensity.mean == pytest.approx(voxels.mean(), rel=1e-4)
    assert intensity.std == pytest.approx(voxels.std(), rel=1e-3)
    assert (intensity.min, intensity.max) == (voxels.min(), voxels.max())


def test_the_number_of_workers_changes_nothing(raw: Path) -> None:
    dataset = read_dataset(raw)
    assert compute_fingerprint(dataset, workers=2) == compute_fingerprint(dataset, workers=1)


def test_statistics_are_those_of_all_draws() -> None:
    rng = np.random.default_rng(1)
    cases = [rng.normal(0, 1, (1, 700)).round(1).astype(np.float32), rng.normal(3, 1, (1, 90)).astype(np.float32)]
    pooled = []
    for voxels in cases:
        random = np.random.RandomState(1234)
        pooled.append(random.choice(voxels[0], 1000, replace=True))
    draws = np.concatenate(pooled).astype(np.float64)
    found = intensity_of([next(draw_intensities(voxels, 1000)) for voxels in cases])
    assert found.mean == pytest.approx(draws.mean(), rel=1e-12)
    assert found.std == pytest.approx(draws.std(), rel=1e-9)
    assert found.median == pytest.approx(np.median(draws), rel=1e-12)
    assert found.percentile_00_5 == pytest.approx(np.percentile(draws, 0.5), rel=1e-12)
    assert found.percentile_99_5 == pytest.approx(np.percentile(draws, 99.5), rel=1e-12)
    assert (found.min, found.max) == (draws.min(), draws.max())


def test_json_is_nnunets(raw: Path) -> None:
    fingerprint = compute_fingerprint(read_dataset(raw), workers=1)
    content = json.loads(json.dumps(fingerprint.to_json()))
    assert set(content["foreground_intensity_properties_per_channel"]["0"]) == {
        *("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")
    }
    assert Fingerprint.from_json(content) == fingerprint


def test_all_problems_come_in_one_message(raw: Path) -> None:
    path = raw / "imagesTr" / "a_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:300])
    label = sitk.ReadImage(str(raw / "labelsTr" / "b.nii.gz"))
    label[0, 0, 0] = 9
    sitk.WriteImage(label, str(raw / "labelsTr" / "b.nii.gz"))
    with pytest.raises(UserError, match=r"(?s)a_0000.*truncated.*b\.nii\.gz.*9"):
        compute_fingerprint(read_dataset(raw), workers=1)


def test_a_label_of_no_case_is_a_warning_and_changes_no_number(raw: Path) -> None:
    before, findings, _ = inspect_dataset(read_dataset(raw), workers=1)
    assert findings == ()
    declared = json.loads((raw / "dataset.json").read_text())
    declared["labels"]["two"] = 2
    (raw / "dataset.json").write_text(json.dumps(declared))
    after, findings, _ = inspect_dataset(read_dataset(raw), workers=1)
    assert after == before
    assert [finding.message.split(". ")[0] for finding in findings] == ["labels: two (2) occurs in no training case"]
    label = sitk.ReadImage(str(raw / "labelsTr" / "b.nii.gz"))
    label[0, 0, 0] = 2
    sitk.WriteImage(label, str(raw / "labelsTr" / "b.nii.gz"))
    assert inspect_dataset(read_dataset(raw), workers=1)[1] == ()


def test_a_dataset_without_foreground_is_refused(raw: Path) -> None:
    for case_id in "ab":
        path = raw / "labelsTr" / f"{case_id}.nii.gz"
        sitk.WriteImage(sitk.ReadImage(str(path)) * 0, str(path))
    with pytest.raises(UserError, match="no case of labelsTr has a labelled voxel"):
        compute_fingerprint(read_dataset(raw), workers=1)
