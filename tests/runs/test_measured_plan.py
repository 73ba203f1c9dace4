"""planner.measure=true: the choice is pinned, kept and used again; and a real step's memory is measured."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from umamba.cli.planned_runs import planned_runs
from umamba.io import UserError
from umamba.planning.measured import Trial
from umamba.records import CheckpointRecord
from umamba.records.identity import identity_differences, learnt_settings
from umamba.runs import PreparedDataset, measured_plan
from umamba.runs.identity import checkpoint_record
from umamba.runs.measured_plan import kept_copies, with_measured_plan
from umamba.settings import TrainSettings
from umamba.sweeps import read_study
from umamba.training.measured_step import peak_here, step_peak

Make = Callable[..., TrainSettings]
FREE = [
    *("plan.patch_size=null", "plan.batch_size=null", "plan.features_per_stage=null", "plan.strides=null"),
    *("plan.kernel_sizes=null", "plan.encoder_blocks=null", "plan.decoder_blocks=null", "planner.measure=true"),
]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Replace the measurement by 200 bytes a voxel and half a GB; return the trials that are asked for."""
    asked: list[Trial] = []

    def fake(record: CheckpointRecord, checkpointing: bool, copies: int, device: str, precision: str) -> float:
        one = record.configuration
        asked.append(Trial(one.patch_size, one.batch_size, 1, checkpointing))
        return 5e8 + 200.0 * asked[-1].voxels / (3 if checkpointing else 1)

    monkeypatch.setattr(measured_plan, "step_peak", fake)
    return asked


def test_the_choice_is_pinned_and_kept(
    make_settings: Make, prepared: PreparedDataset, steps: list[Trial], messages: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(*FREE, "planner.gpu_memory_gb=0.6")
    found = with_measured_plan(settings)
    patch, batch = found.plan.patch_size, found.plan.batch_size
    assert patch is not None
    assert batch is not None
    chosen = Trial(patch, batch, 1, found.trainer.activation_checkpointing)
    assert chosen in steps
    assert 5e8 + 200 * chosen.voxels / (3 if chosen.checkpointing else 1) <= 0.6e9
    assert not found.planner.measure
    assert "Measured plan: patch" in messages.text
    count = len(steps)
    assert with_measured_plan(settings) == found
    assert len(steps) == count, "the choice is kept"
    with_measured_plan(make_settings(*FREE, "planner.gpu_memory_gb=0.7"))
    assert len(steps) > count, "another budget is measured"
    count = len(steps)
    for kept in Path(settings.paths.preprocessed, prepared.dataset.name).glob("measured_*.json"):
        kept.write_text("{}")
    assert with_measured_plan(settings) == found
    assert len(steps) > count, "a damaged file is measured again"


def test_what_was_measured_is_used_on_a_disk_that_cannot_be_written(
    make_settings: Make, prepared: PreparedDataset, steps: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(*FREE, "planner.gpu_memory_gb=0.65")
    found = with_measured_plan(settings)

    def locked(path: Path, *_: object) -> None:
        raise AssertionError(f"{path} is locked, which a read-only disk refuses")

    monkeypatch.setattr(measured_plan, "exclusive", locked)
    assert with_measured_plan(settings) == found


def test_a_study_does_not_know_how_a_measured_batch_is_split(
    make_settings: Make, prepared: PreparedDataset, steps: list[Trial], tmp_path: Path
) -> None:
    """A run over several batches a step is the planned one, although the plan says one batch."""
    given = make_settings(*FREE, "planner.gpu_memory_gb=0.6")
    measured = with_measured_plan(given)
    split = replace(measured, trainer=replace(measured.trainer, accumulate_grad_batches=2))
    line = shlex.join([f"dataset.root={given.dataset.root}", "dataset=nnunet", "planner.measure=true", "name=m"])
    (tmp_path / "mine").mkdir()
    sweep = f"question: Q?\nruns: ['{line}']\nfolds: [0]\nseeds: [0]\n"
    (tmp_path / "mine" / "sweep.yaml").write_text(sweep)
    (run,) = planned_runs(read_study(tmp_path, "mine"))
    learnt = {name: learnt_settings(split)[name] for name in ("trainer", "fold", "seed")}
    assert identity_differences(learnt, run.learnt) == []
    assert identity_differences({**learnt, "seed": 1}, run.learnt)


def test_averages_and_several_devices_keep_copies_of_the_weights(make_settings: Make) -> None:
    given = {"": 0, "recipe.weight_averaging=0.9": 1, "budget=1h": 1, "trainer.devices=2": 1}
    assert [kept_copies(make_settings(*text.split())) for text in given] == list(given.values())
    assert kept_copies(make_settings("recipe.weight_averaging=0.9", "trainer.devices=2")) == 2


def test_measuring_and_pinned_sizes_exclude_each_other(make_settings: Make) -> None:
    with pytest.raises(UserError, match=r"planner\.measure=true chooses patch and batch, so plan\.patch_size"):
        make_settings("planner.measure=true")
    with pytest.raises(UserError, match=r"a step without the component loss.* recipe\.loss\.component_weight"):
        make_settings(*FREE, "recipe.loss.component_weight=0.5")
    settings = make_settings()
    assert with_measured_plan(settings) is settings


def test_the_step_is_that_of_the_network(make_settings: Make, prepared: PreparedDataset) -> None:
    """On this process, whose memory says nothing: all means run."""
    record = checkpoint_record(make_settings(), prepared)
    for checkpointing in (False, True):
        assert peak_here(record, checkpointing, 1, "cpu", "32-true") > 0


@pytest.mark.slow
@pytest.mark.nightly
def test_a_larger_step_takes_the_memory_that_its_tensors_need(make_settings: Make, prepared: PreparedDataset) -> None:
    """A process of its own, so that neither this process nor a former step counts."""
    record = checkpoint_record(make_settings(), prepared)
    peaks = []
    for edge in (32, 64, 96):
        sized = replace(record.configuration, patch_size=(edge, edge, edge))
        plan = replace(record.plan, configurations={**record.plan.configurations, sized.name: sized})
        peaks.append(step_peak(replace(record, plan=plan), False, 0, "cpu", "32-true"))
    voxels = [2 * edge**3 for edge in (32, 64, 96)]
    line = peaks[0] + (peaks[1] - peaks[0]) / (voxels[1] - voxels[0]) * (voxels[2] - voxels[0])
    assert line == pytest.approx(peaks[2], rel=0.1)
    # At least the four maps of 4 channels at full resolution that the backward pass needs, in float32.
    assert peaks[2] - peaks[0] > 4 * 4 * 4 * (voxels[2] - voxels[0])
