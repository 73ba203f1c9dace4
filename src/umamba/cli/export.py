"""`umamba export`: write a trained network for nnU-Net, to give away, or as ONNX."""

import logging
import shlex

from umamba.settings import ExportSettings

log = logging.getLogger(__name__)


def main(settings: ExportSettings) -> None:
    """Write the folder or the file, and show the command that uses it.

    Args:
        settings: the checkpoint, the output and its format.

    Raises:
        UserError: nnU-Net does not have the architecture, the checkpoint names a path that it needs, ONNX cannot hold
            the network, or the output exists already.
    """
    if settings.format == "share":
        _share(settings)
        return
    if settings.format == "onnx":
        _onnx(settings)
        return
    from umamba.inference.nnunet_export import export_to_nnunet

    folder = export_to_nnunet(
        settings.checkpoint, settings.output, settings.fold, segmentation_only=settings.segmentation_only
    )
    log.info("Exported: %s", folder.absolute())
    log.info(
        "nnUNetv2_predict_from_modelfolder -m %s -f %s -i IMAGES -o SEGMENTATIONS",
        shlex.quote(str(folder.absolute())),
        settings.fold,
    )


def _share(settings: ExportSettings) -> None:
    from umamba.records import find_checkpoint
    from umamba.records.share import share_checkpoint

    written = share_checkpoint(settings.checkpoint, settings.output)
    sizes = [file.stat().st_size / 1e6 for file in (written, find_checkpoint(settings.checkpoint))]
    log.info(
        "Written to share: %s, %.3g MB instead of %.3g. It names dataset, channels, labels and versions, but no case, "
        "path, machine or user.",
        *(written.absolute(), *sizes),
    )
    log.info("umamba predict checkpoint=%s input=IMAGES output=SEGMENTATIONS", shlex.quote(str(written)))


def _onnx(settings: ExportSettings) -> None:
    from umamba.inference.onnx_export import SCRIPT_FILE, export_to_onnx
    from umamba.inference.postprocessing import PostProcessing

    steps = None if settings.post_processing is None else PostProcessing.read(settings.post_processing)
    written = export_to_onnx(
        settings.checkpoint, settings.output, steps, settings.trust, segmentation_only=settings.segmentation_only
    )
    log.info("Exported: %s (%.3g MB, sha256 %s)", written.folder.absolute(), written.size / 1e6, written.sha256)
    log.info(
        "Checked with ONNX Runtime: logits of random tiles differ from PyTorch's by at most %.2g, where the largest is "
        "%.3g; %.4g %% of the labels are equal.",
        *(written.difference, written.largest, 100 * written.equal_labels),
    )
    script = shlex.quote(str(written.folder / SCRIPT_FILE))
    log.info("pip install numpy scipy onnxruntime nibabel")
    log.info("python %s IMAGE_0000.nii.gz --output SEGMENTATION.nii.gz", script)
