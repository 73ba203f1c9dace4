"""Selection by cross-validation: scores and post-processing by hand, and the whole command on untrained networks."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba.cli.find_best import main
from umamba.io import UserError, write_json
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.planning import Configuration, Plan, split_folds
from umamba.runs.select import determine_post_processing, find_best, fold_checkpoints, mean_dice
from umamba.settings import FindBestSettings, InvalidSettings

LABELS = LabelSet(("a", "b"), ((1,), (2,)))


def write(folder: Path, name: str, array: np.ndarray) -> Path:
    """Write a small label map."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(path))
    return path


def pairs(tmp_path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return files of two cases: label 1 is predicted with a stray part, label 2 correctly in two parts."""
    truth = np.zeros((4, 8, 16))
    truth[1, 1:3, 1:5] = 1  # 8 voxels
    truth[2, 5:7, 1:3] = 2  # 4
    truth[2, 5:7, 8:10] = 2  # 4
    predicted = truth.copy()
    predicted[3, 0, 12:14] = 1  # 2 stray voxels
    other = np.zeros_like(truth)  # neither map has label 2
    other[1, 1:3, 1:5] = 1
    return (
        {"x": write(tmp_path / "p", "x", predicted), "y": write(tmp_path / "p", "y", other)},
        {"x": write(tmp_path / "t", "x", truth), "y": write(tmp_path / "t", "y", other)},
    )


def test_scores_and_steps_by_hand(tmp_path: Path) -> None:
    segmentations, truths = pairs(tmp_path)
    scores = mean_dice(segmentations, truths, LABELS, lambda array: array, 2)
    assert scores == pytest.approx({"a": (2 * 8 / 18 + 1) / 2, "b": 1.0})
    steps, after = determine_post_processing(segmentations, truths, LABELS, 2)
    # One component of all foreground loses parts of b, and so does one component of b; one component of a helps.
    assert steps.steps == ((1,),)
    assert after == pytest.approx({"a": 1.0, "b": 1.0})


def test_steps_that_do_not_help_are_not_taken(tmp_path: Path) -> None:
    _, truths = pairs(tmp_path)
    steps, after = determine_post_processing(truths, truths, LABELS, 1)
    assert steps.steps == ()
    assert after == {"a": 1.0, "b": 1.0}


def test_all_foreground_comes_first(tmp_path: Path) -> None:
    truth = np.zeros((2, 6, 6))
    truth[0, 1, 1:3] = 1
    truth[0, 1, 3:5] = 2
    predicted = truth.copy()
    predicted[1, 5, 0] = 1
    predicted[1, 5, 1] = 2
    files = {"x": write(tmp_path / "p", "x", predicted)}, {"x": write(tmp_path / "t", "x", truth)}
    steps, after = determine_post_processing(*files, LABELS, 1)
    assert steps.steps == ((1, 2),)
    assert after == {"a": 1.0, "b": 1.0}


def run_folder(root: Path, name: str, seed: int, folds: tuple[int, ...] = (0, 1), trained: str = "3d_fullres") -> Path:
    """Write checkpoints of untrained networks in the folders of a run's folds."""
    configuration = Configuration(
        name="3d_fullres",
        spacing=(1.0,) * 3,
        median_shape=(8.0,) * 3,
        patch_size=(8,) * 3,
        batch_size=2,
        batch_dice=False,
        normalization=("NoNormalization",),
        use_mask_for_norm=(False,),
        strides=((1,) * 3, (2,) * 3),
        kernel_sizes=((3,) * 3, (3,) * 3),
        features_per_stage=(2, 4),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
        residual_encoder=False,
    )
    order = (0, 1, 2)
    planned = {"3d_fullres": configuration, "3d_lowres": replace(configuration, name="3d_lowres")}
    plan = Plan("Dataset001_Test", "nnunet", order, order, (1.0,) * 3, (8.0,) * 3, (), planned)
    channels = plan.configuration(trained).input_channels(1, LABELS)
    for fold in folds:
        torch.manual_seed(10 * seed + fold)
        network = build_network("unet", configuration, channels, 3)
        record: dict[str, Any] = {
            "format": 1,
            "plan": plan.to_json(),
            "configuration": trained,
            "architecture": {"name": "unet"},
            "labels": LABELS.to_json(),
            "channel_names": ["CT"],
            "file_ending": ".nii.gz",
            "recipe": {},
        }
        run = root / name / trained / f"fold_{fold}" / "seed_0"
        path = run / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        write_json(run / "run.json", {"state": "finished"})
        weights = {f"network.{key}": value for key, value in network.state_dict().items()}
        torch.save({"umamba": record, "state_dict": weights}, path)
    return root / name / trained


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A dataset of six random cases."""
    root, generator = tmp_path / "Dataset001_Test", np.random.default_rng(0)
    for index in range(6):
        write(root / "imagesTr", f"case{index}_0000", generator.integers(1, 200, (8, 8, 8)))
        write(root / "labelsTr", f"case{index}", generator.integers(0, 3, (8, 8, 8)))
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "numTraining": 6}
    (root / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    return root


def test_the_best_is_found_and_predicts(project_dir: Path, raw: Path, tmp_path: Path) -> None:
    candidates = [run_folder(tmp_path / "runs", name, seed) for seed, name in enumerate(("one", "two"))]
    output = tmp_path / "best"
    command = [
        sys.executable,
        str(project_dir / "find_best.py"),
        f"candidates=[{candidates[0]},{candidates[1]}]",
        f"raw_dataset={raw}",
        f"output={output}",
        "device=cpu",
    ]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    best = json.loads((output / "best.json").read_text())
    assert set(best["mean_dice"]) == {"one.3d_fullres", "two.3d_fullres", "one.3d_fullres+two.3d_fullres"}
    assert best["mean_dice"][best["best"]] == max(best["mean_dice"].values())
    assert len(best["checkpoints"]) == (4 if "+" in best["best"] else 2)
    folds = split_folds([f"case{index}" for index in range(6)])
    for fold in (0, 1):
        found = {path.name for path in (output / best["best"] / f"fold_{fold}").glob("*.nii.gz")}
        assert found == {f"{case}.nii.gz" for case in folds[fold]["val"]}
    said = result.stdout.split("umamba predict ")[1]
    assert f"post_processing={output / 'post_processing.json'}" in said.replace("\n", "")


def test_the_function_returns_what_it_found(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    candidate = run_folder(tmp_path / "runs", "one", 0)
    settings = FindBestSettings(candidates=(candidate,), raw_dataset=raw, output=tmp_path / "best", device="cpu")
    selection = find_best(settings)
    assert [each.name for each in selection.ranked] == ["one.3d_fullres"]
    assert selection.best.checkpoints == tuple(
        candidate / f"fold_{fold}" / "seed_0" / "checkpoints" / "last.ckpt" for fold in (0, 1)
    )
    assert set(selection.scores) == {"a", "b"}
    assert json.loads((tmp_path / "best" / "post_processing.json").read_text())["configuration"] == "one.3d_fullres"
    assert capsys.readouterr() == ("", ""), "the command shows the outcome, the function nothing"


def test_the_command_for_a_cascade_names_its_first_stage(
    raw: Path, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    first = run_folder(tmp_path / "runs", "one", 0, trained="3d_lowres")
    second = run_folder(tmp_path / "runs", "one", 1, trained="3d_cascade_fullres")
    main(FindBestSettings(candidates=(second,), raw_dataset=raw, output=tmp_path / "best", device="cpu"))
    said = shlex.split(messages.text.split("umamba predict ")[1])
    files = [f"{folder}/fold_{fold}/seed_0/checkpoints/last.ckpt" for folder in (second, first) for fold in (0, 1)]
    assert said[:2] == [f"checkpoint=[{','.join(files[:2])}]", f"previous_checkpoint=[{','.join(files[2:])}]"]
    best = json.loads((tmp_path / "best" / "best.json").read_text())
    assert best["checkpoints"] + best["previous_checkpoints"] == files
    (first / "fold_1/seed_0/run.json").write_text('{"state": "training"}')
    again = FindBestSettings(candidates=(second,), raw_dataset=raw, output=tmp_path / "again", device="cpu")
    with pytest.raises(UserError, match="fold 1 of the first stage is not trained"):
        find_best(again)
    assert not again.output.exists()


def test_other_folds_are_named(raw: Path, tmp_path: Path) -> None:
    candidates = (run_folder(tmp_path / "runs", "one", 0), run_folder(tmp_path / "runs", "two", 1, folds=(0,)))
    settings = FindBestSettings(candidates=candidates, raw_dataset=raw, output=tmp_path / "best", device="cpu")
    with pytest.raises(UserError, match=r"not the same folds.*one\.3d_fullres has 0, 1; two\.3d_fullres has 0"):
        find_best(settings)
    with pytest.raises(UserError, match="no fold_"):
        fold_checkpoints(tmp_path, "last", 0)


def test_a_fold_that_still_trains_is_named(tmp_path: Path, messages: pytest.LogCaptureFixture) -> None:
    candidate = run_folder(tmp_path / "runs", "one", 0)
    (candidate / "fold_0" / "seed_0" / "run.json").write_text('{"state": "finished"}')
    (candidate / "fold_1" / "seed_0" / "run.json").write_text('{"state": "training"}')
    assert sorted(fold_checkpoints(candidate, "last", 0)) == [0, 1]
    (warning,) = messages.messages
    assert warning.startswith(f"{candidate / 'fold_1' / 'seed_0'}: its training is not finished")


def test_candidates_of_one_name_are_refused(raw: Path, tmp_path: Path) -> None:
    candidates = tuple(run_folder(tmp_path / place, "one", seed) for seed, place in enumerate(("runs", "others")))
    settings = FindBestSettings(candidates=candidates, raw_dataset=raw, output=tmp_path / "best", device="cpu")
    with pytest.raises(UserError, match=r"runs/one/3d_fullres, .*others/one/3d_fullres have one name, one\.3d_fullres"):
        find_best(settings)
    assert not (tmp_path / "best").exists()


def test_candidates_are_checked_when_the_settings_are_made(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"candidates=\[\]: give at least one folder"):
        FindBestSettings(candidates=(), raw_dataset=raw, output=tmp_path / "best")


def test_a_random_split_beyond_the_folds_is_left_out(
    raw: Path, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    candidate = run_folder(tmp_path / "runs", "one", 0, folds=(0, 1, 7))
    settings = FindBestSettings(candidates=(candidate,), raw_dataset=raw, output=tmp_path / "best", device="cpu")
    selection = find_best(settings)
    assert [path.parents[2].name for path in selection.best.checkpoints] == ["fold_0", "fold_1"]
    assert "fold 7 validates cases of other folds" in messages.text
    held_out = [case for fold in split_folds([f"case{index}" for index in range(6)])[:2] for case in fold["val"]]
    assert sorted(selection.best.segmentations) == sorted(held_out)


def test_partly_labelled_cases_count_for_the_labels_that_they_carry(tmp_path: Path) -> None:
    segmentations, truths = pairs(tmp_path)
    scores = mean_dice(segmentations, truths, LABELS, lambda array: array, 1, {"x": ("b",)})
    assert scores == pytest.approx({"a": 1.0, "b": 1.0})  # a of y alone
