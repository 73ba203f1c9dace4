"""Hydra's sweepers and launchers, which are optional: the docs' search with Optuna, and trainings by submitit."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import yaml

from umamba.cli.main import main
from umamba.cli.sweep import EXIT_FAILED
from umamba.io import read_json

# The plugins' own packages use what others have deprecated.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
# Makes a training of the phantom take seconds.
SMALL = (
    *("dataset.phantom.num_training=5", "dataset.phantom.num_test=1", "trainer.max_epochs=2", "logger=csv"),
    *("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "plan.features_per_stage=[8,16,16,16,16]"),
)


def documented_search(project_dir: Path) -> list[str]:
    """Return the arguments of the docs' search."""
    text = (project_dir / "docs" / "commands.md").read_text()
    (block,) = (found for found in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "hydra/sweeper=optuna" in found)
    program, *arguments = shlex.split(block.replace("\\\n", " "))
    assert program == "umamba"
    return arguments


@pytest.mark.nightly
def test_the_documented_search_of_lr_and_patch_size(project_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    given = [text.replace("n_trials=20", "n_trials=4") for text in documented_search(project_dir)]
    # A process of its own, because pytest makes errors of the deprecations that Optuna's import meets.
    command = [sys.executable, "-m", "umamba", *given, *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for config in (tmp_path / "runs" / "search").rglob("config.yaml"):
        settings = yaml.safe_load(config.read_text())
        scores = pandas.read_csv(config.parent / "validation.csv")
        score = scores.groupby("case")["dsc"].mean().mean()
        found[settings["recipe"]["optimizer"]["lr"], tuple(settings["plan"]["patch_size"])] = score
    assert len(found) == 4  # each trial has a folder of its own
    assert all(0.001 <= lr <= 0.1 for lr, _ in found)
    assert {patch for _, patch in found} <= {(16, 64, 64), (24, 64, 64)}
    result = yaml.safe_load((tmp_path / "runs" / "search" / "optimization_results.yaml").read_text())
    assert result["best_value"] == pytest.approx(max(found.values()))  # the highest score of the validation cases
    patch = tuple(yaml.safe_load(result["best_params"]["++plan.patch_size"]))
    best = next(score for (lr, size), score in found.items() if lr == result["best_params"]["++recipe.optimizer.lr"])
    assert best == pytest.approx(max(found.values()))
    assert patch in {size for _, size in found}


@pytest.mark.nightly
def test_trainings_by_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.chdir(tmp_path)
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=20"]
    given = [*launcher, "experiment=quickstart", "predict.validation=false", *SMALL]
    given.append("paths.runs=run (1)")
    assert main(["train", "-m", *given, "seed=0,1"]) == 0
    # A folder that holds another run refuses this one; the other seed is trained, and the exit code tells.
    assert main(["train", "-m", *given, "seed=0,2", "recipe.optimizer.lr=0.5"]) == EXIT_FAILED
    runs = (tmp_path / "run (1)" / "quickstart" / "3d_fullres" / "fold_0").glob("*/run.json")
    assert {path.parent.name: read_json(path)["state"] for path in runs} == dict.fromkeys(
        ("seed_0", "seed_1", "seed_2"), "finished"
    )
