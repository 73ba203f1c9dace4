"""Read NIfTI-1 and NIfTI-2 files, compressed or not, by their content and not by their ending.

The voxels are those of nibabel, the spacing that of ITK and nnU-Net (pixdim in millimetres). Position and direction are
those of the sform where there is one, as in nibabel; ITK takes the qform of many such files instead. A file with
neither has ITK's position: origin 0, axes towards left, back and head.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.io.bounds import (
    check_length,
    check_regular,
    check_room,
    check_trailing,
    chunks,
    inflated,
)
from umamba.io.nifti_header import HEADER_BYTES, NiftiHeader, check_header, doubts, parse_header
from umamba.io.orientation import is_orthonormal

ENDINGS = (".nii.gz", ".nii")
_GZIP = b"\x1f\x8b"
_AT_ONCE = 1 << 20  # voxels that are scaled together


def read_nifti(path: Path) -> sitk.Image:
    """Read a NIfTI file; the size is compared with the header before memory is taken.

    Args:
        path: the file. Whether it is compressed is decided by its content.

    Returns:
        The image, 2D, 3D or 4D; scaled numbers are float32 (float64 if float64 is stored).

    Raises:
        UserError: the file is no NIfTI file, truncated, damaged, larger than the memory, of more than 4 axes, of a type
            that is no image, or its spacing or axes are not those of an image.
    """
    check_regular(path)
    with open(path, "rb") as stream:
        compressed = stream.read(2) == _GZIP
        stream.seek(0)
        parts = inflated(path, stream) if compressed else chunks(stream)
        start = _first(parts, HEADER_BYTES)
        header = parse_header(path, start)
        check_header(path, header)
        needed, size = header.voxel_bytes, path.stat().st_size
        check_length(path, size if compressed else size - header.offset, needed, compressed)
        check_room(path, needed)
        if compressed:
            stored = _collect(path, start, parts, header)
        else:
            stream.seek(header.offset)
            stored = np.fromfile(stream, np.uint8, needed)
    if len(stored) < needed:
        check_length(path, len(stored), needed)
    return _to_sitk(header, _voxels(header, stored))


def read_header(path: Path) -> NiftiHeader:
    """Read the header of a NIfTI file.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing or no NIfTI file.
    """
    check_regular(path)
    with open(path, "rb") as stream:
        compressed = stream.read(2) == _GZIP
        stream.seek(0)
        return parse_header(path, _first(inflated(path, stream) if compressed else chunks(stream), HEADER_BYTES))


def header_warnings(path: Path) -> list[str]:
    """Return what a user should check in the header of a NIfTI file; nothing for other files.

    Args:
        path: the file.
    """
    if not path.name.lower().endswith(ENDINGS):
        return []
    return doubts(read_header(path))


def _first(parts: Iterator[bytes], count: int) -> bytes:
    """Take pieces until there are `count` bytes or none are left."""
    start = b""
    for part in parts:
        start += part
        if len(start) >= count:
            break
    return start


def _collect(path: Path, start: bytes, parts: Iterator[bytes], header: NiftiHeader) -> np.ndarray:
    """Return the bytes of the voxels from the decompressed pieces, and read on to the checksum."""
    stored = np.empty(header.voxel_bytes, np.uint8)
    position = -header.offset  # in `stored`, of the next piece
    for part in _chained(start, parts):
        piece = np.frombuffer(part, np.uint8)[max(0, -position) :]
        first = max(0, position)
        position += len(part)
        if first < len(stored):
            stored[first : first + len(piece)] = piece[: len(stored) - first]
        check_trailing(path, position - len(stored))
    check_length(path, position, len(stored))
    return stored


def _chained(start: bytes, parts: Iterator[bytes]) -> Iterator[bytes]:
    yield start
    yield from parts


def _voxels(header: NiftiHeader, stored: np.ndarray) -> np.ndarray:
    """Return the voxels in native byte order, scaled, axes (..., Z, Y, X) and the components last."""
    flat = stored.view(header.dtype)
    if not header.dtype.isnative:
        flat = flat.astype(header.dtype.newbyteorder("="))
    if header.scale is not None:
        flat = _scaled(flat, *header.scale)
    shape = header.shape_xyz[::-1]
    if header.components == 1:
        return flat.reshape(shape)
    if header.planar:
        return np.moveaxis(flat.reshape(header.components, *shape), 0, -1)
    return flat.reshape(*shape, header.components)


def _scaled(flat: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Return flat * slope + intercept, computed in float64, as float32 (float64 for float64)."""
    scaled = np.empty(flat.shape, np.float64 if flat.dtype == np.float64 else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(flat), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            scaled[part] = flat[part].astype(np.float64) * slope + intercept
    return scaled


def _to_sitk(header: NiftiHeader, voxels: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels, isVector=header.components > 1)
    axes = len(header.shape_xyz)
    origin, direction = header.position()
    spacing = [value * header.unit_mm for value in header.stored_spacing_xyz]
    full = np.eye(axes)
    within = direction[:axes, :axes]
    if axes > 2 or is_orthonormal(within):  # a 2D image across the patient's axes has no direction in 2D
        full[: min(3, axes), : min(3, axes)] = within
    image.SetSpacing([*spacing, 1.0][:axes])
    image.SetOrigin([*origin[:axes].tolist(), 0.0][:axes])
    image.SetDirection(full.ravel().tolist())
    return image
