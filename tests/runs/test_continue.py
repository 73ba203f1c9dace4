"""A run that goes on: refused if it would learn something else, ended where it ended, replaced by a trained one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from umamba.inference.checkpoints import find_checkpoints
from umamba.io import UserError, read_json
from umamba.records import RunFolder
from umamba.records.tables import read_metrics
from umamba.runs import PreparedDataset, run
from umamba.runs import whole_run as whole_run_module
from umamba.runs.trainer import build_trainer
from umamba.settings import TrainSettings
from umamba.training.module import SegmentationModule

Make = Callable[..., TrainSettings]
Run = Callable[..., RunFolder]
PATIENCE = "trainer.callbacks=[{{name: EarlyStopping, monitor: val/patch_dice, mode: max, patience: {}, min_delta: 1}}]"


@pytest.fixture
def train(make_settings: Make, prepared: PreparedDataset, tmp_path: Path) -> Run:
    """Return a function that runs a command in the folder `name`."""

    def command(*overrides: str, name: str = "run") -> RunFolder:
        return run(make_settings("predict.validation=false", *overrides), prepared, RunFolder(tmp_path / name)).folder

    return command


def weights(folder: RunFolder) -> dict[str, Any]:
    """Return the weights of a run's last checkpoint."""
    return dict(torch.load(folder.last, weights_only=True)["state_dict"])


def equal(first: RunFolder, second: RunFolder) -> bool:
    """Return whether two runs have bit-identical weights."""
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def epochs(folder: RunFolder) -> list[int]:
    """Return the epochs of metrics.csv."""
    return [int(row["epoch"]) for row in read_metrics(folder.metrics)]


def test_another_learning_rate_is_refused_and_nothing_changes(train: Run) -> None:
    folder = train("trainer.max_epochs=1")
    before = folder.config.read_text(), folder.status_file.read_text(), folder.last.read_bytes()
    with pytest.raises(UserError, match=r"recipe\.optimizer\.lr: was 0\.01, is 0\.001"):
        train("recipe.optimizer.lr=0.001", "trainer.max_epochs=1")
    with pytest.raises(UserError, match=r"recipe\.optimizer\.name: was sgd, is adam"):
        train("recipe.optimizer.name=adam", "trainer.max_epochs=3")
    assert (folder.config.read_text(), folder.status_file.read_text(), folder.last.read_bytes()) == before


def test_harmless_keys_and_more_epochs_continue_the_run(train: Run) -> None:
    folder = train("trainer.max_epochs=1")
    first = folder.config.read_text()
    assert train("trainer.max_epochs=2", "data.num_workers=1", "trainer.deterministic=true") == folder
    assert epochs(folder) == [0, 1]
    (entry,) = folder.status()["continuations"]
    assert entry["after_epoch"] == 1
    assert "trainer.max_epochs: was 1, is 2" in entry["differs_from_config"]
    assert folder.config.read_text() == first


def test_damaged_files_of_a_run_are_repaired_or_refused_before_an_epoch(
    train: Run, messages: pytest.LogCaptureFixture
) -> None:
    folder = train("trainer.max_epochs=1")
    config = folder.config.read_text()
    for file in (folder.metrics, folder.config, folder.plan):
        file.write_bytes(file.read_bytes()[:-7] if file == folder.metrics else file.read_bytes()[:100])
    again = ("predict.validation=true", "trainer.max_epochs=2")
    train(*again)
    assert epochs(folder) == [1]  # the row of the first epoch was cut
    assert "metrics.csv is cut in its last row: 0 whole rows stay" in messages.text
    assert "config.yaml is damaged" in messages.text
    assert folder.config.read_text() == config.replace("max_epochs: 1", "max_epochs: 2").replace(
        "  validation: false", "  validation: true"
    )
    assert read_json(folder.plan) == folder.status()["identity"]["plan"]
    assert (folder.path / "metrics.csv.damaged").exists()
    scores, checkpoint = folder.validation_scores.read_text(), folder.last.read_bytes()
    for content in (scores[:-3], ""):
        folder.validation_scores.write_text(content)
        train(*again)
        assert folder.validation_scores.read_text() == scores
    assert "This run is trained, and is scored again" in messages.text
    for content in ("", "[]", '{"state": {}}', '{"state": "fini'):
        folder.status_file.write_text(content)
        with pytest.raises(UserError, match=r"run\.json: .*Put back a copy"):
            train("trainer.max_epochs=3")
        assert folder.status_file.read_text() == content
    assert folder.last.read_bytes() == checkpoint
    assert find_checkpoints([folder.path]) == [folder.last]
    assert "run.json" in messages.text


def test_fewer_epochs_than_done_are_refused(train: Run, messages: pytest.LogCaptureFixture) -> None:
    folder = train()
    train("trainer.max_epochs=1")
    assert "It was trained for 2 epochs, not 1" in messages.text
    folder.set_status(state="training")
    with pytest.raises(UserError, match=r"trainer\.max_epochs=1: the run in .* has completed 2 epochs already"):
        train("trainer.max_epochs=1")
    assert epochs(folder) == [0, 1]


def test_a_mistake_in_prediction_settings_does_not_show_old_scores(
    train: Run, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    train("trainer.max_epochs=1")
    predicted = []

    def predict(settings: TrainSettings, *_: Any) -> tuple[None, None]:
        predicted.append(settings.predict.tta)
        return None, None

    monkeypatch.setattr(whole_run_module, "predict_and_score", predict)
    train("trainer.max_epochs=1", "predict.tta=true")
    train("trainer.max_epochs=1", "predict.tta=true")
    assert predicted == [True], "again with the other settings, once"
    assert "predict.tta: was false, is true" in messages.text


def spoil(monkeypatch: pytest.MonkeyPatch, error: BaseException, epoch: int) -> None:
    """Make the training of an epoch raise an error."""
    original = SegmentationModule.training_step

    def step(self: SegmentationModule, *arguments: Any) -> torch.Tensor:
        if self.current_epoch == epoch:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(SegmentationModule, "training_step", step)


def test_a_restart_that_fails_before_its_first_checkpoint_keeps_the_old_run(
    train: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train("trainer.max_epochs=1")
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock"}
    with monkeypatch.context() as patch:
        spoil(patch, UserError("no memory"), 0)
        with pytest.raises(UserError, match="memory"):
            train("trainer.max_epochs=1", "recipe.optimizer.lr=0.5", "restart=true")
    after = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before
    with monkeypatch.context() as patch:
        spoil(patch, UserError("no memory"), 1)
        with pytest.raises(UserError, match="memory"):
            train("recipe.optimizer.lr=0.5", "restart=true")
    assert folder.status()["identity"]["recipe"]["optimizer"]["lr"] == 0.5, "the new run has a checkpoint"
    assert not (folder.path / ".replaced").exists()
    assert epochs(train("recipe.optimizer.lr=0.5")) == [0, 1]


def test_a_command_that_failed_does_not_block_the_right_one(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, UserError("it diverges"), 0)
        with pytest.raises(UserError, match="diverges"):
            train("recipe.optimizer.lr=100", name="one")
    assert equal(train(name="one"), train(name="other"))


def test_early_stopping_ends_a_run_and_a_killed_one_alike(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience 2 without any improvement that counts: the first epoch is the best one, two more follow."""
    asked = ["trainer.max_epochs=9", PATIENCE.format(2)]
    whole = train(*asked, name="whole")
    assert epochs(whole) == [0, 1, 2]
    assert whole.status()["state"] == "finished"
    with monkeypatch.context() as patch:
        spoil(patch, UserError("killed"), 2)
        with pytest.raises(UserError, match="killed"):
            train(*asked, name="killed")
    assert epochs(RunFolder(whole.path.with_name("killed"))) == [0, 1]
    assert equal(train(*asked, name="killed"), whole), "the waiting of two epochs was remembered"
    whole.set_status(state="predicting")  # killed during the prediction that follows
    before = whole.last.read_bytes()
    assert train(*asked, name="whole").last.read_bytes() == before
    assert train(*asked, name="whole").status()["state"] == "finished"
    assert epochs(train("trainer.max_epochs=9", PATIENCE.format(4), name="whole")) == [0, 1, 2, 3, 4]


def test_time_and_early_stopping_do_not_cancel_each_other(train: Run) -> None:
    folder = train("trainer.max_epochs=9", "trainer.max_time='1:00:00'", PATIENCE.format(1))
    assert epochs(folder) == [0, 1]


def test_epochs_without_validation_have_no_validation_values(train: Run) -> None:
    folder = train("trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2")
    rows = read_metrics(folder.metrics)
    assert [bool(row["val/loss"]) for row in rows] == [False, True, False, True]
    assert [bool(row["val/patch_dice"]) for row in rows] == [False, True, False, True]
    assert rows[1]["val/loss"] != rows[3]["val/loss"]


def test_several_devices_choose_their_strategy(make_settings: Make, prepared: PreparedDataset, tmp_path: Path) -> None:
    kinds = {}
    for devices in ("1", "2"):
        trainer = build_trainer(make_settings(f"trainer.devices={devices}"), prepared, RunFolder(tmp_path), [])
        kinds[devices] = type(trainer.strategy).__name__
    assert kinds["1"] == "SingleDeviceStrategy"
    assert kinds["2"] == "DDPStrategy"
