"""The thirty experiments of the paper: each composes to its protocol, and runs small with smoke=true."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from umamba.cli.compose import settings_of
from umamba.runs.smoke import smoke_test
from umamba.settings import TrainSettings

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


@pytest.mark.parametrize(("dataset", "architecture"), EXPERIMENTS)
def test_each_experiment_is_the_papers_protocol(dataset: str, architecture: str) -> None:
    config = settings_of(TrainSettings, [f"experiment={dataset}_{architecture}"])
    folder, configuration = DATASETS[dataset]
    optimizer, rate, schedule, precision = RECIPES[architecture]
    assert config.name == f"{dataset}_{architecture}"
    assert config.dataset.root.name == folder
    assert (config.plan.configuration, config.plan.paper, config.planner.rules) == (configuration, True, "umamba")
    assert config.architecture.name == architecture
    assert (config.recipe.optimizer.name, config.recipe.optimizer.lr) == (optimizer, rate)
    assert config.recipe.schedule.name == schedule
    assert (config.trainer.max_epochs, config.precision) == (1000, precision)
    assert (config.fold, config.predict.tta, config.predict.checkpoint) == ("all", False, "last")


@pytest.mark.parametrize(("dataset", "architecture"), EXPERIMENTS)
def test_smoke_keeps_the_path_and_takes_a_name_of_its_own(dataset: str, architecture: str) -> None:
    config = settings_of(TrainSettings, [f"experiment={dataset}_{architecture}", "+smoke=true"])
    small = smoke_test(config)
    assert small.name == f"smoke_{dataset}_{architecture}"
    assert small.dataset.kind == "phantom"
    assert small.dataset.root != config.dataset.root
    assert not small.plan.paper
    same = ("planner", "recipe", "augmentation", "predict", "fold", "seed", "paths")
    assert all(getattr(small, key) == getattr(config, key) for key in same)
    assert small.plan.configuration == config.plan.configuration


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "study", "archive"),
    [
        ("flare_umamba_enc", "table3_organs_3d", "FLARE22Train/images"),
        pytest.param("amos_segresnet", "table3_organs_3d", "amos22/imagesVa", marks=pytest.mark.nightly),
        pytest.param(
            *("endovis_unetr", "table4_2d", "instrument_2017_test/instrument_dataset_9/left_frames"),
            marks=pytest.mark.nightly,
        ),
        pytest.param("cell_swinunetr", "table4_2d", "Tuning/images", marks=pytest.mark.nightly),
    ],
)
def test_smoke_runs_from_the_archive_to_the_report(
    project_dir: Path, tmp_path: Path, experiment: str, study: str, archive: str
) -> None:
    def python(*command: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        given = [sys.executable, str(project_dir / command[0]), *command[1:]]
        result = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stdout + result.stderr

    python("train.py", f"experiment={experiment}", "smoke=true")
    assert list(tmp_path.glob(f"data/raw/archives/*/{archive}/*"))
    (scores,) = tmp_path.glob(f"runs/smoke_{experiment}/*/fold_all/seed_0/scores.csv")
    with scores.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["case"] for row in rows}) >= 2

    python("report.py", f"study={study}", "overrides=['smoke=true']")
    page = (tmp_path / "runs" / "reports" / study / "index.html").read_text()
    assert len(re.findall(r"<td>[\d,]+</td><td>[\d,.]+ G</td>", page)) == 1  # parameters and FLOPs of the one run
    with (tmp_path / "runs" / "reports" / study / "numbers.csv").open(newline="") as file:
        numbers = list(csv.DictReader(file))
    dataset, method = experiment.split("_", 1)
    measured = {(row["dataset"], row["method"]) for row in numbers if row["mean"]}
    assert measured == {(dataset, method)}
    (liver,) = (row for row in numbers if row["label"] == rows[0]["label"] and row["metric"] == "dsc" and row["mean"])
    values = [float(row["dsc"]) for row in rows if row["label"] == liver["label"] and row["dsc"]]
    assert float(liver["mean"]) == pytest.approx(sum(values) / len(values))
