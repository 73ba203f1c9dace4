"""A small prepared phantom, and runs of it in this process: configurations by overrides, as on the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from umamba.config import TrainConfig
from umamba.entry import composed, typed
from umamba.pipeline import Prepared, prepare
from umamba.run import checkpoint_record
from umamba.training.run_folder import RunFolder

SMALL = [
    "dataset=phantom",
    "dataset.phantom.num_training=5",
    "dataset.phantom.num_test=0",
    "+dataset.phantom.voxel_mm=8.0",
    "architecture=unet",
    "plan.patch_size=[8,16,16]",
    "plan.features_per_stage=[4,8,8]",
    "plan.strides=[[1,1,1],[1,2,2],[2,2,2]]",
    "plan.kernel_sizes=[[3,3,3],[3,3,3],[3,3,3]]",
    "plan.encoder_blocks=[1,1,1]",
    "plan.decoder_blocks=[1,1]",
    "plan.batch_size=2",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "data.num_workers=0",
    "data.prepare_workers=1",
    "augmentation=none",
    "logger=csv",
    "logger.panels_every=0",
]


@pytest.fixture(scope="session")
def small_settings() -> list[str]:
    """Return the overrides of the small runs."""
    return list(SMALL)


@pytest.fixture(scope="session")
def small_paths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the phantom and its prepared cases."""
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="session")
def make_config(small_paths: Path, project_dir: Path) -> Callable[..., TrainConfig]:
    """Return a maker of configurations from overrides."""

    def make(*overrides: str) -> TrainConfig:
        paths = [f"paths.{name}={small_paths / name}" for name in ("raw", "preprocessed", "runs")]
        return typed(composed([*SMALL, *paths, *overrides], "train", project_dir / "configs"), TrainConfig)

    return make


@pytest.fixture(scope="session")
def prepared(make_config: Callable[..., TrainConfig]) -> Prepared:
    """Return the prepared phantom."""
    return prepare(make_config())


@pytest.fixture
def small_fit(make_config: Callable[..., TrainConfig], prepared: Prepared, tmp_path: Path) -> Callable[..., RunFolder]:
    """Return a function that trains in a folder of that name and returns it; `cases=None`: with the plan overridden."""
    from umamba.fitting import fit

    def run(*overrides: str, name: str = "run", cases: Any = prepared) -> RunFolder:
        config = make_config(*overrides)
        cases = prepare(config) if cases is None else cases
        folder = RunFolder(tmp_path / name)
        with folder.lock():
            fit(config, cases, folder, checkpoint_record(config, cases))
        return folder

    return run
