"""A trained network as a folder that ONNX Runtime predicts with, without PyTorch and without this project.

model.onnx        the network for one tile, float32
model.json        what happens before and after it (docs/exporting.md)
umamba_onnx.py    all of these steps, with numpy, scipy and ONNX Runtime
predict_onnx.py   a script that segments NIfTI files with it
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import umamba
from umamba.inference.exported_heads import refuse_heads
from umamba.inference.forward import full_resolution
from umamba.inference.model import Model
from umamba.inference.onnx_package import require_onnx
from umamba.inference.onnx_standalone import DESCRIPTION_FILE, FORMAT, MODEL_FILE, VERSION, Description
from umamba.inference.postprocessing import PostProcessing
from umamba.inference.tiling import SIGMA
from umamba.io import UserError, atomic_directory, file_digest, write_json
from umamba.records import read_checkpoint
from umamba.records.checkpoint import CheckpointRecord
from umamba.settings import SlidingWindowSettings

SCRIPT_FILE = "predict_onnx.py"
# Files of this folder that travel with the model -> their names there.
_TRAVELLING = {"onnx_standalone.py": "umamba_onnx.py", "onnx_script.py": SCRIPT_FILE}
TOLERANCE = 1e-3  # between the logits, as a fraction of the largest one where that is above 1
_TILES = 2  # random tiles that are compared


@dataclass(frozen=True)
class OnnxExport:
    """An exported network and how it was checked.

    Attributes:
        folder: holds the files.
        sha256: of the model.
        size: of the model, bytes.
        difference: largest difference between the logits of ONNX Runtime and PyTorch for random tiles.
        largest: largest logit of these tiles, without its sign.
        equal_labels: share of the voxels of these tiles that have the same label.
    """

    folder: Path
    sha256: str
    size: int
    difference: float
    largest: float
    equal_labels: float


def export_to_onnx(
    checkpoint: Path,
    output: Path,
    post_processing: PostProcessing | None = None,
    trust: str | Sequence[str] = (),
    *,
    segmentation_only: bool = False,
) -> OnnxExport:
    """Write a network as ONNX, compare its logits with PyTorch's, and describe what happens before and after it.

    Nothing is written if the logits differ. The same checkpoint gives the same model, byte for byte.

    Args:
        checkpoint: of a run, of nnU-Net or of U-Mamba.
        output: the new folder; an empty one is replaced.
        post_processing: what the description tells to do with each segmentation; None: nothing.
        trust: packages whose functions may build the network, if it is none of this project's.
        segmentation_only: leave out a classification head.

    Raises:
        UserError: onnx or onnxruntime is not installed, the checkpoint cannot be read or has a classification head, the
            output exists already, the network has operations that cannot be written, or the logits differ.
    """
    require_onnx()
    from umamba.inference.onnx_builder import UnexportableError
    from umamba.inference.onnx_graph import onnx_logits, onnx_model

    output = Path(output)
    if os.path.lexists(output) and (output.is_symlink() or not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists already. Delete it, or give another output.")
    read = read_checkpoint(checkpoint, trust)
    record = read.record
    if record.configuration.previous_stage is not None:
        raise UserError(
            f"{checkpoint}: is the second stage of a cascade, whose input needs the segmentation of the first, "
            f"{record.configuration.previous_stage}. Export that one, or predict with umamba predict."
        )
    refuse_heads(checkpoint, record, segmentation_only)
    model = Model.from_checkpoint(checkpoint, torch.device("cpu"), "32-true", trust, "torch")
    shape = (1, model.num_channels, *model.configuration.patch_size)
    tiles = np.random.default_rng(0).standard_normal((_TILES, *shape)).astype(np.float32)
    with torch.inference_mode():
        expected = np.stack([full_resolution(model.network(torch.from_numpy(tile))).numpy() for tile in tiles])
    try:
        proto = onnx_model(model.network, shape, umamba.__version__)
    except UnexportableError as error:
        raise UserError(
            f"{checkpoint}: the network {record.architecture.name} cannot be exported to ONNX: {error}. Predict with "
            "umamba predict instead."
        ) from None
    content = proto.SerializeToString(deterministic=True)
    found = np.stack([onnx_logits(content, tile) for tile in tiles])
    difference, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if not difference <= TOLERANCE * max(1.0, largest):
        raise UserError(
            f"{checkpoint}: the logits of ONNX Runtime differ from PyTorch's by {difference:.3g} (the largest is "
            f"{largest:.3g}), so nothing was written. Check the versions of onnx and onnxruntime, and report this."
        )
    if model.labels.has_regions:
        equal = float(np.mean((found > 0) == (expected > 0)))
    else:
        equal = float(np.mean(found.argmax(2) == expected.argmax(2)))
    digest = hashlib.sha256(content).hexdigest()
    description = describe(record, digest, file_digest(read.path), post_processing)
    with atomic_directory(output) as folder:
        (folder / MODEL_FILE).write_bytes(content)
        write_json(folder / DESCRIPTION_FILE, description)
        for source, name in _TRAVELLING.items():
            (folder / name).write_bytes(Path(__file__).with_name(source).read_bytes())
        Description.read(folder / DESCRIPTION_FILE)  # what is written can be read
    return OnnxExport(output, digest, len(content), difference, largest, equal)


def describe(
    record: CheckpointRecord, sha256: str, checkpoint: str, post_processing: PostProcessing | None
) -> dict[str, Any]:
    """Return the content of model.json; docs/exporting.md explains its entries.

    Args:
        record: of the checkpoint.
        sha256: of the model.
        checkpoint: hash of the checkpoint.
        post_processing: steps after the decision; None: none.
    """
    plan, configuration, labels = record.plan, record.configuration, record.labels
    intensities = dict(enumerate(plan.intensity))
    names = ("mean", "std", "percentile_00_5", "percentile_99_5")
    channels = [
        {
            "name": name,
            "normalization": scheme,
            "use_mask": mask,
            "intensity": {key: getattr(intensities[number], key) for key in names} if number in intensities else None,
        }
        for number, (name, scheme, mask) in enumerate(
            zip(record.channel_names, configuration.normalization, configuration.use_mask_for_norm, strict=True)
        )
    ]
    mirrored = range(configuration.dim) if record.mirror_axes is None else record.mirror_axes
    regions = labels.region_order
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {"sha256": sha256, "made_by": f"umamba {umamba.__version__}", "checkpoint": checkpoint},
        "channels": channels,
        "file_ending": record.file_ending,
        "preprocessing": {
            "orientation": "as stored" if plan.reader is None else "RAS",
            "transpose_forward": list(plan.transpose_forward),
            "transpose_backward": list(plan.transpose_backward),
            "spacing": list(configuration.spacing),
        },
        "tiling": {
            "patch_size": list(configuration.patch_size),
            "tile_step_size": SlidingWindowSettings().tile_step_size,
            "sigma": SIGMA,
            "mirror_axes": list(mirrored),
        },
        "decision": {
            "kind": "highest" if regions is None else "regions",
            "values": list(range(labels.num_classes)) if regions is None else list(regions),
        },
        "labels": labels.to_json(),
        "post_processing": {
            "keep_largest_component": [list(step) for step in (post_processing.steps if post_processing else ())]
        },
    }
