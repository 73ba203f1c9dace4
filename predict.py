"""Segment images with one checkpoint, or with the mean of several, which is all that is needed beside them.

python predict.py checkpoint=runs/NAME/3d_fullres/fold_0/seed_0/checkpoints/last.ckpt input=IMAGES output=DIR
"""

from pathlib import Path

from omegaconf import DictConfig

from umamba.config import PredictionConfig
from umamba.entry import launch, typed


def main(composed: DictConfig) -> None:
    """Load the networks and segment the images."""
    config = typed(composed, PredictionConfig)
    from umamba.inference import PostProcessing, Predictor

    predictor = Predictor.from_checkpoint(
        config.checkpoints(),
        device=config.device,
        precision=None if config.precision == "auto" else config.precision,
        post_processing=PostProcessing.read(Path(config.post_processing)) if config.post_processing else None,
    )
    written = predictor.predict(
        config.input,
        config.output,
        tile_step_size=config.tile_step_size,
        tta=config.tta,
        overwrite=config.overwrite,
        workers=config.workers,
        max_memory_gb=config.max_memory_gb,
        save_probabilities=config.probabilities,
        instances=config.instances,
    )
    print(f"{len(written)} segmentations written to {config.output}")


if __name__ == "__main__":
    launch(main, "predict", Path(__file__).parent / "configs")
