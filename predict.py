"""Segment images with a checkpoint, which is all that is needed beside them.

python predict.py checkpoint=runs/NAME/3d_fullres/fold_0/seed_0/checkpoints/last.ckpt input=DIR output=DIR
"""

from pathlib import Path

from omegaconf import DictConfig

from umamba.config import PredictionConfig
from umamba.entry import launch, typed


def main(composed: DictConfig) -> None:
    """Load the checkpoint and segment the folder."""
    config = typed(composed, PredictionConfig)
    from umamba.inference import Predictor

    predictor = Predictor.from_checkpoint(Path(config.checkpoint), device=config.device)
    written = predictor.predict_folder(
        Path(config.input),
        Path(config.output),
        tile_step_size=config.tile_step_size,
        tta=config.tta,
        overwrite=config.overwrite,
        workers=config.workers,
    )
    print(f"{len(written)} segmentations written to {config.output}")


if __name__ == "__main__":
    launch(main, "predict", Path(__file__).parent / "configs")
