"""A time budget by an injected clock: where training ends, what the schedule does, what a kill leaves; the forecast."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from umamba.io import UserError
from umamba.records import RunFolder
from umamba.records.tables import read_metrics
from umamba.runs import fit, time_budget, train
from umamba.runs.time_budget import check_end, report_forecast
from umamba.runs.trainer import check_trainer
from umamba.settings import InvalidSettings, ScheduleSettings, TrainSettings
from umamba.training.budget import BudgetPlan, BudgetSchedule, Speed, _add_step, plan_budget
from umamba.training.forecast import curve, forecast
from umamba.training.measuring import Stopwatch
from umamba.training.module import SegmentationModule
from umamba.training.schedules import learning_rate_factor

Fit = Callable[..., RunFolder]
Make = Callable[..., TrainSettings]


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.time = 5000.0

    def __call__(self) -> float:
        return self.time


def simulated(plan: BudgetPlan, step_s: Callable[[int], float], saving_s: float) -> tuple[float, list[float]]:
    """Train with a clock instead of a network; return the seconds it took, and the share done before each step."""
    clock = Clock()
    schedule = BudgetSchedule(plan, clock)
    shares: list[float] = []
    module: Any = SimpleNamespace(share_done=None, log=lambda *_: None)
    module.set_learning_rate = lambda: shares.append(module.share_done)
    trainer: Any = SimpleNamespace(
        num_training_batches=plan.iterations, max_epochs=1000, current_epoch=0, should_stop=False
    )
    schedule.on_train_start(trainer, module)
    while not trainer.should_stop:
        schedule.on_train_epoch_start(trainer, module)
        for index in range(plan.iterations):
            schedule.on_train_batch_start(trainer, module, None, index)
            clock.time += step_s(len(shares))
            schedule.on_train_batch_end(trainer, module, None, None, index)
            if trainer.should_stop:
                break
        clock.time += plan.val_iterations * plan.val_step_s
        schedule.on_train_epoch_end(trainer, module)
        clock.time += saving_s
        trainer.current_epoch += 1
    return clock.time - 5000.0 + plan.measuring_s, shares


@pytest.mark.parametrize("seconds", [300.0, 900.0, 2700.0, 43200.0])
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.5])
def test_a_budget_ends_in_time_although_the_speed_is_another_one(seconds: float, factor: float) -> None:
    plan = plan_budget(seconds, None, Speed(0.5, 0.0, 0.2, 9.0), workers=1)
    generator = np.random.default_rng(0)
    noise = generator.uniform(0.8, 1.2, size=200_000)
    took, shares = simulated(plan, lambda step: 0.5 * factor * noise[step], saving_s=1.0)
    assert took == pytest.approx(seconds, rel=0.03)
    assert min(np.diff(shares)) > -0.01, "an epoch that is shorter than expected sets the share back, but only a little"
    assert shares[0] < 0.05
    assert shares[-1] > 0.98, "the decay comes to its end"


def test_training_that_slows_down_still_ends_in_time() -> None:
    plan = plan_budget(600.0, None, Speed(0.5, 0.0, 0.2, 9.0), workers=1)
    took, _ = simulated(plan, lambda step: 0.5 if step < 400 else 1.0, saving_s=0.5)
    assert took == pytest.approx(600.0, rel=0.03)


def test_training_that_becomes_faster_uses_its_time() -> None:
    plan = plan_budget(600.0, None, Speed(0.5, 0.0, 0.2, 9.0), workers=1)
    _, shares = simulated(plan, lambda step: 0.5, saving_s=0.5)
    last = len(shares) - plan.iterations // 2
    took, _ = simulated(plan, lambda step: 0.5 if step < last else 0.1, saving_s=0.5)
    assert took == pytest.approx(600.0, rel=0.005)


def test_epochs_and_validation_follow_the_speed() -> None:
    # An epoch of 900 / 60 = 15 s: 0.75 s of validation are 3 steps, and (15 - 3 * 0.25 - 0.5) / 0.5 = 27.5 steps fit.
    plan = plan_budget(900.0, None, Speed(0.5, 0.0, 0.25, 9.0), workers=1)
    assert (plan.iterations, plan.val_iterations) == (28, 3)
    longest = plan_budget(12 * 3600.0, None, Speed(0.5, 0.0, 0.25, 9.0), workers=1)
    assert longest.iterations * 0.5 + longest.val_iterations * 0.25 == pytest.approx(120.0, abs=1.0)
    assert plan_budget(900.0, None, Speed(60.0, 0.0, 9.0, 9.0), workers=1).iterations == 1
    given = plan_budget(900.0, None, Speed(0.5, 0.0, 0.25, 9.0), workers=1, iterations=7, val_iterations=0)
    assert (given.iterations, given.val_iterations) == (7, 0)


@pytest.mark.parametrize(
    ("seconds", "step_s", "val_step_s"),
    [(900.0, 5.0, 2.0), (900.0, 10.0, 4.0), (2700.0, 30.0, 12.0), (7200.0, 30.0, 12.0)],
)
def test_slow_steps_leave_nine_tenths_of_the_time_to_training(seconds: float, step_s: float, val_step_s: float) -> None:
    plan = plan_budget(seconds, None, Speed(step_s, 0.0, val_step_s, 60.0), workers=1)
    validation_s = plan.val_iterations * val_step_s
    epoch_s = plan.iterations * step_s + plan.rest_s
    assert validation_s / epoch_s < 0.11
    assert epoch_s < seconds / 9, "a kill costs no more than a tenth"
    few = plan_budget(seconds, None, Speed(step_s, 0.0, val_step_s, 60.0), workers=1, val_iterations=1)
    assert few.val_iterations == 1
    assert few.iterations <= plan.iterations


def test_wsd_by_hand() -> None:
    factor = learning_rate_factor(ScheduleSettings(name="wsd", warm_up=0.1, decay=0.4), 100)
    # The warm-up begins at a twentieth.
    expected = {0: 0.05, 5: 0.525, 10: 1.0, 60: 1.0, 80: 0.5, 90: 0.25, 100: 0.0}
    assert {epoch: factor(epoch) for epoch in expected} == pytest.approx(expected)
    assert learning_rate_factor(ScheduleSettings(name="wsd", warm_up=0, decay=0), 10)(9.99) == 1
    with pytest.raises(InvalidSettings, match="more than the whole"):
        ScheduleSettings(name="wsd", warm_up=0.6, decay=0.6)


def test_the_average_has_shamir_and_zhangs_weights() -> None:
    """The weight of step t is (t + e - 1)! / (t - 1)! over its sum, for the exponent e; here by whole numbers."""
    values = torch.linspace(-1, 3, 30, dtype=torch.float64)
    average = [values[:1].clone()]
    for step in range(1, 30):
        _add_step(average, [values[step : step + 1]], step)
    exponent = 12
    factors = [math.factorial(t + exponent - 1) // math.factorial(t - 1) for t in range(1, 31)]
    expected = sum(factor * float(value) for factor, value in zip(factors, values, strict=True)) / sum(factors)
    assert float(average[0]) == pytest.approx(expected, rel=1e-10)
    counter = [torch.tensor(3)]
    _add_step(counter, [torch.tensor(9)], 3)
    assert int(counter[0]) == 9, "counters of batches are not averaged"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Train with a clock on which a training step takes 1 s, a validation step 0.5 s and nothing else any time."""
    moved = Clock()
    monkeypatch.setattr(fit, "BudgetSchedule", partial(BudgetSchedule, clock=moved, now=moved))
    monkeypatch.setattr(time_budget.time, "time", moved)
    monkeypatch.setattr(time_budget, "measured_speed", lambda *_: Speed(1.0, 0.0, 0.5, 2.0))
    training, validation = SegmentationModule.training_step, SegmentationModule.validation_step

    def slow(module: SegmentationModule, batch: dict[str, Any], index: int) -> torch.Tensor:
        moved.time += 1.0
        return training(module, batch, index)

    def checked(module: SegmentationModule, batch: dict[str, Any], index: int) -> None:
        moved.time += 0.5
        validation(module, batch, index)

    monkeypatch.setattr(SegmentationModule, "training_step", slow)
    monkeypatch.setattr(SegmentationModule, "validation_step", checked)
    return moved


LONG = ["trainer.max_epochs=1000", "trainer.limit_train_batches=6", "trainer.limit_val_batches=1"]


def test_a_real_run_ends_with_its_budget_and_a_killed_one_as_if_nothing_had_been(
    small_fit: Fit, clock: Clock, messages: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = small_fit("budget=40s", *LONG)
    rows = read_metrics(folder.metrics)
    # 2 s of measuring; epochs of 6 steps and a validation take 6.5 s: 5 of them end at 34.5 s, and 4 steps fit then.
    assert float(rows[-1]["time/used_s"]) == pytest.approx(40.0, abs=1.5)
    assert len(rows) == 6
    assert float(rows[2]["lr"]) == pytest.approx(0.01)
    # The decay to 0 takes the last 30 % of the time.
    assert float(rows[-1]["lr"]) == pytest.approx(0.01 * (1 - 34.5 / 40) / 0.3)
    status = folder.status()
    assert status["budget"]["iterations"] == 6
    assert status["ended_after"] == 6
    assert "epoch 6 (" in messages.text
    assert "rises in the first 2 % of the time and falls to 0 in the last 30 %" in messages.text
    assert "The run has too few epochs with a patch Dice to say what twice the time would bring." in messages.text
    before = folder.last.stat().st_mtime_ns
    small_fit("budget=40s", *LONG)
    assert folder.last.stat().st_mtime_ns == before, "the budget is used"

    dies_after(14, monkeypatch)
    with pytest.raises(KeyError):
        small_fit("budget=40s", *LONG, name="killed")
    killed = RunFolder(tmp_path / "killed")
    assert len(read_metrics(killed.metrics)) == 2
    # Saved after 2 epochs of 6.5 s and 2 s of measuring; the two steps of the third epoch are lost and do not count.
    content = torch.load(killed.last, weights_only=True)
    assert content["callbacks"]["BudgetSchedule"]["used"] == pytest.approx(15.0)
    weights, raw = content["state_dict"], content["current_model_state"]
    assert any(not torch.equal(weights[name], raw[name]) for name in raw), "the file's weights are the average"
    clock.time += 1000.0  # the machine was off
    small_fit("budget=40s", *LONG, name="killed")
    assert [row["lr"] for row in read_metrics(killed.metrics)] == [row["lr"] for row in rows]
    ends = [torch.load(one.last, weights_only=True)["state_dict"] for one in (folder, killed)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def dies_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training die once, in the step after so many."""
    inner, left = SegmentationModule.training_step, [steps]

    def dies(module: SegmentationModule, batch: dict[str, Any], index: int) -> torch.Tensor:
        left[0] -= 1
        if left[0] == -1:
            raise KeyError("killed")
        return inner(module, batch, index)

    monkeypatch.setattr(SegmentationModule, "training_step", dies)


def test_a_time_of_day_ends_a_run_that_was_killed_too(
    small_fit: Fit, clock: Clock, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(fit, "end_of_training", lambda settings: 5025.0 if settings.timed else None)
    given = ("finish_by='07:30'", *LONG)
    dies_after(7, monkeypatch)  # in the second epoch, 7.5 s after the start
    with pytest.raises(KeyError):
        small_fit(*given)
    clock.time = 5016.0  # 9 s before the end
    small_fit(*given)
    assert clock.time == pytest.approx(5025.0, abs=1.5)
    rows = read_metrics(RunFolder(tmp_path / "run").metrics)
    assert len(rows) == 3
    assert float(rows[-1]["lr"]) < 0.005, "the schedule comes to its end although the time is shorter than planned"
    clock.time = 9000.0
    small_fit(*given, "trainer.max_epochs=1001")
    assert "No time is left for another step: training ends after epoch 3." in messages.text


def test_no_time_left_is_refused_before_and_after_the_preparation(
    make_settings: Make, small_fit: Fit, tmp_path: Path
) -> None:
    words = r"finish_by=2020-01-01T07:30: {}0 s are left for the training"
    settings = make_settings("finish_by=2020-01-01T07:30", f"paths.runs={tmp_path / 'runs'}")
    with pytest.raises(UserError, match=words.format("")):
        train(settings)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match=words.format("after the preparation ")):
        small_fit("finish_by=2020-01-01T07:30", *LONG)
    begun = RunFolder(tmp_path / "begun")
    begun.last.parent.mkdir(parents=True)
    begun.last.touch()
    check_end(settings, begun, 0.0)  # a run that has begun is continued, to be predicted and scored


def test_measuring_leaves_the_weights(small_fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement trains for real, and the run begins with the weights and random numbers as if it had not."""
    seen: list[dict[str, torch.Tensor]] = []
    states: list[torch.Tensor] = []
    real = time_budget.measured_speed

    def watched(module: SegmentationModule, *rest: Any) -> Speed:
        seen.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        states.append(torch.random.get_rng_state())
        speed = real(module, *rest)
        seen.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        states.append(torch.random.get_rng_state())
        raise KeyError(f"{speed.step_s > 0} {speed.val_step_s > 0}")

    monkeypatch.setattr(time_budget, "measured_speed", watched)
    with pytest.raises(KeyError, match="True True"):
        small_fit("budget=40s", *LONG)
    assert seen[0].keys() == seen[1].keys()
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in seen[0].items())
    assert torch.equal(states[0], states[1])


def test_a_stopwatch_leaves_out_the_first_step() -> None:
    clock = Clock()
    watch = Stopwatch(3.0, clock)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(should_stop=False)
    for index, (wait, work) in enumerate([(9.0, 20.0), (0.25, 1.0), (0.25, 1.0), (0.25, 1.0), (0.25, 1.0)]):
        assert not trainer.should_stop
        clock.time += wait
        watch.on_train_batch_start(trainer, module, None, index)
        clock.time += work
        watch.on_train_batch_end(trainer, module, None, None, index)
        if trainer.should_stop:
            break
    assert trainer.should_stop
    speed = watch.speed(30.0)
    assert (speed.step_s, speed.wait_s) == (1.25, 0.25)


def test_budgets_that_cannot_be(make_settings: Make) -> None:
    """Those that the tests of wrong commands do not have."""
    for given, words in {
        "budget=45min finish_by='07:30'": "Leave out one of the two",
        "budget=45min recipe.weight_averaging=0.9": "recipe.weight_averaging",
        "budget=45min data.iterations_per_epoch=100": "data.iterations_per_epoch",
    }.items():
        with pytest.raises(UserError, match=words):
            make_settings(*given.split())
    schedule = make_settings("budget=45min", "recipe=swinunetr", "recipe.schedule.decay=0.5").recipe.schedule
    assert schedule == ScheduleSettings(name="wsd", decay=0.5)
    with pytest.raises(UserError, match=r"budget: one device trains to a time budget, not 2"):
        check_trainer(make_settings("budget=45min", "trainer.devices=2"))


def points(noise: float, seed: int) -> tuple[list[float], list[float]]:
    """Return a curve whose error is 0.1 + 0.2 * t ** -0.5 with t = 1 at its end, with noise."""
    generator = np.random.default_rng(seed)
    times = np.arange(1, 61) * 45.0
    errors = 0.1 + 0.2 * (times / times[-1]) ** -0.5 + generator.normal(0, noise, len(times))
    return list(times), list(1 - errors)


def test_the_forecast_is_that_of_an_independent_fit() -> None:
    seconds, dice = points(0.002, 0)
    found = forecast(seconds, dice)
    assert found is not None
    times = np.asarray(seconds[5:]) / seconds[-1]

    def law(t: np.ndarray, floor: float, scale: float, exponent: float) -> np.ndarray:
        return np.asarray(floor + scale * t**-exponent)

    parameters, _ = curve_fit(law, times, 1 - np.asarray(dice[5:]), p0=(0.1, 0.1, 1.0), bounds=(0, [1, 1, 3]))
    gain = law(np.ones(1), *parameters)[0] - law(np.full(1, 2.0), *parameters)[0]
    assert found.gain == pytest.approx(gain, abs=0.004)
    assert found.gain == pytest.approx(0.2 * (1 - 2**-0.5), abs=0.01)


def test_the_forecast_is_said_and_recorded(tmp_path: Path, messages: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    lines = [f"{epoch},{used},{dice}" for epoch, (used, dice) in enumerate(zip(*points(0.002, 0), strict=True))]
    folder.metrics.write_text("\n".join(["epoch,time/used_s,val/patch_dice", *lines]) + "\n")
    report_forecast(folder)
    assert "Twice the time would probably raise the patch Dice by 0.0" in messages.text
    found = folder.status()["forecast"]
    assert found["gain"] == pytest.approx(0.2 * (1 - 2**-0.5), abs=0.01)
    assert found["low"] <= found["gain"] <= found["high"]


def test_the_interval_of_the_forecast_holds_the_truth_as_often_as_it_says() -> None:
    truth = 0.2 * (1 - 2**-0.5)
    found = [forecast(*points(0.01, seed)) for seed in range(25)]
    inside = [one is not None and one.low <= truth <= one.high for one in found]
    assert np.mean(inside) >= 0.75


def test_a_flat_curve_promises_nothing_and_a_short_one_is_refused() -> None:
    generator = np.random.default_rng(1)
    times = list(np.arange(1, 61) * 10.0)
    flat = forecast(times, list(0.9 + generator.normal(0, 0.001, 60)))
    assert flat is not None
    assert flat.gain < 0.002
    assert flat.probability < 0.05
    assert forecast(times[:5], [0.5] * 5) is None
    assert forecast([], []) is None
    rows = [{"epoch": "0"}, {"epoch": "1", "time/used_s": "4", "val/patch_dice": "0.5"}, {"time/used_s": "8"}]
    seconds, dice = curve(rows)
    assert seconds == [4.0, 8.0]
    assert dice[0] == 0.5
    assert math.isnan(dice[1])
