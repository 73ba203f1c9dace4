"""A run survives damaged checkpoints, a full disk, a lost logger, non-finite steps, dead workers and signals."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data._utils import signal_handling

from umamba.io import UserError
from umamba.preprocessing import CaseStore
from umamba.records import RunFolder
from umamba.records.tables import read_metrics
from umamba.runs import PreparedDataset
from umamba.settings import InvalidSettings, TrainerSettings
from umamba.training.checkpoints import AtomicCheckpointIO, newest_readable
from umamba.training.curves import complete_curves
from umamba.training.losses import DeepSupervisionLoss
from umamba.training.module import SegmentationModule
from umamba.training.nonfinite import IN_A_ROW, watched
from umamba.training.stopping import SIGNALS, LeaveOnSignal
from umamba.training.workers import memory_report

SizeLimit = Callable[[int], AbstractContextManager[None]]

Fit = Callable[..., RunFolder]


def save(folder: RunFolder, epoch: int) -> None:
    """Save a checkpoint as the trainer would."""
    record = {"scores": {"ema_patch_dice": None}}
    content = {"epoch": epoch, "state_dict": {"w": torch.arange(999.0)}, "umamba": record}
    AtomicCheckpointIO().save_checkpoint(content, folder.last)


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    """Return the weights of a run's last checkpoint."""
    return dict(torch.load(folder.last, weights_only=True)["state_dict"])


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Check that weights are bit-identical."""
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def column(folder: RunFolder, name: str) -> list[float]:
    """Return a column of metrics.csv."""
    return [float(row[name]) for row in read_metrics(folder.metrics)]


@pytest.mark.parametrize("length", [0, 1000, -1])
def test_a_cut_off_checkpoint_gives_way_to_the_one_before(tmp_path: Path, length: int) -> None:
    folder = RunFolder(tmp_path)
    assert newest_readable(folder) is None
    for epoch in (4, 5, 6):
        save(folder, epoch)
    assert newest_readable(folder) == (folder.last, 7)
    whole = folder.last.read_bytes()
    folder.last.write_bytes(whole[:length])
    assert newest_readable(folder) == (folder.previous, 6)
    save(folder, 6)
    assert newest_readable(folder) == (folder.last, 7)
    folder.last.unlink()
    assert newest_readable(folder) == (folder.previous, 6), "the damaged file did not become previous.ckpt"


@pytest.mark.parametrize(
    "content",
    [{"epoch": 6}, {"epoch": "x"}, [1], {"epoch": 6, "state_dict": {}}, {"epoch": 6, "umamba": {"scores": 3}}],
)
def test_an_edited_checkpoint_gives_way_to_the_one_before(tmp_path: Path, content: object) -> None:
    folder = RunFolder(tmp_path)
    for epoch in (5, 6):
        save(folder, epoch)
    torch.save(content, folder.last)
    assert newest_readable(folder) == (folder.previous, 6)


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in (0, 1):
        save(folder, epoch)
    for path in folder.checkpoints.glob("*.ckpt"):
        path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="restart=true"):
        newest_readable(folder)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, file_size_limit: SizeLimit) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 1)
    with file_size_limit(2000), pytest.raises(UserError, match=r"last\.ckpt cannot be written.*GB are free"):
        save(folder, 2)
    assert newest_readable(folder) == (folder.last, 2)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["last.ckpt"]


def test_a_disk_that_fills_costs_the_epoch_that_was_not_saved(
    small_fit: Fit, tmp_path: Path, file_size_limit: SizeLimit
) -> None:
    whole = small_fit(name="whole")
    broken = RunFolder(tmp_path / "broken")
    small_fit("trainer.max_epochs=2", "trainer.limit_train_batches=3", name="broken")
    broken.last.unlink()  # as if epoch 2 had not been saved
    with file_size_limit(20_000), pytest.raises(UserError, match="cannot be written"):
        small_fit(name="broken")
    assert_equal(weights(small_fit(name="broken")), weights(whole))


def test_rows_and_curves_that_a_full_disk_did_not_take_are_written_by_the_next_run(
    small_fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, rows: Any) -> None:
        raise OSError(28, "No space left on device")

    whole, broken = small_fit(name="whole"), RunFolder(tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr("umamba.training.metrics_csv.write_metrics", full)
        patch.setattr("umamba.training.curves.draw_curves", full)
        small_fit(name="broken")
    assert not broken.metrics.exists()
    assert not broken.curves.exists()
    small_fit(name="broken")  # no epoch is left
    assert column(broken, "train/loss") == column(whole, "train/loss")
    complete_curves(broken.metrics, broken.curves)
    drawn = broken.curves.stat().st_mtime_ns
    complete_curves(broken.metrics, broken.curves)
    assert broken.curves.stat().st_mtime_ns == drawn


def spoil(monkeypatch: pytest.MonkeyPatch, when: Callable[[SegmentationModule, int], bool]) -> None:
    """Make those training steps return NaN for which `when` is true."""
    original = SegmentationModule.training_step

    def step(self: SegmentationModule, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
        loss = original(self, batch, batch_index)
        return loss * torch.nan if when(self, batch_index) else loss

    monkeypatch.setattr(SegmentationModule, "training_step", step)


@pytest.fixture(params=[False, True], ids=["read at once", "read later"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether the optimiser is fused, as on CUDA, where the device itself skips a step and is read later."""
    if request.param:
        monkeypatch.setattr(SegmentationModule, "fused", True)
    return bool(request.param)


@pytest.mark.usefixtures("fused")
def test_a_non_finite_step_changes_nothing_and_is_counted(
    small_fit: Fit, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    short = small_fit("trainer.limit_train_batches=2", "trainer.max_epochs=1", name="short")
    spoil(monkeypatch, lambda module, index: index == 2)
    spoiled = small_fit("trainer.max_epochs=1", name="spoiled")
    assert column(spoiled, "train/skipped_steps") == [1]
    assert column(short, "train/skipped_steps") == [0]
    assert "1 steps skipped" in messages.text
    (path,) = spoiled.nonfinite.glob("*.pt")
    kept = torch.load(path, weights_only=True)
    assert (kept["epoch"], kept["batch_index"], kept["seed"]) == (0, 2, 0)
    assert kept["batch"]["image"].shape == (2, 1, 8, 16, 16)
    assert kept["first_nonfinite"]
    assert all(torch.isfinite(tensor).all() for tensor in weights(spoiled).values())
    # Patches do not depend on the length of the epoch, so that the two steps equal those of the shorter run.
    assert_equal(weights(spoiled), weights(short))


def test_of_several_batches_in_a_step_another_one_may_be_the_cause(
    small_fit: Fit, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, lambda module, index: index == 0)
    options = ("trainer.limit_train_batches=2", "trainer.max_epochs=1", "trainer.accumulate_grad_batches=2")
    (path,) = small_fit(*options).nonfinite.glob("*.pt")
    kept = torch.load(path, weights_only=True)
    assert (kept["batch_index"], kept["batches_of_step"]) == (1, 2)
    assert "the last of up to 2 batches of its step; another of them may be the cause" in messages.text


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_skipped_first_step_leaves_no_trace_in_the_optimizer(
    small_fit: Fit, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setattr(SegmentationModule, "fused", True)
    spoil(monkeypatch, lambda module, index: index == 0)
    own = (f"recipe.optimizer.name={optimizer}", "trainer.max_epochs=1")
    folder = small_fit("trainer.limit_train_batches=3", *own, name="first")
    state = torch.load(folder.last, weights_only=True)["optimizer_states"][0]["state"]
    finite = [value.isfinite().all() for slots in state.values() for value in slots.values()]
    assert finite
    assert all(finite)
    largest = max(float(value.abs().max()) for slots in state.values() for value in slots.values())
    assert largest < 100, "memory without values was used"
    if optimizer == "adamw":
        assert {float(slots["step"]) for slots in state.values()} == {2.0}


def test_a_fused_optimizer_skips_the_same_steps_as_a_plain_one(small_fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for fused in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(SegmentationModule, "fused", fused)
            spoil(patch, lambda module, index: index in (0, 2))
            results.append(small_fit("trainer.max_epochs=2", "trainer.limit_train_batches=4", name=str(fused)))
    first, second = (weights(folder) for folder in results)
    assert column(results[0], "train/skipped_steps") == column(results[1], "train/skipped_steps") == [2, 2]
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert apart < 1e-6
    names = [[path.name for path in sorted(folder.nonfinite.glob("*.pt"))] for folder in results]
    assert names[0] == names[1] == [f"epoch_000{e}_batch_000{b}.pt" for e in (1, 2) for b in (0, 2)]


def test_the_layer_is_found_when_the_gradients_are_gone(small_fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    original = DeepSupervisionLoss.forward

    def huge(self: DeepSupervisionLoss, *arguments: Any) -> torch.Tensor:
        return original(self, *arguments) * 1e38 * (1.0 if self.training else 0.0)

    monkeypatch.setattr(DeepSupervisionLoss, "forward", huge)
    found = []
    for fused in (False, True):
        monkeypatch.setattr(SegmentationModule, "fused", fused)
        folder = small_fit("trainer.max_epochs=1", "trainer.limit_train_batches=2", name=str(fused))
        paths = sorted(folder.nonfinite.glob("*.pt"))
        found.append([torch.load(path, weights_only=True)["first_nonfinite"] for path in paths])
    assert found[0] == found[1]
    assert found[0]


def test_several_in_a_row_go_back_and_on_in_float32(
    small_fit: Fit, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    long = f"trainer.limit_train_batches={IN_A_ROW + 2}"
    reference = small_fit(long, "trainer.max_epochs=1", "trainer.precision=bf16-mixed")
    start = torch.load(reference.last, weights_only=True)
    precisions = []

    def when(module: SegmentationModule, index: int) -> bool:
        precisions.append(module.trainer.precision)
        return module.trainer.precision == "bf16-mixed"

    spoil(monkeypatch, when)
    folder = small_fit(long, "trainer.precision=bf16-mixed")
    seen = IN_A_ROW + fused  # one batch more is computed before the last one's result is read
    assert precisions == ["bf16-mixed"] * seen + ["32-true"] * (IN_A_ROW + 2)
    assert folder.status()["precision"] == "32-true"
    last = torch.load(folder.last, weights_only=True)
    assert last["epoch"] == 1
    assert last["global_step"] == start["global_step"] * 2, "the first epoch was not repeated"
    assert small_fit(long, "trainer.precision=bf16-mixed", "trainer.max_epochs=3")
    assert precisions[-1] == "32-true", "a continued run stays in float32"


def test_divergence_in_float32_ends_the_run(small_fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda module, index: True)
    with pytest.raises(UserError, match=r"diverges.*epoch 1.*recipe\.optimizer\.lr"):
        small_fit(f"trainer.limit_train_batches={IN_A_ROW}")


def test_the_first_layer_is_found() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.ReLU())
    with torch.no_grad():
        network.get_parameter("1.bias")[0] = torch.inf
    found: list[str] = []
    with watched(network, found):
        network(torch.zeros(1, 2))
    assert found == ["1", "2"]
    network(torch.zeros(1, 2))
    assert found == ["1", "2"], "the hooks are gone"


class DeadlyStore:
    """A store with a case that kills the process that reads it, or that cannot be read."""

    def __init__(self, store: CaseStore, case_id: str, error: Exception | None = None) -> None:
        self.store, self.deadly, self.error = store, case_id, error
        self.case_ids, self.parent = store.case_ids, os.getpid()
        self.letters = store.letters

    def load(self, case_id: str) -> Any:
        if case_id == self.deadly and os.getpid() != self.parent:
            if self.error:
                raise self.error
            os.kill(os.getpid(), signal.SIGKILL)
        return self.store.load(case_id)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("signalled", [True, False], ids=["reported by the signal", "found dead"])
def test_a_killed_worker_is_explained(
    small_fit: Fit,
    prepared: PreparedDataset,
    signalled: bool,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if not signalled:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request.addfinalizer(lambda: signal.signal(signal.SIGCHLD, before))
        monkeypatch.setattr(signal_handling, "_set_SIGCHLD_handler", lambda: None)
    deadly = prepared.store.case_ids[1]
    store: Any = DeadlyStore(prepared.store, deadly)
    cases = replace(prepared, store=store)
    with pytest.raises(UserError) as caught:
        small_fit("data.num_workers=1", "trainer.limit_train_batches=20", "fold=all", cases=cases)
    said = str(caught.value)
    assert f"patch of case {deadly}" in said
    assert "signal Killed" in said
    for part in ("GB free", "/dev/shm", "data.num_workers", "same command continues"):
        assert part in said


@pytest.mark.filterwarnings("ignore")
def test_a_mistake_in_a_worker_is_shown_as_it_is(small_fit: Fit, prepared: PreparedDataset) -> None:
    store: Any = DeadlyStore(
        prepared.store, prepared.store.case_ids[1], UserError("case x: damaged. Prepare it again.")
    )
    with pytest.raises(UserError, match=r"^case x: damaged\. Prepare it again\.$"):
        small_fit(
            "data.num_workers=1", "trainer.limit_train_batches=20", "fold=all", cases=replace(prepared, store=store)
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_end_a_run_with_a_message(
    small_fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, number: int
) -> None:
    def when(module: SegmentationModule, index: int) -> bool:
        if (module.current_epoch, index) == (1, 1):
            os.kill(os.getpid(), number)
        return False

    before = [signal.getsignal(other) for other in SIGNALS]
    with monkeypatch.context() as patch:
        spoil(patch, when)
        with LeaveOnSignal(tmp_path).installed(), pytest.raises(SystemExit) as caught:
            small_fit(name="stopped")
    assert caught.value.code == 128 + number
    said = capsys.readouterr().err
    assert f"{signal.Signals(number).name}: leaving. The same command continues" in said
    assert str(tmp_path) in said
    assert [signal.getsignal(other) for other in SIGNALS] == before
    assert_equal(weights(small_fit(name="stopped")), weights(small_fit(name="whole")))


def test_training_ends_with_its_time(small_fit: Fit) -> None:
    folder = small_fit("trainer.max_epochs=50", "trainer.max_time='0:00:00'")
    assert len(column(folder, "epoch")) == 1
    folder = small_fit("trainer.max_epochs=3", "trainer.max_time='0:10:00'")
    assert column(folder, "epoch") == [0, 1, 2]


@pytest.mark.parametrize(("text", "seconds"), [(None, None), ("1:00:30", 3630), ("01:00:00:00", 86400)])
def test_times_are_read(text: str | None, seconds: float | None) -> None:
    assert TrainerSettings(max_time=text).max_seconds == seconds


@pytest.mark.parametrize("text", ["00:90", 5, "1:00:75"])
def test_wrong_times_are_refused(text: Any) -> None:
    with pytest.raises(InvalidSettings, match=rf"trainer\.max_time={text}: must be \[DD:\]HH:MM:SS"):
        TrainerSettings(max_time=text)


def test_more_time_continues_a_run_that_ended_with_its_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.set_status(state="finished", max_epochs=10, max_seconds=60.0)
    assert folder.is_finished(10, 60.0)
    assert folder.is_finished(5, 30.0)
    assert not folder.is_finished(10, 90.0)
    assert not folder.is_finished(10, None)
    assert not folder.is_finished(11, 60.0)


_GROUP = """
import os, signal, sys, time
from pathlib import Path
import torch
from umamba.training.stopping import LeaveOnSignal

class Noise(torch.utils.data.Dataset):
    def __len__(self): return 10**6
    def __getitem__(self, index): return torch.randn(64, 64) @ torch.randn(64, 64)

with LeaveOnSignal(Path("run")).installed():
    batches = iter(torch.utils.data.DataLoader(Noise(), batch_size=8, num_workers=2))
    try:
        for count, _ in enumerate(batches):
            if count == 5:
                print("begun", flush=True)
    except BaseException:  # as Lightning does: tear down, then raise again
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            pass
        raise
"""


def test_a_signal_to_workers_too_is_no_error_of_theirs() -> None:
    """`timeout`, `systemctl stop` and SLURM signal all processes of a run at once."""
    process = subprocess.Popen(
        [sys.executable, "-c", _GROUP],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said[-2000:]
    assert "RuntimeError" not in said


def test_the_memory_of_a_job_is_named_where_it_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umamba.training.workers.memory_bytes", lambda: 10**9)
    assert "limit of this job 1.0 GB" in memory_report()
    monkeypatch.setattr("umamba.training.workers.memory_bytes", lambda: 2**62)  # as an unlimited control group says
    assert "limit" not in memory_report()
