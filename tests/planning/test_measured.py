"""The choice of patch and batch by measured memory, against memories that are known and a search of all trials."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from umamba.io import UserError
from umamba.planning.measured import Trial, choose, plain_trials

Peak = Callable[[Trial], float]
PLAIN = [Trial((edge, edge, edge), 2) for edge in range(16, 161, 8)]
WISH = Trial((96, 96, 96), 2)


def memory(fixed: float, per_voxel: float, quadratic: float = 0.0, saved: float = 3.0) -> Peak:
    """Return a memory in bytes that grows with the voxels of a step, less with checkpointing."""

    def peak_of(trial: Trial) -> float:
        of_voxels = per_voxel * trial.voxels + quadratic * trial.voxels**2
        return fixed + of_voxels / (saved if trial.checkpointing else 1.0)

    return peak_of


MEMORIES = {
    "line": memory(4e8, 900.0),
    "small start": memory(1e7, 2500.0),
    "attention": memory(5e8, 400.0, quadratic=2e-4),
    "large weights": memory(3e9, 300.0),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_the_budget_is_never_exceeded_and_the_prediction_is_near(name: str) -> None:
    peak_of = MEMORIES[name]
    generator = np.random.default_rng(0)
    least = peak_of(Trial((16, 16, 16), 2, 2, True))
    for budget in np.exp(generator.uniform(math.log(1.05 * least), math.log(2 * peak_of(PLAIN[-1])), size=20)):
        measured: list[Trial] = []

        def counted(trial: Trial, measured: list[Trial] = measured) -> float:
            measured.append(trial)
            return peak_of(trial)

        found = choose(PLAIN, WISH, float(budget), counted, "planner.gpu_memory_gb")
        assert found.measured == peak_of(found.trial) <= budget
        assert len(measured) == len(set(measured)) <= 14
        if name == "attention":
            continue  # a line is not near a curve that bends, so that more steps are measured; the budget holds
        if found.predicted is not None:
            assert found.predicted == pytest.approx(found.measured, rel=0.1)
        if peak_of(WISH) <= budget:
            # The largest plan that stays below the safe share of the budget, or one step beside it.
            best = max(index for index, one in enumerate(PLAIN) if peak_of(one) <= 0.95 * budget or one == WISH)
            assert abs(PLAIN.index(found.trial) - best) <= 1
        elif any(peak_of(Trial(WISH.patch_size, 2, 2, way)) <= 0.9 * budget for way in (False, True)):
            assert found.trial.patch_size == WISH.patch_size, "the patch of the rules is kept by other means"


def test_accumulation_comes_before_checkpointing_and_both_before_a_smaller_patch() -> None:
    peak_of = MEMORIES["line"]
    whole, halved = peak_of(WISH), peak_of(Trial(WISH.patch_size, 2, 2))
    recomputed = peak_of(Trial(WISH.patch_size, 2, 2, True))
    assert recomputed < halved < whole

    def trial(budget: float) -> Trial:
        return choose(PLAIN, WISH, budget, peak_of, "planner.gpu_memory_gb").trial

    assert trial(1.1 * halved) == Trial(WISH.patch_size, 2, 2)
    assert trial(1.1 * recomputed).checkpointing
    assert trial(1.1 * recomputed).patch_size == WISH.patch_size
    small = trial(0.9 * recomputed)
    assert small.checkpointing
    assert small.accumulate == 2
    assert small.patch_size < WISH.patch_size


def test_running_out_of_memory_is_an_answer() -> None:
    peak_of = MEMORIES["line"]

    def limited(trial: Trial) -> float:
        return peak_of(trial) if peak_of(trial) < 1.2e9 else math.inf

    found = choose(PLAIN, Trial((48, 48, 48), 2), 2e9, limited, "planner.gpu_memory_gb")
    assert found.measured < 1.2e9
    assert found.trial.patch_size > (56, 56, 56)


def test_too_little_memory_is_refused_with_what_is_needed() -> None:
    with pytest.raises(UserError, match=r"planner\.gpu_memory_gb=0\.1: the smallest training step .* takes 0\.40 GB"):
        choose(PLAIN, WISH, 1e8, MEMORIES["line"], "planner.gpu_memory_gb")


def test_a_step_that_cannot_be_measured_is_no_number() -> None:
    with pytest.raises(UserError, match=r"gpu_memory_gb: not even the smallest training step .* could be measured"):
        choose(PLAIN, WISH, 1e9, lambda trial: math.inf, "planner.gpu_memory_gb")


def test_trials_are_the_plans_of_the_rules_for_growing_targets() -> None:
    def planned(target: float) -> dict[str, object] | None:
        if target == 2:
            return None
        edge = 8 * max(2, round(12 * target ** (1 / 3)))
        return {"patch_size": (edge, edge, edge), "batch_size": 2}

    trials = plain_trials(planned)
    assert trials[0] == Trial((16, 16, 16), 2)
    assert Trial((96, 96, 96), 2) in trials
    voxels = [trial.voxels for trial in trials]
    assert voxels == sorted(set(voxels))


def test_the_sentence_names_means_and_memory() -> None:
    found = choose(PLAIN, WISH, 1.1 * MEMORIES["line"](Trial(WISH.patch_size, 2, 2)), MEMORIES["line"], "key")
    said = found.sentence()
    assert "patch 96 x 96 x 96, batch 2 in 2 steps (trainer.accumulate_grad_batches)" in said
    assert f"measured {found.measured / 1e9:.2f} GB" in said
