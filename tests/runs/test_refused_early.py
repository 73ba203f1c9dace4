"""What cannot be trained is refused before anything is preprocessed, and a silent run prints nothing."""

from pathlib import Path

import pytest

import umamba
from umamba.io import UserError
from umamba.settings import (
    DatasetSettings,
    DataSettings,
    LoggerSettings,
    PathsSettings,
    PhantomSettings,
    PlanSettings,
    TrainerSettings,
    TrainSettings,
    UNetSettings,
)


def test_a_dataset_that_is_too_small_for_its_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = TrainSettings(
        dataset=DatasetSettings(
            kind="phantom",
            root=tmp_path / "Dataset900_Phantom",
            phantom=PhantomSettings(num_training=3, num_test=0, voxel_mm=12.0),
        ),
        paths=PathsSettings(raw=tmp_path, preprocessed=tmp_path / "preprocessed", runs=tmp_path / "runs"),
        plan=PlanSettings(patch_size=(8, 16, 32), features_per_stage=(4, 8, 8), batch_size=2),
        architecture=UNetSettings(),
        data=DataSettings(prepare_workers=1),
        trainer=TrainerSettings(accelerator="cpu", max_epochs=1),
        logger=LoggerSettings(wandb=False),
    )
    with pytest.raises(UserError, match=r"3 training case\(s\) cannot be split into 5 folds.*fold=all"):
        umamba.train(settings, progress=False)
    assert not list((tmp_path / "preprocessed").rglob("store.json"))
    assert not (tmp_path / "runs").exists()
    assert capsys.readouterr().out == ""
