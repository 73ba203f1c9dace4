"""Whether 104 classes on a CT of 512 x 512 x 600 voxels, not resampled, keep within `max_memory_gb=8`: peak and time.

python benchmarks/prediction_memory.py

All logits at once would take 61 GiB in single precision. Instead of a trained network a cheap one is used, whose logits
are the negative distance of the intensity from each label, because the correct segmentation is then known. Tiles have
128^3 voxels and do not overlap, which shortens the run but takes the same memory. The image is read from a file, and
the segmentation is written to one.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from preprocessing import machine
from torch import Tensor, nn

from umamba.inference import Model, Predictor
from umamba.io.resources import peak_resident_bytes
from umamba.labels import LabelSet
from umamba.planning import Configuration, Plan
from umamba.settings import PredictionSettings

CLASSES, ORDER = 104, (0, 1, 2)


class Bands(nn.Module):
    """A network without weights: the logit of a label is its negative distance from the intensity."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, Z, Y, X) to logits (B, CLASSES, Z, Y, X) in bfloat16."""
        logits = torch.empty((len(x), CLASSES, *x.shape[2:]), dtype=torch.bfloat16)
        for label in range(CLASSES):
            torch.sub(x[:, 0], label, out=logits[:, label]).abs_().neg_()
        return logits


def band_model(patch: int) -> Model:
    """Return the cheap network with a plan that resamples nothing.

    Args:
        patch: voxels of a tile along each axis.
    """
    configuration = Configuration(
        name="3d_fullres",
        spacing=(1.0,) * 3,
        median_shape=(512.0,) * 3,
        patch_size=(patch,) * 3,
        batch_size=2,
        batch_dice=False,
        normalization=("NoNormalization",),
        use_mask_for_norm=(False,),
        strides=((1,) * 3,),
        kernel_sizes=((3,) * 3,),
        features_per_stage=(4,),
        encoder_blocks=(1,),
        decoder_blocks=(),
        residual_encoder=False,
    )
    spacing = (1.0, 1.0, 1.0)
    plan = Plan("Dataset902_Large", "nnunet", ORDER, ORDER, spacing, (512.0,) * 3, (), {"3d_fullres": configuration})
    labels = LabelSet(tuple(f"label {k}" for k in range(1, CLASSES)), tuple((k,) for k in range(1, CLASSES)))
    return Model(Bands(), plan, configuration, labels, 1, torch.device("cpu"), precision="bf16-mixed")


def main() -> None:
    """Write the image, segment it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-memory-gb", type=float, default=8.0)
    parser.add_argument("--size", type=int, nargs=3, default=(600, 512, 512), help="voxels along Z, Y, X")
    parser.add_argument("--patch", type=int, default=128)
    arguments = parser.parse_args()
    shape = tuple(arguments.size)
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        z, y, x = (np.arange(length) // 16 for length in shape)
        truth = ((z[:, None, None] * 7 + y[:, None] * 3 + x) % (CLASSES - 1) + 1).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(truth.astype(np.int16)), f"{folder}/ct.nii.gz", useCompression=True)
        del truth
        start = time.perf_counter()
        settings = PredictionSettings(tile_step_size=1.0, max_memory_gb=arguments.max_memory_gb)
        predictor = Predictor((band_model(arguments.patch),))
        (written,) = predictor.predict(f"{folder}/ct.nii.gz", f"{folder}/out", settings)
        seconds, peak = time.perf_counter() - start, peak_resident_bytes() / 2**30
        found, truth = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (written, Path(folder) / "ct.nii.gz"))
    print(f"{machine()}, PyTorch {torch.__version__}")
    print(
        f"{CLASSES} classes, {' x '.join(map(str, shape))} voxels, max_memory_gb={arguments.max_memory_gb:g}: peak "
        f"{peak:.2f} GiB of the whole process, {seconds:.0f} s, {100 * (found == truth).mean():.4f} % of voxels right"
    )


if __name__ == "__main__":
    main()
