"""`umamba calibrate` and `predict quality=`: from scored cases to a table, a list and a page, on untrained networks."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import SimpleITK as sitk
import torch

from umamba.evaluation.quality import Calibration
from umamba.inference import Predictor
from umamba.inference.problems import UnsegmentedCases
from umamba.io import UserError
from umamba.io.tabular import read_table
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.planning import Configuration, Plan
from umamba.runs import calibration, predict
from umamba.runs.calibration import calibrate, check
from umamba.runs.quality import read_calibration
from umamba.runs.select import fold_checkpoints
from umamba.settings import CalibrateSettings, InvalidSettings, PredictSettings

LABELS = LabelSet(("a", "b"), ((1,), (2,)))
CASES = [f"case{index:02d}" for index in range(24)]
PARTLY_LABELLED = CASES[-1]  # nobody looked for b


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score in this process."""
    monkeypatch.setattr("umamba.evaluation.score.available_cpus", lambda: 1)


def checkpoint(path: Path, seed: int) -> Path:
    """Write the checkpoint of an untrained network."""
    configuration = Configuration(
        name="3d_fullres",
        spacing=(1.0,) * 3,
        median_shape=(8.0,) * 3,
        patch_size=(8,) * 3,
        batch_size=2,
        batch_dice=False,
        normalization=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        strides=((1,) * 3, (2,) * 3),
        kernel_sizes=((3,) * 3, (3,) * 3),
        features_per_stage=(2, 4),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
        residual_encoder=False,
    )
    order = (0, 1, 2)
    plan = Plan("Dataset001_Test", "nnunet", order, order, (1.0,) * 3, (8.0,) * 3, (), {"3d_fullres": configuration})
    torch.manual_seed(seed)
    network = build_network("unet", configuration, 1, 3)
    record: dict[str, Any] = {
        "format": 1,
        "plan": plan.to_json(),
        "configuration": "3d_fullres",
        "architecture": {"name": "unet"},
        "labels": LABELS.to_json(),
        "channel_names": ["MRI"],
        "file_ending": ".nii.gz",
        "recipe": {},
    }
    path.parent.mkdir(parents=True)
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"umamba": record, "state_dict": weights}, path)
    return path


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two folds of two seeds."""
    root = tmp_path_factory.mktemp("runs") / "one" / "3d_fullres"
    for fold in range(2):
        for seed in range(2):
            checkpoint(root / f"fold_{fold}" / f"seed_{seed}" / "checkpoints" / "last.ckpt", 10 * seed + fold)
    return root


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of random cases, whose labels are partly in the image; one of them carries the label a alone."""
    root, generator = tmp_path_factory.mktemp("raw") / "Dataset001_Test", np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for case in CASES:
        truth = generator.integers(0, 2 if case == PARTLY_LABELLED else 3, (8, 8, 8))
        noisy = 40 * truth + generator.normal(0, 60 * generator.uniform(), truth.shape) + 1
        sitk.WriteImage(
            sitk.GetImageFromArray(noisy.astype(np.float32)), str(root / "imagesTr" / f"{case}_0000.nii.gz")
        )
        sitk.WriteImage(sitk.GetImageFromArray(truth.astype(np.uint8)), str(root / "labelsTr" / f"{case}.nii.gz"))
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "numTraining": len(CASES)}
    splits = [{"train": CASES[12:], "val": CASES[:12]}, {"train": CASES[:12], "val": CASES[12:]}]
    (root / "splits_final.json").write_text(json.dumps(splits))
    (root / "annotated_labels.csv").write_text(f"case,label\n{PARTLY_LABELLED},a\n")
    (root / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    return root


def settings_of(candidate: Path, raw: Path, output: Path, **more: Any) -> CalibrateSettings:
    return CalibrateSettings(
        candidates=(candidate,), raw_dataset=raw, output=output, device="cpu", engine="torch", **more
    )


def test_of_cross_validation_of_two_seeds(
    candidate: Path, raw: Path, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    found = calibrate(settings_of(candidate, raw, tmp_path, seeds=(0, 1)))
    for fold, held_out in enumerate((CASES[:12], CASES[12:])):  # each case by the networks that held it out
        names = {path.name for path in (tmp_path / f"fold_{fold}").glob("*.nii.gz")}
        assert names == {f"{case}.nii.gz" for case in held_out}
    calibration = Calibration.read(found.path)
    assert calibration == found.calibration
    assert (calibration.views, calibration.networks, len(calibration.identities)) == ("networks", 2, 4)
    assert calibration.cases == 24
    table = read_table(tmp_path / "cases.csv", ("case", "label"))
    assert sorted(set(table["case"])) == CASES
    assert table[table["case"] == PARTLY_LABELLED]["label"].tolist() == ["a"]
    assert len(table) == 2 * 23 + 1
    assert {"dsc", "nsd", "disagreement", "entropy", "confidence", "spacing"} <= set(table.columns)
    assert table["disagreement"].between(0, 1)[table["disagreement"].notna()].all()
    assert {"checked", "labels"} <= set(json.loads(found.path.read_text()))
    assert messages.text.count("unlike") == 0


def predict_settings(checkpoint: Path | tuple[Path, ...], raw: Path, output: Path, **more: Any) -> PredictSettings:
    return PredictSettings(
        checkpoint=checkpoint, input=raw / "imagesTr", output=output, device="cpu", engine="torch", **more
    )


@pytest.fixture(scope="module")
def quality(candidate: Path, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calibration of one network on images of its own."""
    network = candidate / "fold_0" / "seed_0" / "checkpoints" / "last.ckpt"
    output = tmp_path_factory.mktemp("quality")
    settings = CalibrateSettings(
        checkpoint=network,
        images=raw / "imagesTr",
        labels=raw / "labelsTr",
        output=output,
        device="cpu",
        engine="torch",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("umamba.evaluation.score.available_cpus", lambda: 1)
        return calibrate(settings).path


def test_predicted_with_expected_scores(
    candidate: Path, raw: Path, quality: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "umamba")
    network = candidate / "fold_0" / "seed_0" / "checkpoints" / "last.ckpt"
    images = tmp_path / "images"
    images.mkdir()
    for case in CASES[:3]:
        (images / f"{case}_0000.nii.gz").symlink_to(raw / "imagesTr" / f"{case}_0000.nii.gz")
    wide = sitk.ReadImage(str(raw / "imagesTr" / f"{CASES[3]}_0000.nii.gz"))
    wide.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(wide, str(images / "wide.nii.gz"))
    settings = PredictSettings(
        checkpoint=network,
        input=images,
        output=tmp_path / "out",
        device="cpu",
        engine="torch",
        quality=quality,
        previews=1,
    )
    predict(settings)
    table = read_table(tmp_path / "out" / "quality.csv", ("case", "label", "reason"))
    assert len(table) == 4 * 3
    assert table["case"][0] == "wide"
    first = table[table["case"] == "wide"]
    assert first["reason"].str.startswith("outside what was calibrated: spacing a factor of 2 ").all()
    assert first["expected_dsc"].isna().all()
    rest = table[(table["case"] != "wide") & table["expected_dsc"].notna()]
    assert len(rest)
    assert ((rest["dsc_low"] <= rest["expected_dsc"]) & (rest["expected_dsc"] <= rest["dsc_high"])).all()
    said = next(record.getMessage() for record in caplog.records if record.getMessage().startswith("Look at "))
    assert said.splitlines()[1].startswith("  wide: outside what was calibrated: spacing")
    assert [path.name for path in (tmp_path / "out" / "previews").iterdir()] == ["wide.png"]
    page = (tmp_path / "out" / "quality.html").read_text()
    assert page.index("wide") < page.index(CASES[0])
    assert "data:image/png;base64," in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page
    rows = [row["case"] for _, row in table.iterrows() if row["label"] == "mean"]
    expected = table[table["label"] == "mean"]["expected_dsc"].fillna(-1).tolist()
    reviewed = [bool(table[(table["case"] == case)]["review"].any()) for case in rows]
    assert reviewed == sorted(reviewed, reverse=True)
    assert [value for value, look in zip(expected, reviewed, strict=True) if not look] == sorted(
        value for value, look in zip(expected, reviewed, strict=True) if not look
    )
    before = (tmp_path / "out" / "quality.csv").read_bytes()
    predict(settings)  # continues: nothing is segmented, the table is the same
    assert (tmp_path / "out" / "quality.csv").read_bytes() == before
    further = tmp_path / "further"
    further.mkdir()
    (further / "new_0000.nii.gz").symlink_to(raw / "imagesTr" / f"{CASES[4]}_0000.nii.gz")
    predict(replace(settings, input=further))
    both = read_table(tmp_path / "out" / "quality.csv", ("case", "label", "reason"))
    kept = both[both["case"] != "new"].reset_index(drop=True)
    pandas.testing.assert_frame_equal(kept, table)
    assert len(both) == 5 * 3
    assert f">{CASES[0]}<" in (tmp_path / "out" / "quality.html").read_text()


def test_the_expected_scores_are_those_of_the_fit(candidate: Path, raw: Path, quality: Path, tmp_path: Path) -> None:
    """The signs of a case at prediction are those at calibration."""
    network = candidate / "fold_0" / "seed_0" / "checkpoints" / "last.ckpt"
    predict(predict_settings(network, raw, tmp_path, quality=quality, previews=0))
    table = read_table(tmp_path / "quality.csv", ("case", "label", "reason")).set_index(["case", "label"])
    scored = read_table(quality.parent / "cases.csv", ("case", "label")).set_index(["case", "label"])
    own = table.loc[scored.index]
    np.testing.assert_allclose(own["disagreement"], scored["disagreement"], rtol=1e-12)
    inside = own["expected_dsc"].notna()
    within = (own["dsc_low"] <= scored["dsc"]) & (scored["dsc"] <= own["dsc_high"])
    assert within[inside].mean() >= 0.85


def test_another_use_is_refused_before_work(candidate: Path, raw: Path, quality: Path, tmp_path: Path) -> None:
    one, two = (candidate / f"fold_{fold}" / "seed_0" / "checkpoints" / "last.ckpt" for fold in (0, 1))
    for wrong, message in (
        (predict_settings((one, two), raw, tmp_path / "out", quality=quality), "for 1 network.* names 2.*calibrate"),
        (predict_settings(one, raw, tmp_path / "out", quality=quality, tta=True), "Give tta=false"),
        (predict_settings(one, raw, tmp_path / "out", quality=quality, tile_step_size=1.0), "Give tile_step_size=0.5"),
        (predict_settings(one, raw, tmp_path / "out", quality=quality, tile_scale=2), "Give tile_scale=1"),
    ):
        with pytest.raises(UserError, match=message):
            predict(wrong)
    assert not (tmp_path / "out").exists()
    content = json.loads(quality.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**content, "names": ["a", "c"]}))
    with pytest.raises(UserError, match="was calibrated for the labels a, c, and the network has a, b"):
        predict(predict_settings(one, raw, tmp_path / "out", quality=other))


def test_other_networks_are_named(
    candidate: Path, raw: Path, quality: Path, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    other = candidate / "fold_1" / "seed_0" / "checkpoints" / "last.ckpt"
    settings = predict_settings(other, raw, tmp_path, quality=quality)
    read_calibration(quality, Predictor.from_checkpoint([other], "cpu"), settings)
    assert "was calibrated with other networks than those of checkpoint" in messages.text


def test_too_few_cases(candidate: Path, raw: Path, tmp_path: Path) -> None:
    few = tmp_path / "labels"
    few.mkdir()
    for case in CASES[:5]:
        (few / f"{case}.nii.gz").symlink_to(raw / "labelsTr" / f"{case}.nii.gz")
    network = candidate / "fold_0" / "seed_0" / "checkpoints" / "last.ckpt"
    common = {"checkpoint": network, "images": raw / "imagesTr", "device": "cpu", "engine": "torch"}
    with pytest.raises(UserError, match=r"labels: 5 cases .* too few; coverage=0\.9 needs at least 20 with a label"):
        calibrate(CalibrateSettings(labels=few, output=tmp_path / "out", **common))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Dataset001_Test: 24 cases .* too few; coverage=0\.95 needs at least 38"):
        calibrate(settings_of(candidate, raw, tmp_path / "out", coverage=0.95))
    assert not (tmp_path / "out").exists()  # nothing was segmented in vain
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no reference of the images"):
        calibrate(CalibrateSettings(labels=tmp_path / "none", output=tmp_path / "out", **common))  # type: ignore[arg-type]


def test_no_image_could_be_segmented(
    candidate: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UnsegmentedCases("case00: too few channels")

    monkeypatch.setattr(Predictor, "predict_cases", fail)
    with pytest.raises(UserError, match="no case could be segmented"):
        calibrate(settings_of(candidate, raw, tmp_path / "out"))
    assert "case00: too few channels" in messages.text


def test_groups_that_cannot_be_halved_are_named(
    candidate: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two scanners of 20 and 4 cases: a label was found in all 24, but not enough of them are in each half."""
    of_cases = calibration._cross_validated
    scanners = {case: "large" if number < 20 else "small" for number, case in enumerate(CASES)}
    monkeypatch.setattr(calibration, "_cross_validated", lambda given: replace(of_cases(given), groups=scanners))
    with pytest.raises(UserError, match=r"coverage=0\.9 needs 20 cases in two halves.*The 2 groups are too few"):
        calibrate(settings_of(candidate, raw, tmp_path / "out"))


def test_the_settings_name_one_source(candidate: Path, raw: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="candidates, checkpoint: give one of them"):
        CalibrateSettings(output=tmp_path)
    with pytest.raises(InvalidSettings, match="raw_dataset: candidates needs raw_dataset=FOLDER"):
        CalibrateSettings(candidates=(candidate,), output=tmp_path)
    with pytest.raises(InvalidSettings, match=r"images=.*: goes with checkpoint"):
        settings_of(candidate, raw, tmp_path, images=raw)
    network = fold_checkpoints(candidate, "last", 0)[0]
    with pytest.raises(InvalidSettings, match=r"images: checkpoint needs(.|\n)*labels: checkpoint needs"):
        CalibrateSettings(checkpoint=network, output=tmp_path)
    with pytest.raises(InvalidSettings, match=r"review_below=0\.8: needs quality"):
        predict_settings(network, raw, tmp_path, review_below=0.8)


def test_the_check_by_hand() -> None:
    import pandas

    rows = pandas.DataFrame(
        {
            "dsc": [0.9, 0.8, 0.5, 0.1],
            "expected": [0.85, 0.9, 0.6, 0.6],
            "low": [0.8, 0.85, 0.4, 0.5],
            "high": [0.95, 1.0, 0.8, 0.7],
            "beyond": [False, False, True, True],
            "confidence": [0.7, 0.9, 0.8, 0.95],
            "disagreement": [0.1, 0.1, 0.2, 0.5],
        }
    )
    found = check(rows)
    assert (found["cases"], found["coverage"], found["beyond"]) == (4, 0.5, 0.5)
    assert found["width"] == pytest.approx(0.15)
    # Risks in the order of expected DSC, then of disagreement: 0.2, 0.1, 0.5, 0.9; of confidence: 0.9, 0.2, 0.5, 0.1.
    assert found["aurc_expected"] == pytest.approx((0.2 + 0.15 + 0.8 / 3 + 1.7 / 4) / 4)
    assert found["aurc_confidence"] == pytest.approx((0.9 + 0.55 + 1.6 / 3 + 1.7 / 4) / 4)
    assert found["aurc_random"] == pytest.approx(0.425)
