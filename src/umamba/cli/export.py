"""`umamba export`: a trained U-Net as a folder that nnU-Net predicts with."""

import logging

from umamba.settings import ExportSettings

log = logging.getLogger(__name__)


def main(settings: ExportSettings) -> None:
    """Write the folder, and say how nnU-Net is called.

    Raises:
        UserError: the architecture is none of nnU-Net's, or the fold is there already.
    """
    from umamba.inference.nnunet_export import export_to_nnunet

    folder = export_to_nnunet(settings.checkpoint, settings.output, settings.fold)
    log.info("Exported: %s", folder.absolute())
    log.info(
        "nnUNetv2_predict_from_modelfolder -m %s -f %s -i IMAGES -o SEGMENTATIONS", folder.absolute(), settings.fold
    )
