"""Images in and out with their geometry, through SimpleITK: NIfTI, NRRD, MHA, GIPL, PNG, BMP and TIFF;
DICOM in.

The axis order is (C, Z, Y, X) everywhere. 2D files get one slice; following nnU-Net their Z spacing is 999 times the
larger spacing in the plane, so that Z is always the axis of lowest resolution; natural images count as 1 mm a pixel.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.io.decode import decode
from umamba.io.dicom import decode_series, series_files
from umamba.io.errors import StorageError, UserError
from umamba.io.files import atomic_path, storage_errors
from umamba.io.itk import one_at_a_time

_MEDICAL = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
_NATURAL = (".png", ".bmp", ".tif", ".tiff")
# Spacing, origin and direction of the channels of a case may differ by what float32 headers and exporters lose.
_TOLERANCE = 1e-3


def supported_endings() -> tuple[str, ...]:
    """Return the file endings that can be read and written, e.g. `.nii.gz`."""
    return _MEDICAL + _NATURAL


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image lie in the patient.

    Attributes:
        spacing: (Z, Y, X) in mm; Z is 999 times the larger other one for 2D files.
        origin_xyz: origin as SimpleITK gives it: 3 entries, or 2 for a 2D file.
        direction_xyz: direction cosines as SimpleITK gives them, row by row: 9 entries, or 4 for a 2D file.
        shape: (Z, Y, X) in voxels.
        is_2d: the file itself is two-dimensional.
    """

    spacing: tuple[float, float, float]
    origin_xyz: tuple[float, ...]
    direction_xyz: tuple[float, ...]
    shape: tuple[int, int, int]
    is_2d: bool


@dataclass
class Image:
    """Voxels (C, Z, Y, X), dtype as stored in the file, and their geometry."""

    array: np.ndarray
    geometry: Geometry


def _is_natural(path: Path) -> bool:
    return path.name.lower().endswith(_NATURAL)


def _from_sitk(image: sitk.Image, path: Path, time_is_channels: bool = False) -> Image:
    if time_is_channels and image.GetDimension() == 4 and image.GetNumberOfComponentsPerPixel() == 1:
        count = image.GetSize()[3]
        image = sitk.Compose([image[..., index] for index in range(count)]) if count > 1 else image[..., 0]
    dimension, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    if dimension not in (2, 3):
        size = "x".join(map(str, image.GetSize()))
        raise UserError(
            f"{path}: a {dimension}D image of size {size}; images are 2D or 3D. Store channels as one "
            "file per channel (NAME_0000, NAME_0001, ...) or as a 3D image with vector voxels."
        )
    array = sitk.GetArrayFromImage(image)
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        spoilt = array.size - int(np.count_nonzero(np.isfinite(array)))
        raise UserError(f"{path}: {spoilt} voxels are NaN or infinite. Replace them by a real intensity.")
    array = np.moveaxis(array, -1, 0) if components > 1 else array[None]
    is_2d = dimension == 2
    if is_2d:
        array = array[:, None]
        in_plane = (1.0, 1.0) if _is_natural(path) else tuple(reversed(image.GetSpacing()))
        spacing = (999.0 * max(in_plane), in_plane[0], in_plane[1])
    else:
        spacing_x, spacing_y, spacing_z = image.GetSpacing()
        spacing = (spacing_z, spacing_y, spacing_x)
    depth, height, width = array.shape[1:]
    geometry = Geometry(spacing, image.GetOrigin(), image.GetDirection(), (depth, height, width), is_2d)
    return Image(np.ascontiguousarray(array), geometry)


def geometry_difference(first: Geometry, second: Geometry) -> str | None:
    """Say in words what differs between the grids of two images (shape, spacing or direction); None if nothing does.

    The origin is left out: files of one case often carry slightly different ones although their voxels correspond.
    """
    if first.shape != second.shape:
        return f"shape (Z, Y, X) {first.shape} against {second.shape}"
    if not np.allclose(first.spacing, second.spacing, rtol=_TOLERANCE, atol=_TOLERANCE):
        return f"spacing (Z, Y, X) {_round(first.spacing)} against {_round(second.spacing)} mm"
    if first.is_2d != second.is_2d:
        return "a 2D file against a 3D file of one slice"
    if not np.allclose(first.direction_xyz, second.direction_xyz, rtol=0, atol=_TOLERANCE):
        return f"direction {_round(first.direction_xyz)} against {_round(second.direction_xyz)}"
    return None


def _round(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def read_image(paths: Sequence[Path], time_is_channels: bool = False) -> Image:
    """Read one image: a file per channel, in the order given, or a single file with several (vector, RGB) channels.

    In place of a file there may be a folder that holds a DICOM series. With `time_is_channels` the fourth axis of a 4D
    file is taken for its channels; without, such a file is refused.

    Returns an array (C, Z, Y, X) in the dtype stored (the common one, if the channels' files differ). Raises UserError
    naming the file if one is missing, undecodable, truncated or 4D, holds NaN, or if the channels' grids differ.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise UserError("No image file was given: pass one file per channel, or one multi-channel file.")
    parts = [
        _from_sitk(decode_series(path) if path.is_dir() else decode(path), path, time_is_channels) for path in paths
    ]
    for path, part in zip(paths[1:], parts[1:], strict=True):
        difference = geometry_difference(parts[0].geometry, part.geometry)
        if difference:
            raise UserError(
                f"{path}: its grid differs from that of {paths[0].name}: {difference}. Resample the channels of a case "
                "onto one grid."
            )
    array = parts[0].array if len(parts) == 1 else np.concatenate([part.array for part in parts])
    return Image(array, parts[0].geometry)


def voxel_count(paths: Sequence[Path]) -> int:
    """Return the voxels, all channels counted, that the headers of an image's files declare; 0 for unreadable ones."""
    total = 0
    for path in map(Path, paths):
        slices = series_files(path) if path.is_dir() else [path]
        reader = sitk.ImageFileReader()
        reader.SetFileName(os.fspath(slices[0]) if slices else "")
        try:
            with one_at_a_time:
                reader.ReadImageInformation()
        except RuntimeError:
            continue
        total += math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * len(slices)
    return total


def read_label(path: Path) -> Image:
    """Read a label map (1, Z, Y, X), dtype as stored. Raises UserError as `read_image` does, or if it has channels."""
    image = read_image([path])
    if image.array.shape[0] != 1:
        raise UserError(
            f"{path}: a label map has one channel, this file has {image.array.shape[0]} (a colour image?). Store the "
            "label values as a greyscale image."
        )
    return image


def write_segmentation(path: Path, segmentation: np.ndarray, geometry: Geometry) -> None:
    """Write a label map (Z, Y, X) of non-negative integers in the smallest unsigned dtype, atomically.

    Size, spacing, origin and direction are those of `geometry`, bit for bit as far as the format stores them: MHA keeps
    doubles, NRRD too but for a last bit, NIfTI keeps float32 spacing and offsets and derives the direction from float32
    entries, PNG and BMP keep no geometry. Raises UserError for an ending that cannot be written or labels the format
    cannot hold.
    """
    path = Path(path)
    if not path.name.lower().endswith(supported_endings()):
        raise UserError(f"{path}: cannot write this ending. Use one of {', '.join(supported_endings())}.")
    if segmentation.shape != geometry.shape:
        raise ValueError(f"segmentation {segmentation.shape} and geometry {geometry.shape} differ in shape")
    lowest, highest = (int(segmentation.min()), int(segmentation.max())) if segmentation.size else (0, 0)
    if lowest < 0:
        raise ValueError(f"a segmentation holds no negative labels, found {lowest}")
    dtype = next(kind for kind in (np.uint8, np.uint16, np.uint32) if highest <= np.iinfo(kind).max)
    limit = 255 if path.suffix.lower() == ".bmp" else 65535 if _is_natural(path) else None
    if limit is not None and highest > limit:
        raise UserError(f"{path}: label {highest} exceeds {limit}, the most this format holds. Write .nii.gz instead.")
    if _is_natural(path) and not geometry.is_2d and path.suffix.lower() in (".png", ".bmp"):
        raise UserError(f"{path}: this format holds 2D images only. Write .nii.gz instead.")
    voxels = segmentation[0] if geometry.is_2d else segmentation
    image = sitk.GetImageFromArray(voxels.astype(dtype, copy=False))
    image.SetSpacing(tuple(reversed(geometry.spacing[1:] if geometry.is_2d else geometry.spacing)))
    image.SetOrigin(geometry.origin_xyz)
    image.SetDirection(geometry.direction_xyz)
    with storage_errors(path), atomic_path(path) as temporary:
        try:
            with one_at_a_time:
                sitk.WriteImage(image, os.fspath(temporary), useCompression=True)
        except RuntimeError as error:
            raise StorageError(f"{path}: could not be written ({_last_line(error)}). Check space and rights.") from None
        _check_written(temporary, path, image)


def _check_written(temporary: Path, path: Path, image: sitk.Image) -> None:
    """Read back what was written; StorageError if it is not what it should be, for ITK overlooks a full disk."""
    try:
        written = decode(temporary)
    except UserError as error:
        reason = str(error).partition(": ")[2].partition(". ")[0]
        raise StorageError(f"{path}: could not be written ({reason}). Check the space that is left.") from None
    if not np.array_equal(sitk.GetArrayViewFromImage(written), sitk.GetArrayViewFromImage(image)):
        raise StorageError(f"{path}: could not be written, what was read back differs. Check the space that is left.")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
