"""The thirty experiments of the paper: each composes to its protocol, and runs small with +smoke=true."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from umamba.config import TrainConfig
from umamba.entry import typed
from umamba.smoke import smoke_test

DATASETS = {
    "flare": ("Dataset701_AbdomenCT", "3d_fullres"),
    "amos": ("Dataset702_AbdomenMR", "3d_fullres"),
    "amos2d": ("Dataset702_AbdomenMR", "2d"),
    "endovis": ("Dataset704_Endovis17", "2d"),
    "cell": ("Dataset703_NeurIPSCell", "2d"),
}
# Optimiser, learning rate and schedule of the official trainers.
RECIPES = {
    "umamba_bot": ("sgd", 1e-2, "poly", "auto"),
    "umamba_enc": ("sgd", 1e-2, "poly", "auto"),
    "unet": ("sgd", 1e-2, "poly", "auto"),
    "segresnet": ("adam", 1e-4, "poly", "32-true"),
    "unetr": ("adamw", 1e-4, "poly", "32-true"),
    "swinunetr": ("adamw", 8e-4, "cosine", "32-true"),
}
EXPERIMENTS = [(dataset, architecture) for dataset in DATASETS for architecture in RECIPES]


def composed(project_dir: Path, *overrides: str) -> TrainConfig:
    """Compose train.yaml and type it."""
    with initialize_config_dir(str(project_dir / "configs"), version_base="1.3"):
        return typed(compose("train", list(overrides)), TrainConfig)


@pytest.mark.parametrize(("dataset", "architecture"), EXPERIMENTS)
def test_each_experiment_is_the_papers_protocol(project_dir: Path, dataset: str, architecture: str) -> None:
    config = composed(project_dir, f"experiment={dataset}_{architecture}")
    folder, configuration = DATASETS[dataset]
    optimizer, rate, schedule, precision = RECIPES[architecture]
    assert config.name == f"{dataset}_{architecture}"
    assert Path(config.dataset.root).name == folder
    assert (config.plan.configuration, config.plan.paper, config.planner.rules) == (configuration, True, "umamba")
    assert config.architecture["name"] == architecture
    assert (config.recipe["optimizer"]["name"], config.recipe["optimizer"]["lr"]) == (optimizer, rate)
    assert config.recipe["schedule"]["name"] == schedule
    assert (config.trainer["max_epochs"], config.trainer["precision"]) == (1000, precision)
    assert (config.fold, config.predict.tta, config.predict.checkpoint) == ("all", False, "last")


@pytest.mark.parametrize(("dataset", "architecture"), EXPERIMENTS)
def test_smoke_keeps_the_path_and_takes_a_name_of_its_own(project_dir: Path, dataset: str, architecture: str) -> None:
    config = composed(project_dir, f"experiment={dataset}_{architecture}", "+smoke=true")
    small = smoke_test(config)
    assert small.name == f"smoke_{dataset}_{architecture}"
    assert small.dataset.kind == "phantom"
    assert small.dataset.root != config.dataset.root
    assert not small.plan.paper
    same = ("planner", "recipe", "augmentation", "predict", "fold", "seed", "paths")
    assert all(getattr(small, key) == getattr(config, key) for key in same)
    assert small.plan.configuration == config.plan.configuration


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["flare_umamba_enc", "endovis_unetr", "cell_swinunetr"])
def test_smoke_runs_to_scores(project_dir: Path, tmp_path: Path, experiment: str) -> None:
    command = [sys.executable, str(project_dir / "train.py"), f"experiment={experiment}", "+smoke=true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (scores,) = tmp_path.glob(f"runs/smoke_{experiment}/*/fold_all/seed_0/scores.csv")
    with scores.open(newline="") as file:
        assert len({row["case"] for row in csv.DictReader(file)}) >= 2
