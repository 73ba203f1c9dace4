"""Read and write images with their geometry through SimpleITK: NIfTI, NRRD, MHA, GIPL, PNG, BMP, TIFF; read DICOM.

The axis order is (C, Z, Y, X) everywhere. A 2D file becomes one slice. As in nnU-Net, its Z spacing is 999 times the
larger in-plane spacing, so that Z is always the axis of lowest resolution. Pixels of natural images count as 1 mm.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.io.bounds import check_regular, check_spacing
from umamba.io.decode import decode, nonfinite_error
from umamba.io.dicom_mark import is_dicom
from umamba.io.errors import UserError
from umamba.io.files import storage_errors
from umamba.io.headers import layout_of
from umamba.io.itk import one_at_a_time
from umamba.io.nifti import ENDINGS as NIFTI_ENDINGS
from umamba.io.nifti import read_header
from umamba.io.nifti_header import SKEWED
from umamba.io.orientation import Turn, axis_letters, is_orthonormal, turn_between, turn_to_ras
from umamba.io.tiff import declared_tiff_voxels, is_tiff
from umamba.io.tiff_spacing import TIFF_ENDINGS, write_spacing
from umamba.io.write import write_image

_MEDICAL = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
NATURAL_ENDINGS = (".png", ".bmp", ".tif", ".tiff")
# Spacing (relative) and direction of the channels of a case may differ by this, because headers round them.
_TOLERANCE = 1e-3
# Larger intensities are no image: their squares, which normalisation sums up, come near the end of float32.
LARGEST_INTENSITY = 1e18


def supported_endings() -> tuple[str, ...]:
    """Return the endings of the file formats that can be read and written, such as ".nii.gz"."""
    return _MEDICAL + NATURAL_ENDINGS


@dataclass(frozen=True)
class Geometry:
    """The position of an image's voxels in the patient.

    Attributes:
        spacing: (Z, Y, X) in mm; for a 2D file, Z is 999 times the larger in-plane spacing.
        origin_xyz: origin in mm as SimpleITK gives it: 3 entries, or 2 for a 2D file.
        direction_xyz: direction cosines as SimpleITK gives them, row by row: 9 entries, or 4 for a 2D file.
        shape: (Z, Y, X) in voxels.
        is_2d: whether the file is two-dimensional.
    """

    spacing: tuple[float, float, float]
    origin_xyz: tuple[float, ...]
    direction_xyz: tuple[float, ...]
    shape: tuple[int, int, int]
    is_2d: bool


@dataclass
class Image:
    """An image in memory.

    Attributes:
        array: voxels (C, Z, Y, X) in the dtype of the file.
        geometry: their position in the patient.
    """

    array: np.ndarray
    geometry: Geometry


def _is_natural(path: Path) -> bool:
    return path.name.lower().endswith(NATURAL_ENDINGS)


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
    _check_values(path, array)
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
    _check_geometry(path, geometry)
    return Image(np.ascontiguousarray(array), geometry)


def _check_values(path: Path, array: np.ndarray) -> None:
    """Raise UserError if voxels are complex, not finite, or too large to compute with in float32."""
    if np.iscomplexobj(array):
        raise UserError(f"{path}: holds complex numbers. Store their magnitude.")
    if np.issubdtype(array.dtype, np.integer) and array.dtype.itemsize < 8:
        return
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not math.isfinite(low) or not math.isfinite(high):  # NaN is both minimum and maximum
        raise nonfinite_error(path, array.size - int(np.count_nonzero(np.isfinite(array))))
    if max(-low, high) > LARGEST_INTENSITY:
        count = int(np.count_nonzero((array > LARGEST_INTENSITY) | (array < -LARGEST_INTENSITY)))
        raise UserError(
            f"{path}: {count} voxels are beyond +-{LARGEST_INTENSITY:g} ({low:.4g} to {high:.4g}), which cannot be "
            "computed with in float32; they usually mark missing data. Replace them by a real intensity."
        )


def _check_geometry(path: Path, geometry: Geometry) -> None:
    """Raise UserError if the spacing is not positive, or the axes are not perpendicular."""
    check_spacing(path, geometry.spacing[1:] if geometry.is_2d else geometry.spacing)
    size = len(geometry.origin_xyz)
    if not is_orthonormal(np.reshape(geometry.direction_xyz, (size, size))):
        raise UserError(f"{path}: direction: the axes are not perpendicular unit vectors. {SKEWED}")


def geometry_difference(first: Geometry, second: Geometry) -> str | None:
    """Describe how the grids of two images differ in shape, spacing or direction.

    The origin is not compared, because files of one case often have slightly different ones although their voxels
    correspond.

    Args:
        first: geometry of one image.
        second: geometry of the other.

    Returns:
        The difference in words, or None if there is none.
    """
    if first.shape != second.shape:
        return f"shape (Z, Y, X) {first.shape} against {second.shape}"
    if not np.allclose(first.spacing, second.spacing, rtol=_TOLERANCE, atol=0):
        return f"spacing (Z, Y, X) {_round(first.spacing)} against {_round(second.spacing)} mm"
    if first.is_2d != second.is_2d:
        return "a 2D file against a 3D file of one slice"
    if not np.allclose(first.direction_xyz, second.direction_xyz, rtol=0, atol=_TOLERANCE):
        return f"direction {_round(first.direction_xyz)} against {_round(second.direction_xyz)}"
    return None


def _round(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in values)


def turned(image: Image, turn: Turn) -> Image:
    """Return an image with its axes in another order and direction; it shows the same at every place of the patient.

    Args:
        image: a 3D image.
        turn: what becomes of the axes.

    Returns:
        The image; its voxels are a view of those given.
    """
    return Image(turn.of(image.array), turned_geometry(image.geometry, turn))


def turned_geometry(geometry: Geometry, turn: Turn) -> Geometry:
    """Return the geometry of an image after a turn of its axes.

    Args:
        geometry: of a 3D image.
        turn: what becomes of the axes.
    """
    direction = np.reshape(geometry.direction_xyz, (3, 3))[:, ::-1]  # columns in the order (Z, Y, X)
    origin = np.array(geometry.origin_xyz)
    for axis, flip in zip(turn.axes, turn.flipped, strict=True):
        if flip:
            origin = origin + direction[:, axis] * geometry.spacing[axis] * (geometry.shape[axis] - 1)
    signs = [-1.0 if flip else 1.0 for flip in turn.flipped]
    first, second, third = turn.axes
    return Geometry(
        spacing=(geometry.spacing[first], geometry.spacing[second], geometry.spacing[third]),
        origin_xyz=tuple(origin.tolist()),
        direction_xyz=tuple((direction[:, turn.axes] * signs)[:, ::-1].ravel().tolist()),
        shape=(geometry.shape[first], geometry.shape[second], geometry.shape[third]),
        is_2d=False,
    )


def orientation_of(geometry: Geometry) -> str | None:
    """Return the orientation in which an image is stored: the directions of its X, Y and Z axes, such as "RAS".

    Args:
        geometry: of the image.

    Returns:
        Three letters as nibabel and ITK-SNAP name them; None for a 2D image.
    """
    return None if geometry.is_2d else "".join(reversed(axis_letters(geometry.direction_xyz)))


def ras_turn(geometry: Geometry) -> Turn:
    """Return the turn that brings an image to nnU-Net's RAS orientation (NibabelIOWithReorient).

    Args:
        geometry: of the image.

    Raises:
        UserError: the image is two-dimensional.
    """
    if geometry.is_2d:
        raise UserError(
            "the reader NibabelIOWithReorient of the dataset or network turns 3D images to RAS; this image is 2D. "
            "Store it as a volume of one slice, or take the key out of dataset.json or plans.json."
        )
    return turn_to_ras(geometry.direction_xyz)


def read_image(paths: Sequence[Path], time_is_channels: bool = False, turn_channels: bool = False) -> Image:
    """Read one image.

    Args:
        paths: one file per channel, in channel order, or a single file with all channels (vector voxels, RGB). A
            folder with a DICOM series may take the place of a file.
        time_is_channels: read the fourth axis of a 4D file as its channels. Otherwise a 4D file is refused.
        turn_channels: turn channels that are stored in another orientation to that of the first file. Otherwise they
            are refused.

    Returns:
        Voxels (C, Z, Y, X) in the dtype of the file (the common dtype, if the files differ), and their geometry.

    Raises:
        UserError: a file is missing, undecodable, truncated or 4D; holds NaN, infinity or values beyond 1e18; has a
            spacing that is not positive or skewed axes; or the grids of the channels differ.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise UserError("No image file was given: pass one file per channel, or one multi-channel file.")
    parts = [
        _from_sitk(_decode_series(path) if path.is_dir() else decode(path), path, time_is_channels) for path in paths
    ]
    if turn_channels:
        parts[1:] = [_turned_like(part, parts[0]) for part in parts[1:]]
    for path, part in zip(paths[1:], parts[1:], strict=True):
        difference = geometry_difference(parts[0].geometry, part.geometry)
        if difference:
            raise UserError(
                f"{path}: its grid differs from that of {paths[0].name}: {difference}. Resample the channels of a case "
                "onto one grid."
            )
    array = parts[0].array if len(parts) == 1 else np.concatenate([part.array for part in parts])
    return Image(array, parts[0].geometry)


def _decode_series(folder: Path) -> sitk.Image:
    from umamba.io.dicom import decode_series  # pydicom takes a while to load

    return decode_series(folder)


def _turned_like(part: Image, first: Image) -> Image:
    if part.geometry.is_2d or first.geometry.is_2d:
        return part
    image = turned(part, turn_between(part.geometry.direction_xyz, first.geometry.direction_xyz))
    return Image(np.ascontiguousarray(image.array), image.geometry)


def oriented_like(image: Image, other: Geometry) -> Image:
    """Turn an image to the orientation of another, if both then lie at the same place of the patient.

    An image whose header has merely lost its direction would lie elsewhere after the turn, so it is not turned.

    Args:
        image: the image.
        other: geometry of the other.

    Returns:
        The turned image, or the image itself if it has that orientation already or does not belong there.
    """
    own = image.geometry
    if orientation_of(own) == orientation_of(other) or own.is_2d or other.is_2d:
        return image
    found = turned(image, turn_between(own.direction_xyz, other.direction_xyz))
    apart = float(np.linalg.norm(np.subtract(found.geometry.origin_xyz, other.origin_xyz)))
    same = geometry_difference(found.geometry, other) is None and apart < min(other.spacing) / 10
    return Image(np.ascontiguousarray(found.array), found.geometry) if same else image


def voxel_count(paths: Sequence[Path]) -> int:
    """Return how many voxels an image has over all its channels, read from the headers of its files.

    Args:
        paths: the files of one image, as for `read_image`. A file whose header cannot be read counts 0.
    """
    total = 0
    for path in map(Path, paths):
        if path.is_dir() or is_dicom(path) or is_tiff(path):
            from umamba.io.dicom import declared_voxels

            total += declared_tiff_voxels(path) if is_tiff(path) else declared_voxels(path)
            continue
        if path.name.lower().endswith(NIFTI_ENDINGS):
            try:
                header = read_header(path)
            except UserError:
                continue
            total += math.prod(header.shape_xyz) * header.components
            continue
        try:
            check_regular(path)  # ITK would wait for the writer of a pipe
            layout = layout_of(path)
        except UserError:
            continue
        if layout is not None:
            total += layout.numbers
            continue
        reader = sitk.ImageFileReader()
        reader.SetFileName(os.fspath(path))
        try:
            with one_at_a_time:
                reader.ReadImageInformation()
        except RuntimeError:
            continue
        total += math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    return total


def read_label(path: Path) -> Image:
    """Read a label map.

    Args:
        path: the file.

    Returns:
        Voxels (1, Z, Y, X) in the dtype of the file, and their geometry.

    Raises:
        UserError: the file cannot be read (see `read_image`), or it has several channels.
    """
    image = read_image([path])
    if image.array.shape[0] != 1:
        raise UserError(
            f"{path}: a label map has one channel, this file has {image.array.shape[0]} (a colour image?). Store the "
            "label values as a greyscale image."
        )
    return image


def write_segmentation(path: Path, segmentation: np.ndarray, geometry: Geometry) -> None:
    """Write a label map atomically, in the smallest unsigned dtype that holds its labels.

    The file keeps the geometry as precisely as its format allows: MHA stores doubles, NRRD doubles up to the last bit,
    NIfTI float32 spacing and offsets and a direction derived from float32, PNG and BMP no geometry. Beside a TIFF
    volume stands CASE.json with its spacing, as nnU-Net writes it.

    Args:
        path: the file to write; its ending chooses the format.
        segmentation: (Z, Y, X), non-negative integers.
        geometry: spacing, origin and direction to store; its shape must be that of the segmentation.

    Raises:
        UserError: the ending cannot be written, or the format cannot hold the labels or a volume.
        StorageError: the disk could not be written.
        ValueError: the shapes differ, or a label is negative.
    """
    path = Path(path)
    ending = next((path.name[-len(end) :] for end in supported_endings() if path.name.lower().endswith(end)), None)
    if ending is None:
        raise UserError(f"{path}: cannot write this ending. Use one of {', '.join(supported_endings())}.")
    if segmentation.shape != geometry.shape:
        raise ValueError(f"segmentation {segmentation.shape} and geometry {geometry.shape} differ in shape")
    lowest, highest = (int(segmentation.min()), int(segmentation.max())) if segmentation.size else (0, 0)
    if lowest < 0:
        raise ValueError(f"a segmentation must not hold negative labels, found {lowest}")
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
    if path.name.lower().endswith(TIFF_ENDINGS) and not geometry.is_2d:
        with storage_errors(path):
            write_spacing(path, geometry.spacing)
    write_image(path, image)
