#!/usr/bin/env python3
"""Segment an image in NIfTI files with the network in this folder; PyTorch is not needed.

    pip install numpy scipy onnxruntime nibabel
    python predict_onnx.py CASE_0000.nii.gz CASE_0001.nii.gz --output SEGMENTATION.nii.gz

Give a file of each channel, in the order of the channels in model.json. `umamba export format=onnx` writes this script
beside umamba_onnx.py, which does the work. Only the functions import it, because this name exists in that folder only.
"""

import argparse
import gzip
import os
import secrets
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


def check_whole(path: Path) -> None:
    """Read a compressed file to its end, where its checksum is, which the reader of NIfTI leaves out.

    Args:
        path: the file.

    Raises:
        OSError: the checksum is wrong, or the file is cut (EOFError).
        zlib.error: the compressed data is damaged.
    """
    with open(path, "rb") as raw:
        if raw.read(2) != b"\x1f\x8b":
            return
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


def segment_files(segmenter: Any, paths: Sequence[Path], step: float | None, mirror: bool) -> Any:
    """Segment an image in NIfTI files and return the label map as a NIfTI image on the grid of the first file.

    Args:
        segmenter: the network, a `umamba_onnx.Segmenter`.
        paths: a file of each channel; or one file of all channels.
        step: see `Segmenter.segment`.
        mirror: see `Segmenter.segment`.

    Raises:
        ModelError: a file cannot be read, or the image does not fit the network.
    """
    import nibabel as nib
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
    from umamba_onnx import ModelError

    parts: list[np.ndarray] = []
    first: Any = None
    for path in paths:
        try:
            image: Any = nib.load(path)
            voxels = np.asanyarray(image.dataobj)
            check_whole(path)
        except (OSError, ValueError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
            raise ModelError(f"{path}: cannot be read as NIfTI ({error}). Convert it to .nii.gz.") from None
        if voxels.dtype.kind not in "biuf":
            raise ModelError(f"{path}: holds {voxels.dtype} voxels. Give one real number for each voxel.")
        while voxels.ndim > 3 and voxels.shape[-1] == 1:
            voxels = voxels[..., 0]
        if voxels.ndim == 5 and voxels.shape[3] == 1:
            parts += list(np.moveaxis(voxels[:, :, :, 0], -1, 0))
        elif voxels.ndim in (2, 3):
            parts.append(voxels)
        else:
            raise ModelError(f"{path}: has {voxels.ndim} axes; give a file of each channel with 2 or 3.")
        if first is None:
            first = image
        elif parts[-1].shape != parts[0].shape or not np.allclose(image.affine, first.affine, atol=1e-3):
            raise ModelError(f"{path}: its grid differs from that of {paths[0]}. Resample the channels onto one grid.")
    flat = parts[0].ndim == 2
    if flat and len(segmenter.description.patch_size) == 3:
        raise ModelError(f"{paths[0]}: is two-dimensional, and the network sees volumes. Give the volume.")
    array = np.stack([part[..., None] if flat else part for part in parts])
    unit = _MILLIMETRES.get(first.header.get_xyzt_units()[0], 1.0)
    spacing = [unit * float(length) for length in first.header.get_zooms()[: parts[0].ndim]]
    if flat:
        spacing.append(999 * max(spacing))
    turn = io_orientation(first.affine) if segmenter.description.turn_to_ras and not flat else None
    if segmenter.description.turn_to_ras and flat:
        raise ModelError(f"{paths[0]}: is two-dimensional, and the network wants images turned to RAS. Give a volume.")
    if turn is not None:
        array = np.stack([apply_orientation(part, turn) for part in array])
        spacing = [spacing[axis] for axis in np.argsort(turn[:, 0])]
    labels = segmenter.segment(array.transpose(0, 3, 2, 1), spacing[::-1], step, mirror).transpose(2, 1, 0)
    if turn is not None:
        labels = apply_orientation(labels, ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), turn))
    header = first.header.copy()
    header.set_data_dtype(labels.dtype)
    header.set_slope_inter(1, 0)
    header.set_intent("none")
    return nib.Nifti1Image(labels[..., 0] if flat else labels, first.affine, header)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    from umamba_onnx import ModelError, Segmenter

    parser = argparse.ArgumentParser(description="Segment an image with an exported network, without PyTorch.")
    parser.add_argument("images", nargs="+", type=Path, help="NIfTI files, one for each channel, in their order")
    parser.add_argument("--output", required=True, type=Path, help="the segmentation, .nii or .nii.gz")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent, help="folder of model.onnx and model.json")
    parser.add_argument("--step", type=float, help="largest step between tiles as a fraction of the patch")
    parser.add_argument("--mirror", action="store_true", help="also average over mirrored images")
    parser.add_argument("--threads", type=int, help="CPU threads")
    given = parser.parse_args(arguments)
    ending = next((end for end in (".nii.gz", ".nii") if given.output.name.endswith(end)), None)
    try:
        if ending is None:
            raise ModelError(f"--output {given.output}: must end in .nii or .nii.gz.")
        if given.threads is not None and given.threads < 1:
            raise ModelError(f"--threads {given.threads}: must be 1 or more.")
        segmentation = segment_files(Segmenter(given.model, given.threads), given.images, given.step, given.mirror)
        aside = given.output.with_name(f".{given.output.name}.{secrets.token_hex(6)}.partial{ending}")
        try:
            segmentation.to_filename(aside)
            os.replace(aside, given.output)
        finally:
            aside.unlink(missing_ok=True)
    except (ModelError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
