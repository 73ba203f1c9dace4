"""From a raw dataset to scores and pictures by train.py and predict.py; killed and continued; with broken input."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from filelock import FileLock

from umamba.cli.main import main
from umamba.records import RunFolder
from umamba.records.tables import read_metrics, read_scores

PROJECT = Path(__file__).resolve().parents[2]
TINY = [
    "dataset=phantom",
    "dataset.phantom.num_training=6",
    "dataset.phantom.num_test=2",
    "dataset.phantom.voxel_mm=6.0",
    "plan.patch_size=[8,32,32]",
    "plan.features_per_stage=[8,16,32,32]",
    "plan.batch_size=2",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=6",
    "trainer.limit_val_batches=2",
    "trainer.precision=32-true",
    "logger=csv",
    "logger.panels_every=2",
    "name=tiny",
]
Fork = Callable[..., subprocess.CompletedProcess[str]]
RUN = Path("tiny/3d_fullres/fold_0/seed_0")


def paths(folder: Path) -> list[str]:
    """Return the overrides that put data and runs into `folder`."""
    return [f"paths.{name}={folder / name}" for name in ("raw", "preprocessed", "runs")]


def command(script: str, folder: Path, *overrides: str) -> list[str]:
    """Return a command whose data and runs are in `folder`."""
    return [sys.executable, str(PROJECT / script), *paths(folder), *overrides]


def run(arguments: list[str], code: int = 0) -> str:
    """Run a command and return what it printed; fail with this text unless the exit code is `code`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one finished run, which all test processes share because it takes long to make."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "finished"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            run(command("train.py", folder, *TINY))
            (folder / "complete").touch()
    return folder


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    """Return the weights of a run's last checkpoint."""
    return dict(torch.load(folder.last, weights_only=True)["state_dict"])


def test_the_run_folder_holds_everything(finished: Path) -> None:
    folder = RunFolder(finished / "runs" / RUN)
    files = (folder.config, folder.plan, folder.metrics, folder.curves, folder.scores, folder.validation_scores)
    assert [path.name for path in (*files, folder.last, folder.previous, folder.best) if not path.is_file()] == []
    assert folder.status()["state"] == "finished"
    assert len(list(folder.overlays.glob("*.png"))) >= 2
    assert list(folder.panels.glob("*.png"))
    scores = read_scores(folder.scores)
    assert list(scores.columns) == ["case", "label", "dsc", "nsd"]
    assert len(scores) == 2 * scores["label"].nunique()


def test_predictions_are_in_the_space_of_the_images(finished: Path) -> None:
    images = sorted((finished / "raw").glob("*/imagesTs/*_0000.nii.gz"))
    assert images
    for path in images:
        image = sitk.ReadImage(str(path))
        name = path.name.replace("_0000", "")
        prediction = sitk.ReadImage(str(RunFolder(finished / "runs" / RUN).predictions / name))
        assert prediction.GetSize() == image.GetSize()
        assert prediction.GetSpacing() == image.GetSpacing()
        assert prediction.GetOrigin() == image.GetOrigin()
        assert prediction.GetDirection() == image.GetDirection()


def test_predict_reproduces_the_runs_predictions(finished: Path, tmp_path: Path, fork_command: Fork) -> None:
    images = next((finished / "raw").glob("*/imagesTs"))
    folder = RunFolder(finished / "runs" / RUN)
    checkpoint, own = folder.last, folder.predictions
    done = fork_command(["predict", f"checkpoint={checkpoint}", f"input={images}", f"output={tmp_path}"], tmp_path)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in own.glob("*.nii.gz"))
    assert names == sorted(path.name for path in tmp_path.glob("*.nii.gz"))
    for name in names:
        ours, theirs = (sitk.GetArrayFromImage(sitk.ReadImage(str(root / name))) for root in (own, tmp_path))
        assert np.array_equal(ours, theirs)


def test_a_finished_run_is_not_repeated(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = RunFolder(finished / "runs" / RUN).last
    before = checkpoint.stat().st_mtime_ns
    assert main(["train", *paths(finished), *TINY]) == 0
    assert "finished" in "".join(capsys.readouterr())
    assert checkpoint.stat().st_mtime_ns == before


def test_another_network_under_the_same_name_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *paths(finished), *TINY, "architecture=unet", "trainer.max_epochs=4"]) == 2
    said = "".join(capsys.readouterr())
    assert "architecture.name: was umamba_bot, is unet" in said
    assert "restart=true" in said
    assert "Traceback" not in said


def test_a_killed_run_continues_to_the_same_weights(finished: Path, tmp_path: Path, fork_command: Fork) -> None:
    (tmp_path / "raw").symlink_to(finished / "raw")
    (tmp_path / "preprocessed").symlink_to(finished / "preprocessed")
    folder = RunFolder(tmp_path / "runs" / RUN)
    trained_only = ["train", *paths(tmp_path), *TINY, "predict.validation=false"]
    killed = fork_command(trained_only, tmp_path, kill_after=folder.last)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = fork_command(trained_only, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Continuing" in done.stdout + done.stderr
    ours, theirs = weights(folder), weights(RunFolder(finished / "runs" / RUN))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["epoch"] for row in read_metrics(folder.metrics)] == ["0", "1", "2"]


def test_all_faults_of_a_dataset_are_reported_together(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = next((finished / "raw").glob("*/dataset.json")).parent
    broken = tmp_path / "raw" / "Dataset901_Broken"
    for path in source.rglob("*"):
        if path.is_file():
            target = broken / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    images = sorted((broken / "imagesTr").glob("*"))
    labels = sorted((broken / "labelsTr").glob("*"))
    images[0].write_bytes(images[0].read_bytes()[:2000])
    label = sitk.ReadImage(str(labels[1]))
    label[0, 0, 0] = 77
    sitk.WriteImage(label, str(labels[1]))
    sitk.WriteImage(sitk.ReadImage(str(labels[2]))[:-1], str(labels[2]))
    labels[3].unlink()
    others = [override for override in TINY if not override.startswith("dataset")]
    assert main(["train", *paths(tmp_path), f"dataset.root={broken}", *others]) == 2
    said = "".join(capsys.readouterr())
    for path in (images[0], labels[1], labels[2], labels[3]):
        assert path.name in said
    assert "77" in said
    assert "Traceback" not in said
    left = [path for path in (tmp_path / "preprocessed").rglob("*") if path.is_file() and ".lock" not in path.name]
    assert [path.name for path in left if path.name != "files.json"] == []
    assert not (tmp_path / "runs").exists()
