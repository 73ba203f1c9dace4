"""Decode one image file with SimpleITK, without its warnings, and refuse damaged files.

ITK fills the missing end of a truncated NIfTI file with zeros and reports success. It also replaces NaN by zero, and
some of its readers print to the terminal. This module therefore compares the length of an uncompressed file with its
header, decompresses a gzip stream up to its checksum, and checks the floating-point voxels of NIfTI files.
"""

import gzip
import os
import re
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.io.dicom import decode_dicom, is_dicom
from umamba.io.errors import UserError
from umamba.io.itk import one_at_a_time
from umamba.io.raster import decode_raster
from umamba.io.tiff import decode_tiff, is_tiff
from umamba.io.tiff_spacing import TIFF_ENDINGS

# Compressed bytes per read. Deflate expands at most about 1000 times, so decompression takes at most 64 MB.
_CHUNK = 1 << 16
_SWAPPED_348 = int.from_bytes((348).to_bytes(4, "big"), "little")
_REMEDY = "Copy or export the file again, or remove the case from the dataset."


def nonfinite_error(path: Path, count: int) -> UserError:
    """Return the error for an image with voxels that are not finite.

    Args:
        path: the image file.
        count: number of voxels that are NaN or infinite.
    """
    return UserError(f"{path}: {count} voxels are NaN or infinite. Replace them by a real intensity.")


def decode(path: Path) -> sitk.Image:
    """Read one image file.

    Args:
        path: the file; its ending chooses the reader.

    Raises:
        UserError: the file is missing, empty, undecodable or truncated, or a NIfTI file holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Check the name and the file ending.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty. {_REMEDY}")
    if is_dicom(path) or path.suffix.lower() == ".dcm":
        return decode_dicom(path)
    if path.name.lower().endswith(TIFF_ENDINGS) and is_tiff(path):
        return decode_tiff(path)
    picture = decode_raster(path)
    if picture is not None:
        return picture
    if path.name.lower().endswith((".gz", ".nii")):
        _check_stream(path)
    with one_at_a_time:
        image = _read(path)
    return _without_palette(path, image) if path.suffix.lower() == ".bmp" else image


def _read(path: Path) -> sitk.Image:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    if path.name.lower().endswith((".nii", ".nii.gz")):
        reader.SetImageIO("NiftiImageIO")  # otherwise ITK asks each of its readers in turn
    try:
        reader.ReadImageInformation()
        _check_length(path, reader)
        return reader.Execute()
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be decoded ({_reason(error)}). {_REMEDY}") from None


def _reason(error: RuntimeError) -> str:
    """Return the line of an ITK exception that states the error, without its source-code positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    stated = [line for line in lines if "ERROR" in line] or lines[-1:]
    reason = stated[0].split("ERROR:")[-1].strip().rstrip(".:") if stated else "unknown reason"
    return re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", reason)


def _check_stream(path: Path) -> None:
    """Read a gzip or NIfTI file to its end; raise UserError if it is truncated, damaged, or holds NaN or infinity."""
    parts = _decompressed(path) if path.name.lower().endswith(".gz") else _parts(path)
    header = b""
    for part in parts:
        header += part
        if len(header) >= 352:
            break
    kind, offset = _float_voxels(header)
    if kind is None:
        deque(parts, maxlen=0)  # read the rest for its checksum
        return
    nonfinite, rest = 0, header[offset:]
    for part in chain([b""], parts):
        rest += part
        whole = len(rest) - len(rest) % kind.itemsize
        voxels = np.frombuffer(rest[:whole], kind)
        nonfinite += len(voxels) - int(np.count_nonzero(np.isfinite(voxels)))
        rest = rest[whole:]
    if nonfinite:
        raise nonfinite_error(path, nonfinite)


def _float_voxels(header: bytes) -> tuple[np.dtype | None, int]:
    """Return dtype and byte offset of a NIfTI-1 file's voxels; the dtype is None unless it is floating point."""
    if len(header) < 352 or header[344:347] not in (b"n+1", b"ni1"):
        return None, 0
    order = "<" if struct.unpack("<i", header[:4])[0] == 348 else ">"
    (code,) = struct.unpack(f"{order}h", header[70:72])
    (offset,) = struct.unpack(f"{order}f", header[108:112])
    width = {16: 4, 64: 8}.get(code)
    return (None if width is None else np.dtype(f"{order}f{width}")), max(352, int(offset))


def _parts(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _decompressed(path: Path) -> Iterator[bytes]:
    """Yield the content of a gzip file, checking the checksum of each member."""
    inflate = zlib.decompressobj(wbits=31)
    try:
        for chunk in _parts(path):
            while chunk:
                yield inflate.decompress(chunk)
                chunk = inflate.unused_data.lstrip(b"\0")  # another member, or zeros as padding
                if chunk:
                    inflate = zlib.decompressobj(wbits=31)
    except zlib.error as error:
        raise UserError(f"{path}: not a valid gzip file ({error}). {_REMEDY}") from None
    if not inflate.eof:
        raise UserError(f"{path}: the file is truncated (its gzip stream has no end). {_REMEDY}")


def _check_length(path: Path, reader: sitk.ImageFileReader) -> None:
    """Raise UserError if an uncompressed NIfTI, MHA, GIPL or BMP file is shorter than its header declares."""
    suffix = path.suffix.lower()
    if suffix not in (".nii", ".mha", ".bmp", ".gipl"):
        return
    if suffix == ".mha" and _compressed_mha(path):
        return
    actual = path.stat().st_size
    expected = _declared_bmp(path) if suffix == ".bmp" else _declared(path, suffix, reader)
    if actual < expected:
        raise UserError(f"{path}: the file is truncated ({actual} bytes, its header declares {expected}). {_REMEDY}")


def _declared(path: Path, suffix: str, reader: sitk.ImageFileReader) -> int:
    voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    expected = voxel.GetSizeOfPixelComponent() * reader.GetNumberOfComponents()
    for length in reader.GetSize():
        expected *= length
    return expected + _header_bytes(path, suffix)


def _header_bytes(path: Path, suffix: str) -> int:
    """Return the byte offset of the voxels; 0 for formats whose header length is not known."""
    with open(path, "rb") as stream:
        start = stream.read(4096)
    if suffix == ".nii":
        return 352
    local = re.search(rb"ElementDataFile\s*=\s*LOCAL\r?\n", start) if suffix == ".mha" else None
    return local.end() if local else 0


def _compressed_mha(path: Path) -> bool:
    with open(path, "rb") as stream:
        header = stream.read(4096).split(b"ElementDataFile", 1)[0].lower().replace(b" ", b"")
    return b"compresseddata=true" in header


def _declared_bmp(path: Path) -> int:
    with open(path, "rb") as stream:
        return int.from_bytes(stream.read(6)[2:], "little")


def _without_palette(path: Path, image: sitk.Image) -> sitk.Image:
    """Return a BMP file's image with one channel if it is an 8-bit grey image, which ITK reads as RGB."""
    with open(path, "rb") as stream:
        bits = int.from_bytes(stream.read(30)[28:], "little")
    if bits != 8 or image.GetNumberOfComponentsPerPixel() != 3:
        return image
    colours = sitk.GetArrayViewFromImage(image)
    if (colours != colours[..., :1]).any():
        return image
    return sitk.VectorIndexSelectionCast(image, 0)


def stored_spacing(path: Path) -> tuple[float, ...] | None:
    """Return the spacing that a NIfTI-1 or MHA header stores, in SimpleITK's order (X, Y, Z).

    ITK silently replaces a zero, negative or NaN spacing, so a check must read the file itself.

    Args:
        path: the image file.

    Returns:
        One entry per spatial axis, or None for other formats.
    """
    nifti = _nifti_header(path)
    if nifti is not None:
        order, header = nifti
        dimension = struct.unpack(f"{order}h", header[40:42])[0]
        return struct.unpack(f"{order}3f", header[80:92])[: max(1, min(3, dimension))]
    if path.name.lower().endswith(".mha"):
        with open(path, "rb") as stream:
            start = stream.read(4096).split(b"ElementDataFile", 1)[0]
        match = re.search(rb"^Element(?:Spacing|Size)\s*=\s*(.+?)\s*$", start, re.MULTILINE)
        return tuple(float(word) for word in match[1].split()) if match else None
    return None


def stored_axes(path: Path) -> np.ndarray | None:
    """Return the axes of a NIfTI-1 file's sform, each a column of a (3, 3) array.

    ITK silently ignores a skewed sform if the file also has a qform, so a check must read the file itself.

    Args:
        path: the image file.

    Returns:
        The axes, or None for other formats and for files without an sform.
    """
    nifti = _nifti_header(path)
    if nifti is None or struct.unpack(f"{nifti[0]}h", nifti[1][254:256])[0] <= 0:
        return None
    order, header = nifti
    return np.array(struct.unpack(f"{order}12f", header[280:328])).reshape(3, 4)[:, :3]


def _nifti_header(path: Path) -> tuple[str, bytes] | None:
    """Return byte order and header of a NIfTI-1 file; None for any other file."""
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        return None
    with gzip.open(path) if name.endswith(".gz") else open(path, "rb") as stream:
        header = stream.read(348)
    if len(header) < 348 or struct.unpack("<i", header[:4])[0] not in (348, _SWAPPED_348):
        return None
    return ("<" if struct.unpack("<i", header[:4])[0] == 348 else ">"), header
