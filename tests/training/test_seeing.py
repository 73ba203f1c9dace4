"""What a run shows: the parts of a step with the one setting to change, and the curves."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes

from umamba.patches import PatchDataModule
from umamba.records import RunFolder
from umamba.training import step_times
from umamba.training.curves import draw_curves
from umamba.training.module import SegmentationModule
from umamba.training.step_times import PARTS, StepTimes

Fit = Callable[..., RunFolder]


def test_the_parts_of_a_step_are_reported_once(
    small_fit: Fit, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(step_times.time, "perf_counter", lambda: clock[0])

    def slow(method: Any, seconds: float) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            clock[0] += seconds
            return method(*arguments, **options)

        return run

    monkeypatch.setattr(SegmentationModule, "forward", slow(SegmentationModule.forward, 3.0))
    monkeypatch.setattr(SegmentationModule, "backward", slow(SegmentationModule.backward, 4.0))
    clip = SegmentationModule.configure_gradient_clipping
    monkeypatch.setattr(SegmentationModule, "configure_gradient_clipping", slow(clip, 1.0))
    transfer = PatchDataModule.transfer_batch_to_device
    monkeypatch.setattr(PatchDataModule, "transfer_batch_to_device", slow(transfer, 2.0))
    small_fit("trainer.max_epochs=2")
    (line,) = [line for line in messages.messages if line.startswith("Step ")]
    # Nothing else takes time by this clock. A delay around the transfer counts as waiting for data.
    assert line.startswith("Step 10.000 s: data wait 20%, transfer 0%, forward 30%, backward 40%, optimiser 10%.")
    assert "The network waits for data" in line


def report(waits: float, workers: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the report of steps with this share of waiting, on eight CPUs."""
    monkeypatch.setattr(step_times, "available_cpus", lambda: 8)

    class Module:
        num_workers = workers
        automatic = False

    times = StepTimes(Module())  # type: ignore[arg-type]
    times.seconds = dict(zip(PARTS, (waits, 0.0, (1 - waits) / 2, (1 - waits) / 2, 0.0), strict=True))
    times.steps = 1
    return times.report()


def test_one_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        report(0.05, 1, monkeypatch)
        == "Step 1.000 s: data wait 5%, transfer 0%, forward 48%, backward 48%, optimiser 0%."
    )
    assert "set data.num_workers=7 (now 1)" in report(0.5, 1, monkeypatch)
    assert "set augmentation.device=gpu" in report(0.5, 7, monkeypatch)


def test_the_wait_decides_where_patches_are_augmented(caplog: pytest.LogCaptureFixture) -> None:
    """augmentation.device=auto gets the share of waiting, the mean of all ranks, once, after the first epoch."""
    asked: list[tuple[float, int]] = []

    class Module:
        undecided = True

        def choose_device(self, waiting: float, epoch: int) -> str:
            asked.append((waiting, epoch))
            self.undecided = False
            return "chosen"

    times = StepTimes(Module())  # type: ignore[arg-type]
    times.seconds = dict(zip(PARTS, (2.0, 0.0, 3.0, 4.0, 1.0), strict=True))
    times.steps = 5
    reduced = SimpleNamespace(reduce=lambda share, reduce_op: {"mean": share + 0.1}[reduce_op])
    trainer: Any = SimpleNamespace(strategy=reduced, current_epoch=0, is_global_zero=True)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    with caplog.at_level("INFO", "umamba"):
        for _ in range(2):
            times.choose_device(trainer, module)
    assert asked == [(pytest.approx(0.3), 0)]
    assert caplog.messages == ["chosen"]


def test_curves_show_every_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[list[int], list[float]]] = {}

    def plot(self: Axes, x: Any, y: Any, *style: Any, label: str, **options: Any) -> None:
        drawn[label] = (list(x), list(y))

    rows = [
        {"epoch": "0", "train/loss": "1", "val/loss": "2", "val/patch_dice": "0.5", "val/ema_patch_dice": "0.5",
         "lr": "0.01", "time/iteration_s": "3", "val/case_dice": ""},
        {"epoch": "1", "train/loss": "0", "val/loss": "1", "val/patch_dice": "0.7", "val/ema_patch_dice": "0.52",
         "lr": "0.005", "time/iteration_s": "2", "val/case_dice": "0.6"},
    ]  # fmt: skip
    draw_curves(rows, tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(Axes, "plot", plot)
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)
    draw_curves(rows, tmp_path / "again.png")
    assert drawn["training loss"] == ([1, 2], [1.0, 0.0])
    assert drawn["Dice of whole validation cases"] == ([2], [0.6])
    assert set(drawn) == {
        *("training loss", "loss, validation", "patch Dice", "patch Dice, smoothed", "seconds per iteration"),
        *("Dice of whole validation cases", "learning rate"),
    }
