"""Loggers of a run: what they send, and that no failure of theirs ends a training."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas
import pytest
import wandb
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.image import imsave
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from umamba.io import UserError
from umamba.records import RunFolder
from umamba.settings import LoggerSettings
from umamba.training.loggers import (
    EnduringLogger,
    build_loggers,
    check_loggers,
    close_loggers,
    log_pictures,
    log_scores,
    upload_model,
)
from umamba.training.notice import send_notice

Fit = Callable[..., RunFolder]
SCORES = pandas.DataFrame(
    {"case": ["a", "a", "b", "b"], "label": ["x", "y", "x", "y"], "dsc": [0.8, 0.6, 1.0, np.nan], "nsd": 1.0}
)
OFF = LoggerSettings(wandb=False)


class Broken(Logger):
    """A logger whose every method fails, as on a full disk."""

    name = version = None

    def log_metrics(self, *_: Any, **__: Any) -> None:
        """Fail."""
        raise BrokenPipeError("the service is gone")

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Fail."""
        raise OSError("No space left on device")


def test_a_lost_logger_ends_the_logging_only(messages: pytest.LogCaptureFixture) -> None:
    logger = EnduringLogger(Broken(), "W&B")
    logger.log_metrics({"loss": 1.0}, 1)
    logger.log_hyperparams({})
    logger.save()
    logger.finalize("success")
    assert logger.experiment.anything("is accepted") is None
    log_scores([logger], "test", SCORES, ["dsc"])
    (said,) = [message for message in messages.messages if "logging has ended" in message]
    assert said.startswith("W&B: logging has ended (BrokenPipeError: the service is gone)")


def test_a_run_is_trained_though_every_logger_fails(
    small_fit: Fit, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    broken: list[Logger] = [EnduringLogger(Broken(), "some service")]
    monkeypatch.setattr("umamba.runs.trainer.build_loggers", lambda *_: broken)
    assert small_fit("trainer.max_epochs=1").last.exists()
    assert messages.text.count("some service: logging has ended") == 1


def test_without_a_network_wandb_logs_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    """The login succeeds, because a key is stored, but the online run cannot be started."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    init, modes = wandb.init, []

    def start(**options: Any) -> Any:
        modes.append(options["mode"])
        if options["mode"] == "online":
            assert options["settings"].init_timeout <= 30
            raise wandb.errors.CommError("Run initialization has timed out")
        return init(**options)

    monkeypatch.setattr(wandb, "init", start)
    folder = RunFolder(tmp_path / "experiment" / "2d" / "fold_1" / "seed_0")
    (logger,) = build_loggers(folder, LoggerSettings(), ("data", "unet"), {"fold": 1})
    assert modes == ["online", "offline"]
    assert "W&B cannot be reached (Run initialization has timed out). Logging offline" in messages.text
    run = logger.experiment  # type: ignore[attr-defined]
    assert (run.group, run.job_type, run.tags) == ("experiment/2d", "train", ("data", "unet"))
    assert run.config["fold"] == 1
    log_scores([logger], "test", SCORES, ["dsc"])
    assert run.summary["test/dsc"] == pytest.approx((0.7 + 1.0) / 2)
    assert run.summary["test/x/dsc"] == pytest.approx(0.9)
    close_loggers([logger])
    assert wandb.run is None
    assert list((folder.path / "wandb").glob("offline-run-*/run-*.wandb"))


def test_tensorboard_gets_curves_scores_and_pictures(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    loggers = build_loggers(folder, LoggerSettings(wandb=False, tensorboard=True), (), {"seed": 3})
    loggers[0].log_metrics({"train/loss": 0.5}, 7)
    picture = tmp_path / "best_a.png"
    imsave(picture, np.zeros((6, 5, 3), dtype=np.uint8))
    log_pictures(loggers, "test", {"best": picture}, {"best": "a, mean DSC 0.9"})
    log_scores(loggers, "test", SCORES, ["dsc", "nsd"])
    loggers[0].finalize("success")
    close_loggers(loggers)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(7, 0.5)]
    assert events.Scalars("test/y/dsc")[0].value == pytest.approx(0.6)
    (table,) = events.Tensors("test/cases/text_summary")
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| case | label | dsc | nsd |"
    assert lines[3] == "| a | y | 0.6 | 1.0 |"
    image = events.Images("test/best")[0]
    assert (image.height, image.width) == (6, 5)


def test_a_continued_run_keeps_its_identifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = RunFolder(tmp_path)
    for _ in range(2):
        close_loggers(build_loggers(folder, LoggerSettings(), (), {}))
        first = folder.status()["wandb_id"]
    assert folder.status()["wandb_id"] == first


def test_the_model_is_sent_as_an_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    folder.set_status(wandb_id="ab12")
    folder.checkpoints.mkdir()
    folder.last.write_bytes(b"weights")
    sent = []

    class Run:
        def log_artifact(self, artifact: Any) -> None:
            sent.append((artifact.name, artifact.type, list(artifact.manifest.entries)))

    monkeypatch.setattr(WandbLogger, "experiment", Run())
    logger = EnduringLogger(WandbLogger(offline=True), "W&B")
    upload_model([logger, EnduringLogger(TensorBoardLogger(tmp_path), "TensorBoard")], folder)
    assert sent == [("model-ab12", "model", ["last.ckpt"])]
    folder.last.unlink()
    upload_model([logger], folder)
    assert "W&B: logging has ended" in messages.text


def test_a_missing_package_is_named() -> None:
    check_loggers(LoggerSettings())
    if find_spec("mlflow") is None:
        with pytest.raises(UserError, match=r"logger\.mlflow=true: the package mlflow is not installed. Run `pip"):
            check_loggers(LoggerSettings(mlflow=True))


class Remembering(Logger):
    """A logger of the user's own package."""

    name = version = None
    seen: ClassVar[list[Any]] = []

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Remember the names."""
        self.seen.extend(f"{self.prefix}{name}" for name in metrics)

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Remember the seed."""
        self.seen.append(params["seed"])


def test_a_logger_of_the_users_own_and_one_of_lightnings(tmp_path: Path) -> None:
    own = {"name": f"{__name__}:Remembering", "prefix": "my/"}
    settings = LoggerSettings(wandb=False, further=(own, {"name": "CSVLogger", "save_dir": str(tmp_path / "logs")}))
    check_loggers(settings)
    loggers = build_loggers(RunFolder(tmp_path), settings, (), {"seed": 3})
    log_scores(loggers, "test", SCORES, ["dsc"])
    assert Remembering.seen[:2] == [3, "my/test/dsc"]
    wrong = {"NoLogger": "no attribute", "CSVLogger": "refuses its arguments"}
    wrong[f"{__name__}:Fit"] = "is no class that inherits"
    for name, said in wrong.items():
        with pytest.raises(UserError, match=rf"logger\.further\[0\].*{said}"):
            check_loggers(LoggerSettings(wandb=False, further=({"name": name},)))


def test_the_users_command_gets_the_notice(tmp_path: Path, messages: pytest.LogCaptureFixture) -> None:
    script = tmp_path / "tell me.sh"
    script.write_text(f'#!/bin/sh\nprintf "%s|%s|%s" "$UMAMBA_STATE" "$UMAMBA_RUN" "$2" > "{tmp_path}/said"\n')
    script.chmod(0o755)
    folder = tmp_path / "a" / "2d" / "fold_0" / "seed_0"
    send_notice(LoggerSettings(wandb=False, notify=f"'{script}' first"), "finished", folder, "Test images: DSC 0.9")
    assert (tmp_path / "said").read_text() == f"finished|{folder}|a/2d/fold_0/seed_0: finished. Test images: DSC 0.9"
    assert not messages.messages
    send_notice(LoggerSettings(wandb=False, notify="false"), "failed", folder, "")
    send_notice(LoggerSettings(wandb=False, notify="/no/such"), "failed", folder, "")
    assert ["exit code 1" in messages.messages[0], "could not be run" in messages.messages[1]] == [True, True]
