"""Prepare a dataset without training: fingerprint, plan (printed as a table), preprocessed cases.

python prepare.py dataset=nnunet dataset.root=PATH plan=3d_fullres
"""

from pathlib import Path

from omegaconf import DictConfig

from umamba.config import TrainConfig
from umamba.entry import launch, typed


def main(composed: DictConfig) -> None:
    """Do everything that train.py does before it trains."""
    config = typed(composed, TrainConfig)
    from umamba.pipeline import prepare

    prepare(config)


if __name__ == "__main__":
    launch(main, "prepare", Path(__file__).parent / "configs")
