"""A run by the functions of a notebook: what it returns, writes and shows, and what it refuses before any work."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks.build import architecture_names
from umamba.records import RunFolder
from umamba.records.tables import read_metrics, read_scores
from umamba.runs import PreparedDataset, RunResult, prepare, run, train
from umamba.runs import whole_run as whole_run_module
from umamba.runs.checks import check_network
from umamba.runs.fit import fit
from umamba.runs.identity import checkpoint_record
from umamba.runs.score import predict_and_score, references, scoring_rules
from umamba.settings import TrainerSettings, TrainSettings, read_architecture

Make = Callable[..., TrainSettings]


@pytest.fixture(scope="module")
def settings(make_settings: Make, tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """Return the settings of a run with two test images, whose best checkpoint predicts, with TTA."""
    paths = tmp_path_factory.mktemp("whole")
    folders = [f"paths.{name}={paths / name}" for name in ("raw", "preprocessed", "runs")]
    return make_settings(*folders, "dataset.phantom.num_test=2", "predict.checkpoint=best", "predict.tta=true")


@pytest.fixture(scope="module")
def result(settings: TrainSettings) -> RunResult:
    """Return the result of that run."""
    return train(settings, progress=False)


def test_a_run_returns_its_folder_and_scores(settings: TrainSettings, result: RunResult) -> None:
    assert result.folder == RunFolder.of(settings)
    assert result.checkpoint == result.folder.last
    assert isinstance(result.scores, pandas.DataFrame)
    assert isinstance(result.validation, pandas.DataFrame)
    assert result.scores["case"].nunique() == 2
    assert result.validation["case"].nunique() == 1
    pandas.testing.assert_frame_equal(result.scores, read_scores(result.folder.scores))
    pandas.testing.assert_frame_equal(result.validation, read_scores(result.folder.validation_scores))


def test_the_best_checkpoint_predicts_and_all_files_are_there(settings: TrainSettings, result: RunResult) -> None:
    folder = result.folder
    for path in (folder.last, folder.previous, folder.best, folder.config, folder.plan, folder.metrics, folder.curves):
        assert path.is_file(), path
    cases = set(read_scores(folder.scores)["case"])
    assert {path.name for path in folder.predictions.glob("*.nii.gz")} == {f"{case}.nii.gz" for case in cases}
    assert len(list(folder.validation.glob("*.nii.gz"))) == 1
    assert folder.status()["state"] == "finished"
    assert not folder.panels.exists(), "logger.panels_every=0"
    best, last = (torch.load(path, weights_only=True) for path in (folder.best, folder.last))
    assert best["umamba"]["scores"]["ema_patch_dice"] >= last["umamba"]["scores"]["ema_patch_dice"]


def test_the_best_checkpoint_alone_is_enough_to_predict(
    settings: TrainSettings, result: RunResult, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    shutil.copy(result.folder.best, folder.best)
    validation, scores = predict_and_score(settings, prepare(settings), folder)
    assert validation is not None
    assert scores is not None
    assert result.scores is not None
    pandas.testing.assert_frame_equal(scores, result.scores, check_exact=False, rtol=1e-4)


def test_a_finished_run_returns_the_same_without_training(
    settings: TrainSettings, result: RunResult, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(whole_run_module, "fit", lambda *_: pytest.fail("it is trained already"))
    again = train(settings, progress=False)
    assert "This run is finished" in messages.text
    assert again.folder == result.folder
    assert again.scores is not None
    assert result.scores is not None
    pandas.testing.assert_frame_equal(again.scores, result.scores)


def test_more_epochs_continue_the_run(settings: TrainSettings, result: RunResult) -> None:
    longer = replace(settings, trainer=replace(settings.trainer, max_epochs=3))
    assert train(longer, progress=False).folder == result.folder
    assert [row["epoch"] for row in read_metrics(result.folder.metrics)] == ["0", "1", "2"]


def test_progress_is_shown_only_if_asked_for(make_settings: Make, capfd: pytest.CaptureFixture[str]) -> None:
    settings = make_settings("name=shown", "trainer.max_epochs=1")
    train(settings, progress=False)
    assert capfd.readouterr() == ("", "")
    train(replace(settings, restart=True))
    said = capfd.readouterr()
    assert "epoch 1/1" in said.out
    assert "Run folder" in said.out
    train(replace(settings, restart=True), progress=False)
    assert capfd.readouterr() == ("", ""), "what one call shows, the next one does not"


def test_the_smoke_test_is_silent_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from umamba.cli.compose import settings_of

    folders = [f"paths.{name}={tmp_path / name}" for name in ("raw", "preprocessed", "runs")]
    small = ["smoke=true", "logger=csv", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "data.num_workers=0"]
    result = train(settings_of(TrainSettings, ["experiment=flare_unet", *folders, *small]), progress=False)
    assert result.scores is not None
    assert result.folder.path.parts[-4] == "smoke_flare_unet"
    assert capfd.readouterr().out == ""


def test_a_run_without_test_images_has_no_scores(
    make_settings: Make, prepared: PreparedDataset, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path / "run")
    result = run(make_settings("trainer.max_epochs=1", "predict.validation=false"), prepared, folder)
    assert (result.scores, result.validation) == (None, None)
    assert not folder.scores.exists()
    assert not folder.validation.exists()
    assert "No test images" in messages.text


def test_the_tile_step_reaches_the_validation_of_whole_cases(
    make_settings: Make, prepared: PreparedDataset, tmp_path: Path
) -> None:
    dices = {}
    for step in ("0.5", "1.0"):
        settings = make_settings(
            "trainer.max_epochs=1",
            "trainer.limit_train_batches=6",
            "data.validate_cases_every=1",
            "data.validation_cases=1",
            f"predict.tile_step_size={step}",
        )
        folder = RunFolder(tmp_path / step)
        fit(settings, prepared, folder, checkpoint_record(settings, prepared))
        (row,) = read_metrics(folder.metrics)
        dices[step] = float(row["val/case_dice"])
    assert dices["0.5"] != dices["1.0"]


def test_the_validation_of_whole_cases_flips_the_mirrored_axes_only(
    make_settings: Make, prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from umamba.training import case_validation

    flipped = []
    forward = case_validation.tile_forward

    def spy(*arguments: object, flipped_axes: tuple[int, ...]) -> object:
        flipped.append(flipped_axes)
        return forward(*arguments, flipped_axes=flipped_axes)  # type: ignore[arg-type]

    monkeypatch.setattr(case_validation, "tile_forward", spy)
    common = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "data.validate_cases_every=1"]
    mirrored = ["augmentation.mirror={p: 0.5, axes: [1, 2]}"]
    for name, more in (("off", mirrored), ("on", [*mirrored, "predict.tta=true"])):
        settings = make_settings(*common, "data.validation_cases=1", *more)
        fit(settings, prepared, RunFolder(tmp_path / name), checkpoint_record(settings, prepared))
    assert flipped == [(), (1, 2)]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset.protocol=abdomen"], "protocol=abdomen"),
        (["dataset.protocol=cell"], "dataset.protocol=cell"),
        (["recipe.loss.class_weights=[1,2]"], r"recipe\.loss\.class_weights=\[1.0, 2.0\]: give 6 numbers"),
        (["trainer.accelerator=gpu"], r"trainer\.accelerator=gpu: .* Give trainer\.accelerator=auto or cpu"),
        (["trainer.accelerator=mps"], r"trainer\.accelerator=mps: .*Apple GPU"),
        (["trainer.devices=[0,1]"], r"trainer\.devices=\[0,1\]: .*such as trainer\.devices=2"),
        (["trainer.callbacks=[{name: 'nowhere:Own'}]"], r"trainer\.callbacks\[0\]\.name=nowhere:Own: No module"),
        (["trainer.callbacks=[{name: 'json:loads'}]"], "no class that inherits"),
        (["trainer.callbacks=[{name: EarlyStopping, monitor: val/loss, mode: up}]"], "refuses its arguments"),
        (
            ["architecture=swinunetr", "plan.patch_size=[32,32,32]", "plan.strides=null"],
            "leaves a single voxel in SwinUNETR",
        ),
    ],
    ids=[
        *("protocol", "cells", "class weights", "device", "apple", "indices of processors"),
        *("no such callback", "no callback", "wrong mode", "one voxel left"),
    ],
)
def test_mistakes_are_found_before_preprocessing(
    make_settings: Make, prepared: PreparedDataset, tmp_path: Path, overrides: list[str], words: str
) -> None:
    del prepared  # its phantom is used
    if "trainer." in overrides[0] and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("there is a GPU")
    free = [f"plan.{name}=null" for name in ("kernel_sizes", "encoder_blocks", "decoder_blocks", "features_per_stage")]
    more = free if "plan.strides=null" in overrides else []
    settings = make_settings(
        *more, *overrides, f"paths.preprocessed={tmp_path / 'out'}", f"paths.runs={tmp_path / 'runs'}"
    )
    with pytest.raises(UserError, match=words):
        train(settings, progress=False)
    made = [path.name for path in (tmp_path / "out").rglob("*")] if (tmp_path / "out").exists() else []
    assert not [name for name in made if name.startswith("3d_fullres")], "no store was begun"
    assert not (tmp_path / "runs").exists()


def test_labelled_cases_need_their_numbered_cells(prepared: PreparedDataset) -> None:
    assert len(references(prepared.dataset.training, "generic")) == 5
    with pytest.raises(UserError, match=r"dataset\.protocol=cell: there are no numbered cells for .*_label\.tiff"):
        references(prepared.dataset.training, "cell")


def test_the_rules_of_the_scores_follow_from_the_dataset(make_settings: Make, prepared: PreparedDataset) -> None:
    rules = scoring_rules(make_settings("dataset.tolerance_mm=1.5"), prepared)
    assert (rules.protocol, rules.tolerance_mm) == ("generic", 1.5)
    assert rules.labels == prepared.labels


def test_run_json_holds_what_a_continued_run_must_not_change(result: RunResult) -> None:
    identity = result.folder.status()["identity"]
    assert identity["architecture"]["name"] == "unet"
    assert json.loads(result.folder.plan.read_text()) == identity["plan"]


def test_the_time_of_a_run_is_part_of_what_is_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.set_status(state="finished", max_epochs=10, max_seconds=TrainerSettings(max_time="00:01:00").max_seconds)
    assert folder.is_finished(10, 60.0)
    assert not folder.is_finished(10, TrainerSettings().max_seconds)


@pytest.mark.parametrize("name", architecture_names())
def test_every_architecture_passes_the_check(make_settings: Make, prepared: PreparedDataset, name: str) -> None:
    """Build each network at a plan that it fits; the check needs neither data nor memory."""
    configuration = replace(prepared.configuration, patch_size=(32, 32, 64))
    planned = replace(prepared, configuration=configuration)
    check_network(replace(make_settings(), architecture=read_architecture(name)), planned)


@pytest.mark.parametrize(
    ("name", "residual", "words"),
    [("unet", True, "planner=nnunet"), ("resenc_unet", False, "planner=resenc_m"), ("unet", False, ""),
     ("resenc_unet", True, ""), ("umamba_bot", True, "")],
)  # fmt: skip
def test_a_plan_for_the_other_encoder_is_said(
    make_settings: Make, prepared: PreparedDataset, messages: pytest.LogCaptureFixture, name: str, residual: bool,
    words: str,
) -> None:  # fmt: skip
    planned = replace(prepared, configuration=replace(prepared.configuration, residual_encoder=residual))
    check_network(replace(make_settings(), architecture=read_architecture(name)), planned)
    said = [text for text in messages.messages if "this network is none of nnU-Net's" in text]
    assert (words in said[0]) if words else not said


def test_an_exclusion_loss_that_does_nothing_is_refused(make_settings: Make, prepared: PreparedDataset) -> None:
    with pytest.raises(UserError, match=r"recipe\.loss\.exclusion_weight=1: all cases of .* carry all labels"):
        check_network(make_settings("recipe.loss.exclusion_weight=1"), prepared)
    regions = LabelSet(("whole", "core"), ((1, 2), (2,)), regions=True) if False else None
    assert regions is None


def test_tiles_that_the_trained_network_would_refuse_are_refused_before_training(
    make_settings: Make, prepared: PreparedDataset
) -> None:
    planned = replace(prepared, configuration=replace(prepared.configuration, patch_size=(32, 32, 64)))
    settings = replace(make_settings("predict.tile_scale=2"), architecture=read_architecture("unetr"))
    with pytest.raises(UserError, match=r"tile_scale=2: .*tied to its patch of 32 x 32 x 64 voxels"):
        check_network(settings, planned)
