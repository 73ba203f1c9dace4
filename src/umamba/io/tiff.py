"""Read TIFF files with tifffile, whose answer counts, and write label maps; `tiff_spacing` knows their spacing.

tifffile passes over missing pages with a warning and ITK reads fewer slices, so the chain of pages and the bytes of
every strip are checked. ITK reads the compressions for which tifffile would need the package imagecodecs.
"""

import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tifffile

from umamba.io.bounds import REMEDY, check_room, first_bytes
from umamba.io.errors import UserError
from umamba.io.itk import one_at_a_time
from umamba.io.tiff_spacing import read_spacing, spacing_file

_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ALPHA = (1, 2)  # codes of ExtraSamples
_MINISBLACK, _RGB, _YCBCR = 1, 2, 6
_UNCOMPRESSED, _JPEG, _DEFLATE = 1, 7, (8, 32946)
_MOST_TAGS = 4096  # as tifffile; more are a damaged list
_MOST_EXPANDED = 2000  # decoded bytes for each compressed one; Deflate reaches 1032
_ALWAYS_ALLOWED = 1 << 26  # decoded bytes that need no such check
_LARGE_STRIP = 1 << 19  # compressed bytes from which a Deflate strip is measured before it is decoded

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is checked here and refused


def is_tiff(path: Path) -> bool:
    """Return whether a file begins as a TIFF or BigTIFF file does.

    Args:
        path: the file. If it cannot be read, the answer is False.
    """
    return first_bytes(path, 4) in _MARKS


def decode_tiff(path: Path) -> sitk.Image:
    """Read a TIFF file: one page as a 2D image, several as a volume; samples (RGB, separate planes) as channels.

    A file of one page with CASE.json is a volume of one slice. Bits become 0 and 1, half floats float32; a colour table
    is left out, so that its numbers are read, as a label map needs them.

    Args:
        path: the file.

    Raises:
        UserError: the file is damaged, is cut short, or holds fewer bytes than its header declares; is compressed in a
            way that neither tifffile nor ITK decodes; has an alpha channel beside grey, several series or a time
            axis; or its CASE.json is not usable.
    """
    with _readable(path), tifffile.TiffFile(os.fspath(path)) as tiff:
        pages = _pages_in_chain(path)
        series = tiff.series[0]
        page = series.keyframe
        _check_series(tiff, pages)
        check_room(path, series.nbytes)
        if not _decodable(page):
            _check_itk(path, page)
            array = _by_itk(path, series)
        else:
            _check_bytes(path, series, page)
            array = series.asarray()
        axes = series.axes
        if array.ndim != len(axes):
            raise ValueError(f"axes {axes} but shape {array.shape}")
    array, has_channels = _arranged(path, array, axes, page)
    return _image(path, array, has_channels)


def declared_tiff_voxels(path: Path) -> int:
    """Return how many voxels a TIFF file declares over all its channels; 0 if it cannot be read.

    Args:
        path: the file.
    """
    try:
        with _readable(path), tifffile.TiffFile(os.fspath(path)) as tiff:
            return math.prod(tiff.series[0].shape)
    except UserError:
        return 0


def write_tiff(path: Path, voxels: np.ndarray) -> None:
    """Write a grey image, compressed with Deflate as nnU-Net does.

    Args:
        path: the file.
        voxels: (Y, X), or (Z, Y, X).
    """
    axes = "ZYX"[3 - voxels.ndim :]
    tifffile.imwrite(
        os.fspath(path), voxels, photometric="minisblack", compression="zlib", metadata={"axes": axes}, software=""
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever tifffile raises for foreign bytes into one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tifffile lets errors of struct, zlib and numpy through
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")
        raise UserError(f"{path}: cannot be decoded as TIFF ({reason}). {REMEDY}") from None


def _pages_in_chain(path: Path) -> int:
    """Follow the chain of pages through the file and return their number; refuse a chain that leaves the file."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(16)
        order = "<" if start[:2] == b"II" else ">"
        big = start[2:4] in (b"+\0", b"\0+")
        counted, pointer, entry = (f"{order}Q", f"{order}Q", 20) if big else (f"{order}H", f"{order}I", 12)
        (offset,) = struct.unpack(pointer, start[8:16] if big else start[4:8])
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise UserError(f"{path}: its pages refer to each other in a circle. {REMEDY}")
            seen.add(offset)
            stream.seek(offset)
            head = stream.read(struct.calcsize(counted))
            tags = struct.unpack(counted, head)[0] if len(head) == struct.calcsize(counted) else 0
            after = offset + len(head) + tags * entry
            if not 0 < tags <= _MOST_TAGS or after + struct.calcsize(pointer) > size:
                raise UserError(
                    f"{path}: the file is truncated or damaged: its page {len(seen)}, stated at byte {offset}, is "
                    f"not whole in its {size} bytes. {REMEDY}"
                )
            stream.seek(after)
            (offset,) = struct.unpack(pointer, stream.read(struct.calcsize(pointer)))
    return len(seen)


def _check_series(tiff: tifffile.TiffFile, pages: int) -> None:
    """Raise ValueError unless all pages of the file make one image, or smaller copies of it follow."""
    planes = [math.prod(series.shape) // max(1, math.prod(series.keyframe.shape)) for series in tiff.series]
    first = tiff.series[0]
    if len(planes) > 1 and (planes[0] > 1 or any(math.prod(other.shape) >= first.size for other in tiff.series[1:])):
        shapes = ", ".join("x".join(map(str, series.shape)) for series in tiff.series[:3])
        raise ValueError(f"it holds {len(planes)} images of different kinds ({shapes}); store one in each file")
    if sum(planes) != pages and not (len(planes) == 1 and pages == 1 and first.dataoffset is not None):
        raise ValueError(f"it declares {sum(planes)} pages and holds {pages}")
    _pages(first)


def _pages(series: tifffile.TiffPageSeries) -> list[tifffile.TiffPage | tifffile.TiffFrame]:
    """Return the pages of an image; raise ValueError if one of them is missing."""
    pages = [page for page in series.pages if page is not None]
    if len(pages) != len(series.pages):
        raise ValueError("pages are missing")
    return pages


def _decodable(page: tifffile.TiffPage) -> bool:
    """Return whether tifffile decodes a page's compression and predictor without the package imagecodecs."""
    for codecs, code in ((tifffile.TIFF.DECOMPRESSORS, page.compression), (tifffile.TIFF.UNPREDICTORS, page.predictor)):
        try:
            codecs[code]
        except (KeyError, ImportError):
            return False
    return True


def _check_bytes(path: Path, series: tifffile.TiffPageSeries, page: tifffile.TiffPage) -> None:
    """Raise ValueError unless the strips and tiles lie in the file and hold about as many bytes as they must."""
    size = path.stat().st_size
    if series.dataoffset is not None:
        if series.dataoffset + series.nbytes > size:
            raise ValueError(f"it declares {series.nbytes} bytes of voxels in a file of {size}")
        return
    compressed = 0
    segment = math.prod(page.chunks) * page.bitspersample // 8  # decoded bytes of a strip or tile
    for each in _pages(series):
        count = math.prod(page.chunked)
        if len(each.dataoffsets) < count or len(each.databytecounts) < count:
            raise ValueError(f"a page declares {count} strips or tiles and lists {len(each.dataoffsets)}")
        for offset, length in zip(each.dataoffsets, each.databytecounts, strict=False):
            if length == 0 or offset + length > size:
                raise ValueError(f"{length} bytes of voxels at byte {offset} are not in the file of {size}")
            if page.compression in _DEFLATE and length >= _LARGE_STRIP:
                _check_inflated(path, offset, length, segment)
            compressed += length
    if page.compression == _UNCOMPRESSED:
        if compressed < series.size * page.bitspersample // 8:
            raise ValueError(f"it declares {series.nbytes} bytes of voxels and holds {compressed}")
    elif series.nbytes > max(_ALWAYS_ALLOWED, _MOST_EXPANDED * compressed):
        raise ValueError(f"it declares {series.nbytes} bytes of voxels in {compressed} compressed ones")


def _check_inflated(path: Path, offset: int, length: int, expected: int) -> None:
    """Raise ValueError if a strip inflates to more than it must, without keeping what it inflates to."""
    inflate, total = zlib.decompressobj(), 0
    with open(path, "rb") as stream:
        stream.seek(offset)
        chunk = stream.read(length)
    while chunk and not inflate.eof:
        total += len(inflate.decompress(chunk, 1 << 22))
        if total > expected + _ALWAYS_ALLOWED:
            raise ValueError(f"a strip of {expected} bytes inflates to more than {total}")
        chunk = inflate.unconsumed_tail


def _check_itk(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse a page that tifffile cannot decode, unless ITK is known to read its kind as tifffile would."""
    name = getattr(page.compression, "name", str(page.compression))
    orientation = page.tags.valueof(274, 1)
    colour = page.photometric in (_MINISBLACK, _RGB) or (page.photometric == _YCBCR and page.compression == _JPEG)
    whole = page.bitspersample in (8, 16, 32) and page.dtype != np.float16
    if page.is_tiled or orientation != 1 or not colour or not (whole or page.dtype == bool):
        raise UserError(
            f"{path}: its voxels are compressed with {name} (predictor {int(page.predictor)}), which cannot be decoded "
            "here. Store the file uncompressed or with Deflate (zip)."
        )


def _by_itk(path: Path, series: tifffile.TiffPageSeries) -> np.ndarray:
    """Read a file with ITK and make sure that it has the shape and type that tifffile finds in the header."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("TIFFImageIO")
    reader.SetFileName(os.fspath(path))
    if series.nbytes > max(_ALWAYS_ALLOWED, _MOST_EXPANDED * path.stat().st_size):
        raise ValueError(f"it declares {series.nbytes} bytes of voxels in a file of {path.stat().st_size}")
    for page in _pages(series):
        ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=False))
        if max(ends, default=0) > path.stat().st_size:
            raise ValueError("strips of voxels are not in the file")
    try:
        with one_at_a_time:
            array = np.asarray(sitk.GetArrayFromImage(reader.Execute()))
    except RuntimeError:
        array = np.empty(0)
    if series.dtype == bool and array.shape == (*series.shape, 4):
        array = array[..., 0] != 0  # ITK makes colours of bits: 0 and 255
    if array.shape != series.shape or array.dtype != series.dtype.newbyteorder("="):
        name = getattr(series.keyframe.compression, "name", str(series.keyframe.compression))
        raise UserError(
            f"{path}: its voxels are compressed with {name}, and are damaged or cannot be decoded here. Store the file "
            "uncompressed or with Deflate (zip)."
        )
    return array


def _arranged(path: Path, array: np.ndarray, axes: str, page: tifffile.TiffPage) -> tuple[np.ndarray, bool]:
    """Return the voxels as (Z, Y, X) or (Y, X), with channels as a last axis if there are any, and whether there are.

    Axes are tifffile's letters. ImageJ's channels count as slices where the file has no other slices, because
    programs that know no slices write volumes so, and nnU-Net reads them so.
    """
    if page.photometric == _MINISBLACK and any(int(extra) in _ALPHA for extra in page.extrasamples):
        raise UserError(f"{path}: grey with an alpha channel. Store the grey values alone.")
    if not set("YX") <= set(axes) or array.size == 0:
        raise UserError(f"{path}: an image with the axes {axes} and shape {array.shape}; expected rows and columns.")
    kept = [index for index, axis in enumerate(axes) if axis in "SYX" or array.shape[index] > 1]
    array, axes = array.reshape([array.shape[index] for index in kept]), "".join(axes[index] for index in kept)
    others = [axis for axis in axes if axis not in "SYX"]
    channel = "S" if "S" in axes else "C" if "C" in axes and len(others) > 1 else ""
    slices = [axis for axis in others if axis != channel]
    if len(slices) > 1:
        size = "x".join(map(str, array.shape))
        raise UserError(f"{path}: an image of size {size} with the axes {axes}; images are 2D or 3D. Store one volume "
                        "in each file.")  # fmt: skip
    order = [axes.index(axis) for axis in (*slices, "Y", "X", *channel)]
    return array.transpose(order), bool(channel)


def _image(path: Path, array: np.ndarray, has_channels: bool) -> sitk.Image:
    """Return an ITK image with the spacing of CASE.json, if it is a volume."""
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise UserError(f"{path}: voxels of the type {array.dtype}. Store real numbers of at most 64 bits.")
    kind = {np.dtype(bool): np.uint8, np.dtype(np.float16): np.float32}.get(array.dtype.newbyteorder("="))
    array = np.ascontiguousarray(array, kind or array.dtype.newbyteorder("="))
    beside = spacing_file(path)
    if beside is not None and array.ndim - has_channels == 2:
        array = array[None]
    if has_channels and array.shape[-1] == 1:
        array, has_channels = array[..., 0], False
    image = sitk.GetImageFromArray(array, isVector=has_channels)
    if beside is not None:
        image.SetSpacing(read_spacing(beside)[::-1])
    return image
