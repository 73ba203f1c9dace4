"""Train one network on one dataset, then predict, score and draw its test images.

python train.py experiment=quickstart
python train.py dataset=nnunet dataset.root=PATH architecture=umamba_enc plan=3d_fullres fold=0
"""

from pathlib import Path

from omegaconf import DictConfig

from umamba.config import TrainConfig
from umamba.entry import launch, quiet_unless_first, typed
from umamba.smoke import smoke_test


def main(composed: DictConfig) -> None:
    """Prepare the dataset, then do the run."""
    quiet_unless_first()
    config = typed(composed, TrainConfig)
    if config.smoke:
        config = smoke_test(config)
    # Heavy imports come after the configuration is known to be right, so that a mistake answers at once.
    from umamba.pipeline import prepare, run_folder

    prepared = prepare(config)
    from umamba.run import run_training
    from umamba.training.run_folder import RunFolder

    run_training(config, prepared, RunFolder(run_folder(config, prepared)))


if __name__ == "__main__":
    launch(main, "train", Path(__file__).parent / "configs")
