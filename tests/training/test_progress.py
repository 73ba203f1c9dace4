"""Progress: the time left by hand, lines of at most 80 characters, and a first line after the first step."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from umamba.records import RunFolder
from umamba.training import panels, progress
from umamba.training.progress import EpochLines
from umamba.training.time_left import TimeLeft

Fit = Callable[..., RunFolder]


def test_the_time_left_counts_validation_and_prediction() -> None:
    estimate = TimeLeft(epochs=10, steps=100, val_steps=20, steps_after=50, recent_epochs=1)
    estimate.step_s.extend([0.6, 0.6])
    # 20 + 7 * 100 steps, 8 validations of 20 steps and the prediction's 50 steps at a third of a training step.
    assert estimate.left(epoch=2, step=80) == pytest.approx(720 * 0.6 + 8 * 20 * 0.2 + 50 * 0.2)
    estimate.val_step_s.append(0.1)
    estimate.rest_s.append(5.0)
    assert estimate.left(epoch=2, step=80) == pytest.approx(720 * 0.6 + 8 * 5.0 + 50 * 0.1)
    assert estimate.left(epoch=10, step=0) == pytest.approx(5.0), "only the prediction is left"
    assert estimate.left(epoch=2, step=80, used_s=90.0, limit_s=100.0) == pytest.approx(10.0 + 5.0)


def test_the_time_left_follows_the_recent_speed() -> None:
    estimate = TimeLeft(epochs=2, steps=1000, val_steps=0, steps_after=0, recent_epochs=1)
    estimate.step_s.extend([0.1] * 500)
    assert estimate.left(0, 500) == pytest.approx(150)
    estimate.step_s.extend([0.5] * 50)  # five times slower
    assert estimate.left(0, 550) == pytest.approx(725)


def lines(
    monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture, seconds: float, **given: Any
) -> list[str]:
    """Return the lines of an epoch of five steps that take some seconds each, without a terminal."""
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    callback = EpochLines()
    trainer: Any = SimpleNamespace(
        **{"max_epochs": 1000, "num_training_batches": 5, "num_val_batches": [2], "is_global_zero": True},
        **{"current_epoch": 998, "callbacks": [], "callback_metrics": {}, "accumulate_grad_batches": 1, **given},
    )
    module: Any = SimpleNamespace(log=lambda *_, **__: None)
    callback.on_train_start(trainer, module)
    callback.on_train_epoch_start(trainer, module)
    for index in range(5):
        clock[0] += seconds
        callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(-0.5)}, None, index)
    trainer.callback_metrics = {
        **{"train/loss": -0.51234, "val/loss": -0.41234, "val/patch_dice": 0.61234, "time/iteration_s": seconds}
    }
    callback.on_train_end(trainer, module)
    callback.on_train_epoch_end(trainer, module)
    return messages.messages


def test_a_log_file_gets_a_line_after_the_first_step_and_then_every_minute(
    monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    said = lines(monkeypatch, messages, 25.0)
    assert said[0] == "epoch 999/1000: step 1/5, loss -0.500"
    assert [line.split(",")[0] for line in said[1:-1]] == ["epoch 999/1000: step 4/5"]
    # 1 step of this epoch, 5 of the next one, and 2 validations of 2 steps of a third of 25 s
    assert said[1].endswith("25 s/it, 0:03:03 left")
    assert said[-1].startswith("epoch 999/1000: loss -0.51, val -0.41, patch Dice 0.612, 25 s/it, ")
    assert max(len(line) for line in said) <= 80


def test_the_loss_of_a_step_over_several_batches_is_not_divided(
    monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    said = lines(monkeypatch, messages, 0.1, accumulate_grad_batches=4)  # Lightning gives a fourth of a batch's loss
    assert said[0] == "epoch 999/1000: step 1/5, loss -2.000"


def test_an_epoch_without_validation_has_no_validation_loss(messages: pytest.LogCaptureFixture) -> None:
    callback = EpochLines()
    callback.time_left = TimeLeft(epochs=2, steps=1, val_steps=0, steps_after=0, recent_epochs=1)
    values = {"train/loss": torch.tensor(-0.5), "time/iteration_s": torch.tensor(2.0)}
    trainer: Any = SimpleNamespace(
        **{"max_epochs": 2, "is_global_zero": True, "current_epoch": 0, "callbacks": [], "callback_metrics": values}
    )
    module: Any = SimpleNamespace()
    callback.on_train_epoch_end(trainer, module)
    assert messages.messages[-1].startswith("epoch 1/2: loss -0.50, 2 s/it, ")


def test_fast_steps_do_not_fill_a_log_file(monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture) -> None:
    assert len(lines(monkeypatch, messages, 0.1)) == 2


def test_a_real_run_counts_its_epochs_in_one_way(small_fit: Fit, messages: pytest.LogCaptureFixture) -> None:
    small_fit("trainer.max_epochs=2")
    counted = [line.split(":")[0] for line in messages.messages if line.startswith("epoch ")]
    assert counted == ["epoch 1/2", "epoch 1/2", "epoch 2/2"]


def test_drawing_a_picture_is_no_part_of_a_validation_step(small_fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    counted: list[float] = []
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    draw, end = panels.overlay_figure, EpochLines.on_validation_batch_end

    def slow(*arguments: Any, **options: Any) -> Any:
        clock[0] += 100.0
        return draw(*arguments, **options)

    def count(self: EpochLines, *arguments: Any) -> None:
        end(self, *arguments)
        counted.extend([] if self.time_left is None else self.time_left.val_step_s)

    monkeypatch.setattr(panels, "overlay_figure", slow)
    monkeypatch.setattr(EpochLines, "on_validation_batch_end", count)
    small_fit("trainer.max_epochs=1", "logger.panels_every=1")
    assert clock[0] >= 100.0
    assert counted
    assert max(counted) < 100.0
