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

    prepared = prepare(config, config.explain, Path(config.nnunet_plans) if config.nnunet_plans else None)
    if config.preview:
        from umamba.patches.preview import draw_preview

        name = f"patches_{prepared.configuration.name}.png"
        path = Path(config.paths.preprocessed) / prepared.dataset.name / name
        labels = prepared.dataset.labels
        draw_preview(prepared.store, prepared.configuration, labels, config.augmentation, path, seed=config.seed)
        print(f"Augmented patches: {path.absolute()}")


if __name__ == "__main__":
    launch(main, "prepare", Path(__file__).parent / "configs")
