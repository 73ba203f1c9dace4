"""A sweep gives each run its folder, goes on after a failed or refused run, and ends with a table."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from umamba.cli import sweep as sweep_module
from umamba.cli.main import EXIT_USER_ERROR, main
from umamba.cli.sweep import EXIT_FAILED, through_hydra
from umamba.cli.sweep_table import Outcome, collect_outcomes, write_outcome
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

    assert through_hydra(train, TrainSettings, [*fixed, "recipe.optimizer.lr=-1,0.1,0.01"]) == EXIT_FAILED
    rows = table(tmp_path / "runs" / "sweep_s.csv")
    assert [(row["run"], row["state"], row["score"]) for row in rows] == [
        ("recipe.optimizer.lr=-1", "refused", ""),
        ("recipe.optimizer.lr=0.1", "failed", ""),
        ("recipe.optimizer.lr=0.01", "finished", "0.01"),
    ]
    assert "recipe.optimizer.lr=-1: must be a number from 0 on" in rows[0]["reason"]
    assert rows[1]["reason"] == "RuntimeError: CUDA out of memory [1/2]"
    assert rows[2]["folder"] == "s__optimizer.lr-0.01/3d_fullres/fold_0/seed_0"
    assert "Traceback" in messages.text, "of the error that is no user's mistake"
    assert not list((tmp_path / "runs").glob(".sweep*"))
    assert "HYDRA_FULL_ERROR" not in capsys.readouterr().err


def test_a_damaged_outcome_is_a_failed_run(tmp_path: Path) -> None:
    folder = tmp_path / "outcomes"
    write_outcome(folder, Outcome(0, "a=1", "finished", 0.5, "folder"))
    for number, text in enumerate(("", "[]", '{"number": 2}', '{"run": "a'), start=1):
        (folder / f"{number:06d}.json").write_text(text)
    first, *others = collect_outcomes(folder)
    assert first == Outcome(0, "a=1", "finished", 0.5, "folder")
    assert [(other.number, other.state) for other in others] == [(number, "failed") for number in range(1, 5)]
    assert all("damaged" in other.reason for other in others)


def test_the_exit_code_is_that_of_a_sweep(fixed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *fixed, "dataset.root=nowhere,neither", "dataset.kind=nnunet"]) == EXIT_FAILED
    said = capsys.readouterr()
    assert "2 refused" in said.out
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "wrong",
    [
        *("recipe.optimizer.lrr=0.1,0.2", "augmentation=light,heavy", "recipe.optimizer.lr=-1,-2"),
        "finish_by='07:30'",  # all would have one end
    ],
)
def test_what_no_run_can_do_is_refused_at_once(
    fixed: list[str], tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *fixed, wrong]) == EXIT_USER_ERROR
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_one_end_in_a_preset_is_refused_for_its_runs_only(fixed: list[str], tmp_path: Path) -> None:
    presets = tmp_path / "own" / "experiment"
    presets.mkdir(parents=True)
    for name, key in (("night", "finish_by: '07:30'"), ("short", "budget: 5min")):
        (presets / f"{name}.yaml").write_text(f"# @package _global_\n{key}\n")
    trained: list[TrainSettings] = []
    own = f"hydra.searchpath=['file://{tmp_path / 'own'}']"
    assert (
        through_hydra(trained.append, TrainSettings, [*fixed[1:], own, "experiment=night,short", "-m"]) == EXIT_FAILED
    )
    assert [settings.budget for settings in trained] == ["5min"]
    assert "finish_by=07:30: the first of several runs" in table(tmp_path / "runs" / "sweep_s.csv")[0]["reason"]


def test_sweeps_without_a_name_keep_their_tables(fixed: list[str], tmp_path: Path) -> None:
    unnamed = [text for text in fixed if not text.startswith("name=")]
    for kind in ("unet", "segresnet"):
        assert through_hydra(lambda settings: None, TrainSettings, [*unnamed, *SHORT, f"architecture={kind}"]) == 0
    tables = list((tmp_path / "runs").glob("sweep_*.csv"))
    assert sorted(table(path)[0]["folder"].split("/")[0].split("__")[0] for path in tables) == [
        "Dataset900_Phantom_segresnet",
        "Dataset900_Phantom_unet",
    ]


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


GRID = ["recipe.optimizer.lr=0.1,0.01", "augmentation=none,light", "architecture=unet,umamba_bot"]


@pytest.mark.slow
def test_eight_runs_have_eight_folders_and_weights_and_one_table_however_often_they_are_killed(
    small_settings: list[str], tmp_path: Path, project_dir: Path
) -> None:
    plain = [text for text in small_settings if text.split("=")[0] not in ("architecture", "augmentation")]

    def command(name: str) -> list[str]:
        data = [f"paths.raw={tmp_path / 'raw'}", f"paths.preprocessed={tmp_path / 'preprocessed'}"]
        own = ["name=grid", f"paths.runs={tmp_path / name}", "trainer.deterministic=true"]
        return [sys.executable, str(project_dir / "train.py"), "-m", *plain, *data, *own, *GRID]

    def run(name: str) -> list[dict[str, str]]:
        done = subprocess.run(command(name), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "8 finished" in done.stdout
        return table(tmp_path / name / "sweep_grid.csv")

    def kill_after(name: str, finished: int) -> None:
        process = subprocess.Popen(
            command(name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        limit = time.monotonic() + 300
        while len(list((tmp_path / name).glob("*/*/*/*/validation.csv"))) < finished and time.monotonic() < limit:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        time.sleep(random.Random(finished).uniform(0, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    whole = run("whole")
    assert len(whole) == len({row["folder"] for row in whole}) == 8
    weights: list[dict[str, Any]] = [
        torch.load(RunFolder(tmp_path / "whole" / row["folder"]).last, weights_only=True)["state_dict"] for row in whole
    ]
    for index, ours in enumerate(weights):
        for theirs in weights[:index]:
            same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
            assert not same, index
    kill_after("killed", 2)
    kill_after("killed", 5)
    assert run("killed") == whole
    assert run("killed") == whole, "nothing is trained again, and the table is the same"
    ours = torch.load(RunFolder(tmp_path / "killed" / whole[-1]["folder"]).last, weights_only=True)["state_dict"]
    assert all(torch.equal(ours[key], tensor) for key, tensor in weights[-1].items())
    assert not list((tmp_path / "killed").glob(".sweep*"))
