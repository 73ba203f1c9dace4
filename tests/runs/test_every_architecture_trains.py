"""Each of the paper's six architectures trains 20 iterations on a phantom by train.py, and its loss falls."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from umamba.records.tables import read_metrics

ARCHITECTURES = ("umamba_bot", "umamba_enc", "unet", "segresnet", "unetr", "swinunetr")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose phantoms and preprocessed cases all runs share."""
    return tmp_path_factory.mktemp("six")


# One dimension of each; the other one is for the night.
EACH_DAY = {
    *(("flare", "umamba_bot"), ("flare", "umamba_enc"), ("flare", "unet")),
    *(("amos2d", "segresnet"), ("amos2d", "unetr"), ("amos2d", "swinunetr")),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "architecture"),
    [
        pytest.param(*case, marks=() if case in EACH_DAY else pytest.mark.nightly)
        for case in itertools.product(("flare", "amos2d"), ARCHITECTURES)
    ],
)
def test_the_loss_falls(folder: Path, project_dir: Path, experiment: str, architecture: str) -> None:
    paths = [f"paths.{name}={folder / name}" for name in ("raw", "preprocessed", "runs")]
    command = [sys.executable, str(project_dir / "train.py"), f"experiment={experiment}_{architecture}", *paths]
    command += ["smoke=true", "trainer.max_epochs=4", "trainer.limit_train_batches=5", "logger=csv"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (metrics,) = (folder / "runs" / f"smoke_{experiment}_{architecture}").rglob("metrics.csv")
    losses = [float(row["train/loss"]) for row in read_metrics(metrics)]
    print(f"{experiment}_{architecture}: mean loss of every five iterations {losses}")
    assert len(losses) == 4
    assert losses[-1] < losses[0]
