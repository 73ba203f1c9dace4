"""A sweep gives each run its folder, goes on after a failed or refused run, and ends with a table."""

import csv
import os
import signal
from pathlib import Path

import pytest

from umamba.cli import sweep as sweep_module
from umamba.cli.main import EXIT_USER_ERROR, main
from umamba.cli.sweep import EXIT_FAILED, through_hydra
from umamba.records import RunFolder
from umamba.settings import TrainSettings

SHORT = ["recipe.optimizer.lr=0.1,0.01"]
SWEPT = ["recipe.optimizer.lr=0.1,0.01,0.001"]


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a sweep's table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the overrides that all runs have; the score of a run is its learning rate."""
    monkeypatch.setattr(sweep_module, "objective", lambda settings: settings.recipe.optimizer.lr)
    monkeypatch.chdir(tmp_path)
    return ["-m", "dataset=phantom", "name=s", f"paths.runs={tmp_path / 'runs'}"]


def test_each_run_has_a_folder_of_its_own_that_the_order_of_keys_does_not_change(
    fixed: list[str], tmp_path: Path
) -> None:
    seen: list[Path] = []

    def train(settings: TrainSettings) -> None:
        seen.append(RunFolder.of(settings).path.relative_to(tmp_path / "runs"))

    assert through_hydra(train, TrainSettings, [*fixed, "recipe.optimizer.lr=0.1,1e-2", "augmentation=light,none"]) == 0
    first = seen.copy()
    assert str(first[0]) == "s__augmentation-light__optimizer.lr-0.1/3d_fullres/fold_0/seed_0"
    assert len(set(first)) == 4
    seen.clear()
    assert through_hydra(train, TrainSettings, ["-m", "augmentation=light,none", *SHORT, *fixed[1:]]) == 0
    assert set(seen) == set(first)
    seen.clear()
    assert through_hydra(train, TrainSettings, [*fixed, "fold=0,1", "seed=3"]) == 0
    assert list(map(str, seen)) == ["s/3d_fullres/fold_0/seed_3", "s/3d_fullres/fold_1/seed_3"]


def test_a_sweep_goes_on_and_names_what_failed(
    fixed: list[str], tmp_path: Path, messages: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(settings: TrainSettings) -> None:
        if settings.recipe.optimizer.lr == 0.1:
            raise RuntimeError("CUDA out of memory [1/2]")

    assert through_hydra(train, TrainSettings, [*fixed, "recipe.optimizer.lr=0.1,-1,0.01"]) == EXIT_FAILED
    rows = table(tmp_path / "runs" / "sweep_s.csv")
    assert [(row["run"], row["state"], row["score"]) for row in rows] == [
        ("recipe.optimizer.lr=0.1", "failed", ""),
        ("recipe.optimizer.lr=-1", "refused", ""),
        ("recipe.optimizer.lr=0.01", "finished", "0.01"),
    ]
    assert rows[0]["reason"] == "RuntimeError: CUDA out of memory [1/2]"
    assert "recipe.optimizer.lr=-1: must be a number from 0 on" in rows[1]["reason"]
    assert rows[2]["folder"] == "s__optimizer.lr-0.01/3d_fullres/fold_0/seed_0"
    assert "Traceback" in messages.text, "of the error that is no user's mistake"
    assert not list((tmp_path / "runs").glob(".sweep*"))
    assert "HYDRA_FULL_ERROR" not in capsys.readouterr().err


def test_the_exit_code_is_that_of_a_sweep(fixed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *fixed, "dataset.root=nowhere,neither", "dataset.kind=nnunet"]) == EXIT_FAILED
    said = capsys.readouterr()
    assert "2 refused" in said.out
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "wrong", ["recipe.optimizer.lrr=0.1,0.2", "augmentation=light,heavy", "recipe.optimizer.lr=-1,-2"]
)
def test_what_no_run_can_do_is_refused_at_once(
    fixed: list[str], tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *fixed, wrong]) == EXIT_USER_ERROR
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_signal_ends_the_whole_sweep(fixed: list[str], tmp_path: Path) -> None:
    seen = []

    def train(settings: TrainSettings) -> None:
        seen.append(settings.recipe.optimizer.lr)
        if len(seen) == 2:
            raise SystemExit(128 + signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        through_hydra(train, TrainSettings, [*fixed, *SWEPT])
    assert caught.value.code == 143
    assert seen == [0.1, 0.01]
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_command_with_an_option_and_without_a_sweep_ends_as_ever(fixed: list[str]) -> None:
    def train(settings: TrainSettings) -> int:
        return 7

    assert through_hydra(train, TrainSettings, [*fixed[1:], "--run"]) == 7
