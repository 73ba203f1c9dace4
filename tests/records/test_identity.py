"""What makes a run itself, what may vary, and how a run of an earlier version is read; without training."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from umamba.io import UserError
from umamba.records import RunFolder
from umamba.records.begin import begin, check_same_run, scored_otherwise
from umamba.records.identity import early_stopping, identity_differences, learnt_settings, scoring_settings
from umamba.records.replacement import replacing, settle
from umamba.settings import TrainSettings, plain, read_architecture

Make = Callable[..., TrainSettings]
WITHOUT_SETTINGS = {"configuration": "3d_fullres", "plan": {"a": 1}, "pretrained": None}


def identity(settings: TrainSettings, processes: int = 1) -> dict[str, Any]:
    """Return an identity as training makes it, with a plan of one value."""
    return {
        **WITHOUT_SETTINGS,
        "architecture": plain(settings.architecture),
        **learnt_settings(settings, processes),
        "split": "4 to train, 1 to validate (ab)",
    }


def trained(folder: RunFolder, settings: TrainSettings, state: str = "training") -> RunFolder:
    """Write a run with a checkpoint, as training leaves it."""
    begin(folder, identity(settings), settings, 0)
    folder.checkpoints.mkdir(parents=True)
    folder.last.write_bytes(b"weights")
    folder.set_status(state=state, scoring=scoring_settings(settings))
    return folder


CHANGES = {
    "recipe.optimizer.lr=0.5": "recipe.optimizer.lr: was 0.01, is 0.5",
    "recipe.optimizer.momentum=0.5": "recipe.optimizer.momentum: was 0.99, is 0.5",
    "recipe.loss.focal_gamma=2": "recipe.loss.focal_gamma: was 0.0, is 2.0",
    "recipe.oversample_foreground=0.5": "recipe.oversample_foreground: was 0.33, is 0.5",
    "recipe.gradient_clip_norm=1": "recipe.gradient_clip_norm: was 12.0, is 1.0",
    "recipe.weight_averaging=0.9": "recipe.weight_averaging: was null, is 0.9",
    "augmentation.noise.p=0.5": "augmentation.noise.p: was 0.0, is 0.5",
    "trainer.precision=bf16-mixed": "trainer.precision (or recipe.precision): was 32-true, is bf16-mixed",
    "trainer.accumulate_grad_batches=2": "trainer.accumulate_grad_batches: was 1, is 2",
    "trainer.limit_train_batches=4": (
        "training batches of an epoch (data.iterations_per_epoch, trainer.limit_train_batches): was 3, is 4"
    ),
    "trainer.find_lr=true": "trainer.find_lr: was false, is true",
    "trainer.overfit_batches=2": "trainer.overfit_batches: was null, is 2",
    "trainer.gradient_clip_algorithm=value": "trainer.gradient_clip_algorithm: was null, is value",
    "trainer.callbacks=[{name: ModelPruning, pruning_fn: l1_unstructured}]": (
        "trainer.callbacks: was [], is [{'name': 'ModelPruning', 'pruning_fn': 'l1_unstructured'}]"
    ),
    "architecture=segresnet": "architecture.name: was unet, is segresnet",
    "seed=1": "seed: was 0, is 1",
    "fold=all": "fold: was 0, is all",
}
HARMLESS = [
    *("data.num_workers=3", "data.prefetch_factor=4", "logger=wandb", "logger.panels_every=5", "trainer=ddp"),
    *("trainer.compile=true", "trainer.deterministic=true", "trainer.benchmark=false", "trainer.profiler=simple"),
    *("trainer.max_epochs=9", "trainer.max_time='1:00:00'", "trainer.limit_val_batches=2", "augmentation.device=gpu"),
    *("data.validate_cases_every=1", "trainer.activation_checkpointing=true", "trainer.log_every_n_steps=1"),
    *("predict.tta=true", "recipe.name=mine", "trainer.enable_progress_bar=false"),
    "trainer.callbacks=[{name: EarlyStopping, monitor: val/loss, patience: 9}]",
]


@pytest.fixture(scope="module")
def small(make_settings: Make) -> TrainSettings:
    """Return the settings of the small run."""
    return make_settings()


def test_what_changes_the_weights_is_another_run(small: TrainSettings, make_settings: Make, tmp_path: Path) -> None:
    folder = trained(RunFolder(tmp_path), small)
    other = make_settings(*CHANGES)
    before = folder.config.read_text(), folder.status_file.read_text()
    with pytest.raises(UserError) as caught:
        check_same_run(folder, identity(other), other)
    said = str(caught.value).splitlines()
    assert [line for line in CHANGES.values() if f"  {line}" not in said] == []
    assert all(part in said[-1] for part in ("Give the same values", "name=...", "restart=true"))
    assert (folder.config.read_text(), folder.status_file.read_text()) == before


def test_a_budget_is_part_of_a_run(small: TrainSettings, make_settings: Make) -> None:
    one, same, other = (
        identity(make_settings(given)) for given in ("budget=45min", "budget=0.75h", "finish_by='07:30'")
    )
    key = "time budget (budget in seconds, or finish_by)"
    assert identity_differences(one, same) == []
    assert identity_differences(one, other) == [f"{key}: was 2700.0, is 07:30"]
    without = identity(small)
    for before, now, words in ((without, one, "was null, is 2700.0"), (one, without, "was 2700.0, is null")):
        lines = identity_differences(before, now)
        assert any(line.startswith(key) and line.endswith(words) for line in lines)
        assert any(line.startswith("recipe.schedule.name") for line in lines)


def test_another_optimiser_is_another_run(small: TrainSettings, make_settings: Make) -> None:
    lines = identity_differences(identity(small), identity(make_settings("recipe.optimizer.name=adam")))
    assert "recipe.optimizer.name: was sgd, is adam" in lines


def test_harmless_keys_vary(small: TrainSettings, make_settings: Make, tmp_path: Path) -> None:
    folder = trained(RunFolder(tmp_path), small)
    other = make_settings(*HARMLESS)
    check_same_run(folder, identity(other, processes=2), other, 2)


def test_the_scan_backend_varies_but_not_the_scan(make_settings: Make) -> None:
    one, backend, directions = (
        identity(make_settings("architecture=umamba_bot", *more))
        for more in ((), ("architecture.scan_backend=reference",), ("architecture.scan_directions=axes",))
    )
    assert identity_differences(one, backend) == []
    assert identity_differences(one, directions) == ["architecture.scan_directions: was forward, is axes"]


def test_the_effective_batch_counts_and_not_the_devices(small: TrainSettings, make_settings: Make) -> None:
    divided, multiplied = small, make_settings("trainer.ddp_batch=multiply")
    assert learnt_settings(divided, 1) == learnt_settings(divided, 4)
    assert learnt_settings(multiplied, 1) == learnt_settings(divided, 1)
    assert identity_differences(learnt_settings(multiplied, 2), learnt_settings(multiplied, 4)) == [
        "whole batches of a step (trainer.ddp_batch=multiply, trainer.devices): was 2, is 4"
    ]


def test_the_batches_of_an_epoch_count_and_not_how_they_are_asked_for(make_settings: Make) -> None:
    limited, plainly = (
        make_settings("trainer.limit_train_batches=null", *more)
        for more in (
            ("data.iterations_per_epoch=500", "trainer.limit_train_batches=0.1"),
            ("data.iterations_per_epoch=50",),
        )
    )
    assert identity_differences(identity(limited), identity(plainly)) == []


def test_a_command_that_failed_before_training_does_not_count(
    small: TrainSettings, make_settings: Make, tmp_path: Path
) -> None:
    wrong, right = make_settings("recipe.optimizer.lr=0.5"), small
    folder = RunFolder(tmp_path)
    begin(folder, identity(wrong), wrong, 0)
    folder.set_status(found_lr=0.7, precision="32-true", wandb_id="ab", mlflow_id="c")
    check_same_run(folder, identity(right), right)
    begin(folder, identity(right), right, 0)
    assert OmegaConf.load(folder.config).recipe.optimizer.lr == 0.01
    status = folder.status()
    assert status["identity"]["recipe"]["optimizer"]["lr"] == 0.01
    assert not {"found_lr", "precision", "wandb_id", "mlflow_id", "continuations"} & status.keys(), (
        "they were the other run's"
    )


def test_the_same_command_that_died_before_training_keeps_what_it_found(small: TrainSettings, tmp_path: Path) -> None:
    settings, folder = small, RunFolder(tmp_path)
    begin(folder, identity(settings), settings, 0)
    folder.set_status(found_lr=0.7)
    begin(folder, identity(settings), settings, 0)
    assert folder.status()["found_lr"] == 0.7


def test_a_continuation_is_recorded_and_the_first_config_stays(
    small: TrainSettings, make_settings: Make, tmp_path: Path
) -> None:
    folder = trained(RunFolder(tmp_path), small)
    first = folder.config.read_text()
    longer = make_settings("trainer.max_epochs=9", "data.num_workers=3")
    begin(folder, identity(longer), longer, 2)
    begin(folder, identity(longer), longer, 5)
    assert folder.config.read_text() == first
    entries = folder.status()["continuations"]
    assert [entry["after_epoch"] for entry in entries] == [2, 5]
    assert entries[0]["differs_from_config"] == ["data.num_workers: was 0, is 3", "trainer.max_epochs: was 2, is 9"]
    assert {"when", "git", "umamba"} <= entries[0].keys()
    assert folder.status()["max_epochs"] == 9


def test_a_run_of_an_earlier_version_is_compared_by_its_config(
    make_settings: Make, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    """Its run.json holds neither recipe nor augmentation; its config.yaml does."""
    settings = make_settings("recipe.optimizer.lr=0.02")
    folder = trained(RunFolder(tmp_path), settings)
    old = {**WITHOUT_SETTINGS, "architecture": plain(settings.architecture)}
    folder.status_file.write_text(json.dumps({"state": "finished", "identity": old, "max_epochs": 2}))
    other = make_settings("recipe.optimizer.lr=0.01", "augmentation.noise.p=0.3")
    with pytest.raises(UserError) as caught:
        check_same_run(folder, identity(other), other)
    assert "recipe.optimizer.lr: was 0.02, is 0.01" in str(caught.value)
    assert "augmentation.noise.p: was 0.0, is 0.3" in str(caught.value)
    check_same_run(folder, identity(settings), settings)
    begin(folder, identity(settings), settings, 2)
    assert "now also holds fold, seed, precision" in messages.text
    assert folder.status()["identity"] == json.loads(json.dumps(identity(settings)))
    assert scored_otherwise(folder, make_settings("predict.tta=true")) == ["predict.tta: was false, is true"]


def test_an_earlier_version_without_config_or_with_unknown_keys_continues(small: TrainSettings, tmp_path: Path) -> None:
    settings = small
    folder = trained(RunFolder(tmp_path), settings)
    old = {**WITHOUT_SETTINGS, "architecture": plain(settings.architecture)}
    for content in (None, "recipe: {of_another_time: 1}\n"):
        folder.status_file.write_text(json.dumps({"state": "training", "identity": old}))
        folder.config.unlink()
        if content is not None:
            folder.config.write_text(content)
        check_same_run(folder, identity(settings), settings)
        begin(folder, identity(settings), settings, 1)
        assert folder.status()["identity"]["recipe"]["optimizer"]["lr"] == 0.01


def test_options_newer_than_the_run_have_their_defaults(small: TrainSettings, make_settings: Make) -> None:
    now = identity(small)
    before = json.loads(json.dumps(now))
    del before["recipe"]["loss"]["tversky"], before["augmentation"]["gamma"], before["trainer"]["callbacks"]
    now["augmentation"]["gamma"] = plain(make_settings("augmentation=nnunet").augmentation.gamma)
    assert identity_differences(before, now) == []
    assert identity_differences({**before, "architecture": {"name": "unet"}}, now) == []
    assert read_architecture("unet")


def test_other_scores_are_noticed(small: TrainSettings, make_settings: Make, tmp_path: Path) -> None:
    folder = trained(RunFolder(tmp_path), small, "finished")
    assert scored_otherwise(folder, make_settings("data.num_workers=3")) == []
    assert scored_otherwise(folder, make_settings("predict.tile_step_size=1", "dataset.tolerance_mm=1")) == [
        "predict.tile_step_size: was 0.5, is 1.0",
        "tolerance_mm: was 3.0, is 1.0",
    ]


def test_more_patience_asks_for_more_training(make_settings: Make, tmp_path: Path) -> None:
    stopping = "trainer.callbacks=[{{name: EarlyStopping, monitor: val/loss, patience: {}}}]"
    settings = make_settings(stopping.format(1))
    folder = trained(RunFolder(tmp_path), settings)
    folder.set_status(state="finished", ended_after=1)
    assert folder.is_finished(2, None, early_stopping(settings))
    more = make_settings(stopping.format(5))
    assert not folder.is_finished(2, None, early_stopping(more))
    begin(folder, identity(more), more, 1)
    assert "ended_after" not in folder.status()


def test_a_dry_run_has_a_folder_of_its_own(small: TrainSettings, make_settings: Make) -> None:
    real, dry = small, make_settings("trainer.fast_dev_run=true")
    assert RunFolder.of(dry) != RunFolder.of(real)
    assert RunFolder.of(dry).path.parts[-4] == f"fast_dev_run_{RunFolder.of(real).path.parts[-4]}"
    assert RunFolder.of(make_settings("trainer.fast_dev_run=false")) == RunFolder.of(real)
    assert replace(dry, fold=1).trainer.dry_run


@pytest.fixture
def old(tmp_path: Path) -> RunFolder:
    """Return a run with a checkpoint and a table, and a task that runs in its folder."""
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    folder.last.write_text("old")
    folder.metrics.write_text("old")
    folder.task_file.write_text("{}")
    return folder


def files(folder: RunFolder) -> dict[str, str]:
    """Return the files of a run folder and their content."""
    return {str(p.relative_to(folder.path)): p.read_text() for p in folder.path.rglob("*") if p.is_file()}


def test_a_replaced_run_is_deleted_by_the_first_checkpoint(old: RunFolder) -> None:
    with replacing(old, wanted=True):
        assert not old.saved()
        assert old.task_file.exists()
        old.metrics.write_text("new")
        assert files(old)[".replaced/checkpoints/last.ckpt"] == "old"
        old.checkpoints.mkdir()
        old.last.write_text("new")
        settle(old)
    assert files(old) == {"checkpoints/last.ckpt": "new", "metrics.csv": "new", "task.json": "{}"}


def test_an_error_before_the_first_checkpoint_puts_the_old_run_back(old: RunFolder) -> None:
    before = files(old)

    def fails() -> None:
        with replacing(old, wanted=True):
            old.metrics.write_text("new")
            raise UserError("no memory")

    with pytest.raises(UserError):
        fails()
    assert files(old) == before


@pytest.mark.parametrize("step", range(6))
def test_a_kill_at_any_step_of_a_replacement_is_undone(
    old: RunFolder, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    before = files(old)
    rename, calls = Path.rename, 0

    def dying(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls > step:
            raise KeyboardInterrupt  # every later call fails, too, as in a dead process
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt), replacing(old, wanted=True):
            raise KeyboardInterrupt
    with replacing(old, wanted=False):
        assert files(old) == before


def test_a_teacher_is_another_run_also_than_one_that_knew_no_teachers(small: TrainSettings) -> None:
    before = identity(small)
    assert identity_differences(before, {**before, "teacher": None}) == []
    assert identity_differences(before, {**before, "teacher": "ab"}) == [
        "teacher (content of that checkpoint): was null, is ab"
    ]
    assert identity_differences({**before, "teacher": "ab"}, before) == []  # a study's list, which knows settings only


def test_weights_of_losses_that_a_run_does_not_have_are_no_part_of_it(small: TrainSettings) -> None:
    """Runs of earlier versions may have such weights; the settings refuse them now."""
    for key, part in (("exclusion_weight", "partly_labelled"), ("distillation_weight", "teacher")):
        other = copy.deepcopy(identity(small))
        other["recipe"]["loss"][key] = 0.5
        assert identity_differences(other, identity(small)) == []
        now, before = ({**each, "teacher": None, part: "yes"} for each in (identity(small), other))
        found = identity_differences(before, now)
        default = {"exclusion_weight": "0.0", "distillation_weight": "10.0"}[key]
        assert found == [f"recipe.loss.{key}: was 0.5, is {default}"]
        former = {name: value for name, value in before.items() if name != "partly_labelled"}  # an earlier version's
        assert identity_differences(former, now) == found
