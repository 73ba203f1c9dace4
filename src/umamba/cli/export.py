"""`umamba export`: write a trained U-Net as a folder that nnU-Net predicts with, or any network to give away."""

import logging
import shlex

from umamba.settings import ExportSettings

log = logging.getLogger(__name__)


def main(settings: ExportSettings) -> None:
    """Write the folder or the file, and show the command that uses it.

    Args:
        settings: the checkpoint, the output and its format.

    Raises:
        UserError: nnU-Net does not have the architecture, the checkpoint names a path that it needs, or the output
            exists already.
    """
    if settings.format == "share":
        _share(settings)
        return
    from umamba.inference.nnunet_export import export_to_nnunet

    folder = export_to_nnunet(settings.checkpoint, settings.output, settings.fold)
    log.info("Exported: %s", folder.absolute())
    log.info(
        "nnUNetv2_predict_from_modelfolder -m %s -f %s -i IMAGES -o SEGMENTATIONS",
        shlex.quote(str(folder.absolute())),
        settings.fold,
    )


def _share(settings: ExportSettings) -> None:
    from umamba.records.share import share_checkpoint

    written, before = share_checkpoint(settings.checkpoint, settings.output), settings.checkpoint
    sizes = (
        ""
        if before.is_dir()
        else f", {written.stat().st_size / 1e6:.3g} MB instead of {before.stat().st_size / 1e6:.3g}"
    )
    log.info(
        "Written to share: %s%s. It names dataset, channels, labels and versions, but no case, path, machine or user.",
        written.absolute(),
        sizes,
    )
    log.info("umamba predict checkpoint=%s input=IMAGES output=SEGMENTATIONS", shlex.quote(str(written)))
