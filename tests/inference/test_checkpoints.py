"""A checkpoint is a file, the folder of a run, or a folder with the folds of one experiment."""

import logging
from pathlib import Path

import pytest

from umamba.inference.checkpoints import find_checkpoints
from umamba.io import UserError, write_json


def run(folder: Path, state: str = "finished") -> Path:
    """Make the files of a run that are looked at; return its checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("last.ckpt", "best.ckpt"):
        (folder / "checkpoints" / name).touch()
    write_json(folder / "run.json", {"state": state})
    return folder / "checkpoints" / "last.ckpt"


def test_folders_of_runs_folds_and_experiments(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "umamba")
    experiment = tmp_path / "runs" / "A"
    folds = [run(experiment / "3d_fullres" / f"fold_{fold}" / "seed_0") for fold in range(3)]
    run(experiment / "3d_fullres" / ".fold_9.aside" / "seed_0")
    assert find_checkpoints([folds[1]]) == [folds[1]]
    assert find_checkpoints([folds[1].parents[1], folds[2].parent]) == [folds[1], folds[2]]
    assert find_checkpoints([experiment / "3d_fullres" / "fold_0"]) == [folds[0]]
    assert caplog.text == ""
    assert find_checkpoints([experiment]) == find_checkpoints([experiment / "3d_fullres"]) == folds
    assert f"{experiment}: the mean of 3 networks, 3d_fullres/fold_0/seed_0, 3d_fullres/fold_1/seed_0" in caplog.text


def test_what_differs_is_not_averaged(tmp_path: Path) -> None:
    run(tmp_path / "A" / "3d_fullres" / "fold_0" / "seed_0")
    other_seed = run(tmp_path / "A" / "3d_fullres" / "fold_0" / "seed_1")
    with pytest.raises(UserError, match="different configurations or seeds") as raised:
        find_checkpoints([tmp_path / "A"])
    assert str(other_seed.parents[1]) in str(raised.value)
    with pytest.raises(UserError, match="different configurations or seeds"):
        find_checkpoints([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no checkpoints/last.ckpt and no checkpoint_final.pth"):
        find_checkpoints([tmp_path / "empty"])


def test_an_unfinished_run_is_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "fold_0" / "seed_0", "training")
    run(tmp_path / "fold_1" / "seed_0", "predicting")
    assert len(find_checkpoints([tmp_path])) == 2
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"{tmp_path}/fold_0/seed_0: its training is not finished; the checkpoint of its last epoch is used."
    ]


def test_all_folds_of_an_official_folder(tmp_path: Path) -> None:
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / "checkpoint_final.pth").touch()
    files = [tmp_path / f"fold_{fold}" / "checkpoint_final.pth" for fold in (0, 1)]
    assert find_checkpoints([tmp_path]) == files
    assert find_checkpoints([tmp_path / "fold_1"]) == files[1:]
