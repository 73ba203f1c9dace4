"""nnU-Net's NibabelIOWithReorient: in whatever orientation files are stored, the network sees RAS, as in nibabel."""

import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from umamba.datasets import REORIENTING_READER, read_dataset
from umamba.io import UserError, read_image, read_label
from umamba.labels import LabelSet
from umamba.planning import (
    Fingerprint,
    Intensity,
    Plan,
    compute_fingerprint,
    foreign_settings,
    parse_nnunet_plans,
    to_nnunet_plans,
)
from umamba.preprocessing import CaseProperties, open_store, prepare_store, preprocess_case
from umamba.runs.preparation import fingerprint_dataset

Maker = Callable[..., Plan]
LABELS = LabelSet(("one", "two"), ((1,), (2,)))
ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "IS")) for letters in itertools.product(*axes)
]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few intensities for fingerprints, which takes less time."""
    monkeypatch.setattr("umamba.planning.fingerprint._TOTAL_DRAWS", 100_000)


def save(path: Path, array: np.ndarray, letters: str) -> Path:
    """Write an array of RAS axes (X, Y, Z) with 0.7 x 0.9 x 3 mm in another orientation."""
    orientations = nibabel.orientations
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(tuple(letters)))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.7, 0.9, 3.0, 1.0])).as_reoriented(turn), path)
    return path


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with a border of zeros, and its label map."""
    rng = np.random.default_rng(seed)
    image, label = np.zeros((14, 12, 6), np.float32), np.zeros((14, 12, 6), np.uint8)
    image[1:-2, 2:-1, 1:] = rng.normal(100, 20, (11, 9, 5))
    label[2:6, 3:8, 1:4], label[8:11, 3:6, 2:5] = 1, 2
    return image, label


def dataset(root: Path, orders: list[tuple[str, str]], **entries: str) -> Path:
    """Write a dataset whose images and labels are stored in these orientations."""
    for number, (image_order, label_order) in enumerate(orders):
        image, label = case(number)
        save(root / "imagesTr" / f"c{number}_0000.nii.gz", image, image_order)
        save(root / "labelsTr" / f"c{number}.nii.gz", label, label_order)
    declared = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": len(orders),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(declared | entries))
    return root


@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_all_orientations_become_ras(tmp_path: Path, make_plan: Maker, letters: str) -> None:
    plan = replace(make_plan((3.0, 1.0, 1.0), transpose=(0, 2, 1)), reader=REORIENTING_READER)
    image, label = case(0)
    files = save(tmp_path / "image.nii", image, letters), save(tmp_path / "label.nii", label, letters[::-1])
    ras = save(tmp_path / "ras.nii", image, "RAS"), save(tmp_path / "ras_label.nii", label, "RAS")
    configuration = plan.configuration("3d_fullres")
    expected = preprocess_case(
        read_image([ras[0]]), read_label(ras[1]), replace(plan, reader=None), configuration, LABELS
    )
    found = preprocess_case(read_image([files[0]]), read_label(files[1]), plan, configuration, LABELS)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[2].bbox == expected[2].bbox
    assert CaseProperties.from_json(json.loads(json.dumps(found[2].to_json()))) == found[2]
    np.testing.assert_allclose(found[2].seen_geometry.spacing, (3.0, 0.9, 0.7), rtol=1e-6)


def test_fingerprint_and_stored_cases(tmp_path: Path, make_plan: Maker) -> None:
    plain = read_dataset(dataset(tmp_path / "a" / "Dataset001_Test", [("RAS", "RAS")] * 3))
    mixed = read_dataset(
        dataset(
            tmp_path / "b" / "Dataset001_Test",
            [("LPS", "LPS"), ("PSR", "RAS"), ("LPS", "SAL")],
            overwrite_image_reader_writer=REORIENTING_READER,
        )
    )
    expected, found = compute_fingerprint(plain, workers=1), compute_fingerprint(mixed, workers=1)
    assert found == expected
    assert found.orientations == ("LPS", "PSR")
    assert Fingerprint.from_json(json.loads(json.dumps(found.to_json()))).orientations == ("LPS", "PSR")
    plan = make_plan((3.0, 1.0, 1.0))
    stores = [
        prepare_store(raw, "0" * 32, used, "3d_fullres", tmp_path / name, workers=1)
        for raw, used, name in ((plain, plan, "one"), (mixed, replace(plan, reader=REORIENTING_READER), "other"))
    ]
    assert stores[0].path.name != stores[1].path.name
    assert open_store(stores[1].path).plan.reader == REORIENTING_READER
    for case_id in ("c0", "c1", "c2"):
        one, other = (store.load(case_id) for store in stores)
        np.testing.assert_array_equal(other.image[:], one.image[:])
        np.testing.assert_array_equal(other.label[:], one.label[:])
        assert stores[1].letters(case_id) == stores[0].letters(case_id) == ("S", "A", "R")


def test_a_fingerprint_of_images_as_stored_is_not_used(tmp_path: Path) -> None:
    root = dataset(tmp_path / "Dataset001_Test", [("LPS", "LPS"), ("PSR", "PSR")])
    raw = read_dataset(root)
    first, _ = fingerprint_dataset(raw, tmp_path / "out", 1)
    second, _ = fingerprint_dataset(replace(raw, reader=REORIENTING_READER), tmp_path / "out", 1)
    np.testing.assert_allclose(first.spacings, [(3, 0.9, 0.7), (0.7, 3, 0.9)], rtol=1e-6)
    np.testing.assert_allclose(second.spacings, [(3, 0.9, 0.7)] * 2, rtol=1e-6)


def test_mixed_orientations_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = read_dataset(dataset(tmp_path / "Dataset001_Test", [("RAS", "RAS"), ("LPS", "LPS"), ("RAS", "RAS")]))
    with caplog.at_level(logging.WARNING, "umamba"):
        fingerprint = compute_fingerprint(raw, workers=1)
    (message,) = [record.getMessage() for record in caplog.records if "orientations" in record.getMessage()]
    assert "RAS (2), LPS (1)" in message
    assert REORIENTING_READER in message
    assert fingerprint.orientations == ("RAS", "LPS")


def test_image_and_label_of_different_orientation(tmp_path: Path) -> None:
    raw = read_dataset(dataset(tmp_path / "Dataset001_Test", [("RAS", "LPS")]))
    with pytest.raises(UserError, match="direction"):
        compute_fingerprint(raw, workers=1)


def test_unknown_readers_are_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path / "Dataset001_Test", [("RAS", "RAS")], overwrite_image_reader_writer="MyReader")
    with pytest.raises(UserError, match='overwrite_image_reader_writer: "MyReader" is not known'):
        read_dataset(root)


def test_nnunets_plans_name_the_reader(make_plan: Maker) -> None:
    plan = make_plan((3.0, 1.0, 1.0))
    for reader in (None, REORIENTING_READER):
        written = to_nnunet_plans(replace(plan, reader=reader))
        assert written["image_reader_writer"] == (reader or "SimpleITKIO")
        assert parse_nnunet_plans(written, "test").reader == reader
        assert foreign_settings(written, "3d_fullres") == []
        assert Plan.from_json(replace(plan, reader=reader).to_json()).reader == reader
    assert "reader" not in plan.to_json()
    written["image_reader_writer"] = "MyReader"
    assert foreign_settings(written, "3d_fullres") == ["image_reader_writer: MyReader"]


def test_2d_images_cannot_be_turned(tmp_path: Path, make_plan: Maker) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 6), np.float32), np.eye(4)), tmp_path / "a.nii")
    plan = replace(make_plan((1.0, 1.0)), reader=REORIENTING_READER)
    with pytest.raises(UserError, match="this image is 2D"):
        preprocess_case(read_image([tmp_path / "a.nii"]), None, plan, plan.configuration("2d"), LABELS)


@pytest.mark.parametrize("offset", [0.0, 500.0])
def test_normalisation_that_leaves_nothing_is_named(
    make_plan: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture, offset: float
) -> None:
    intensity = Intensity(mean=100, median=100, std=20, min=0, max=200, percentile_00_5=50, percentile_99_5=150)
    plan = make_plan((3.0, 1.0, 1.0), ("CTNormalization",), intensity=(intensity,))
    image, _ = case(0)
    path = save(tmp_path / "a.nii", image + 10 + offset, "RAS")
    with caplog.at_level(logging.WARNING, "umamba"):
        data, _, _ = preprocess_case(read_image([path]), None, plan, plan.configuration("3d_fullres"), LABELS, "a")
    named = ["a, channel 0: CTNormalization makes all voxels equal" in line for line in caplog.messages]
    assert named == ([True] if offset else [])
    assert (data.min() == data.max()) is np.bool_(offset > 0)
