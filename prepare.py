"""Prepare a dataset without training: fingerprint, plan (printed as a table), preprocessed cases.

python prepare.py dataset=nnunet dataset.root=PATH plan=3d_fullres explain=true
"""

from pathlib import Path

from omegaconf import DictConfig

from umamba.config import PrepareConfig
from umamba.entry import launch, typed
from umamba.smoke import smoke_test


def main(composed: DictConfig) -> None:
    """Do everything that train.py does before it trains."""
    config = typed(composed, PrepareConfig)
    if config.smoke:
        config = smoke_test(config)
    from umamba.pipeline import prepare

    prepare(config, config.explain, Path(config.nnunet_plans) if config.nnunet_plans else None)


if __name__ == "__main__":
    launch(main, "prepare", Path(__file__).parent / "configs")
