"""Export a trained U-Net (unet, resenc_unet) to a folder that nnU-Net predicts with.

python export.py checkpoint=runs/NAME/3d_fullres/fold_0/seed_0/checkpoints/last.ckpt output=DIR
"""

from pathlib import Path

from omegaconf import DictConfig

from umamba.config import ExportConfig
from umamba.entry import launch, typed


def main(composed: DictConfig) -> None:
    """Write the folder, and say how nnU-Net is called."""
    config = typed(composed, ExportConfig)
    from umamba.inference.to_nnunet import export_to_nnunet

    folder = export_to_nnunet(Path(config.checkpoint), Path(config.output), config.fold)
    print(f"Exported: {folder.absolute()}")
    print(f"nnUNetv2_predict_from_modelfolder -m {folder.absolute()} -f {config.fold} -i IMAGES -o SEGMENTATIONS")


if __name__ == "__main__":
    launch(main, "export", Path(__file__).parent / "configs")
