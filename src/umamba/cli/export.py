"""`umamba export`: write a trained U-Net as a folder that nnU-Net predicts with."""

import logging
import shlex

from umamba.settings import ExportSettings

log = logging.getLogger(__name__)


def main(settings: ExportSettings) -> None:
    """Write the folder, and show the command by which nnU-Net uses it.

    Args:
        settings: the checkpoint, the folder and the fold.

    Raises:
        UserError: nnU-Net does not have the architecture, or the fold exists already.
    """
    from umamba.inference.nnunet_export import export_to_nnunet

    folder = export_to_nnunet(settings.checkpoint, settings.output, settings.fold)
    log.info("Exported: %s", folder.absolute())
    log.info(
        "nnUNetv2_predict_from_modelfolder -m %s -f %s -i IMAGES -o SEGMENTATIONS",
        shlex.quote(str(folder.absolute())),
        settings.fold,
    )
