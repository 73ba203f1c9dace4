"""Read the PNG and BMP files whose pixels ITK reads otherwise than scikit-image (and so nnU-Net), with Pillow.

ITK stretches one bit to 0 and 255, makes a transparent colour a fourth channel, fails on grey with transparency, and
takes the unused byte of 32-bit BMP files for a channel. It remains the reader of 16-bit colours, which Pillow shortens.
"""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image as pillow

from umamba.io.bounds import REMEDY, check_room
from umamba.io.errors import UserError
from umamba.io.itk import one_at_a_time

_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_SAMPLES = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
# Left, top, and steps across and down of the seven passes of an interlaced PNG file
_INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MOST_EXPANDED = 1100  # Deflate makes at most 1032 bytes of one


def decode_raster(path: Path) -> sitk.Image | None:
    """Read a PNG or BMP file whose pixels ITK reads otherwise than scikit-image.

    Args:
        path: the file.

    Returns:
        The image (Y, X), with three or four channels for colours; None for a file that ITK reads rightly, or that is
        neither PNG nor BMP.

    Raises:
        UserError: the file is damaged, declares more pixels than its bytes can hold, holds several frames, or grey
            with an alpha channel.
    """
    with open(path, "rb") as stream:
        start = stream.read(64)
    if start.startswith(_PNG):
        needed = _png_needs_pillow(path)
    elif start.startswith(b"BM"):
        needed = int.from_bytes(start[28:30], "little") in (1, 32)
    else:
        return None
    return _by_pillow(path) if needed else None


def _png_needs_pillow(path: Path) -> bool:
    """Check a PNG file's chunks and return whether ITK would read other pixels than scikit-image."""
    content = path.read_bytes()
    chunks = _chunks(path, content)
    header = chunks.get(b"IHDR", [])
    if not header or len(header[0]) != 13 or b"IDAT" not in chunks:
        raise UserError(f"{path}: the file is damaged (no PNG header or no pixels). {REMEDY}")
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header[0])
    bits = _SAMPLES.get(kind, 1) * depth
    if not width or not height or width * height * bits // 8 > max(1 << 26, _MOST_EXPANDED * len(content)):
        raise UserError(f"{path}: declares {width} x {height} pixels in {len(content)} bytes. {REMEDY}")
    check_room(path, width * height * max(1, bits // 8))
    if b"acTL" in chunks:
        raise UserError(f"{path}: an animated PNG holds several frames. Store one frame in each file.")
    if kind == _GREY_ALPHA:
        raise UserError(f"{path}: grey with an alpha channel. Store the grey values alone.")
    needed = (kind == _GREY and depth == 1) or (b"tRNS" in chunks and not (kind == _RGB and depth == 16))
    if needed:  # Pillow leaves missing rows black
        _check_inflated(path, b"".join(chunks[b"IDAT"]), _inflated_bytes(width, height, bits, interlaced))
    return needed


def _chunks(path: Path, content: bytes) -> dict[bytes, list[bytes]]:
    """Return the chunks of a PNG file by name; refuse a file that ends before its last chunk."""
    chunks: dict[bytes, list[bytes]] = {}
    at = len(_PNG)
    while b"IEND" not in chunks:
        length, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if at + 12 + length > len(content):
            raise UserError(f"{path}: the file is truncated (its {len(content)} bytes hold no end of PNG). {REMEDY}")
        chunks.setdefault(name, []).append(content[at + 8 : at + 8 + length])
        at += 12 + length
    return chunks


def _inflated_bytes(width: int, height: int, bits: int, interlaced: int) -> int:
    """Return the length of a PNG file's inflated pixels: each row of each pass begins with a byte of its own."""
    passes = _INTERLACED if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _check_inflated(path: Path, data: bytes, expected: int) -> None:
    inflate = zlib.decompressobj()
    try:
        found = len(inflate.decompress(data, expected))
    except zlib.error as error:
        raise UserError(f"{path}: cannot be decoded ({error}). {REMEDY}") from None
    if found < expected:
        raise UserError(
            f"{path}: the file is damaged ({found} bytes of pixels, its header declares {expected}). {REMEDY}"
        )


def _by_pillow(path: Path) -> sitk.Image:
    try:
        with one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            with pillow.open(path) as picture:
                palette = picture.palette if picture.mode == "P" else None
                array = np.array(picture if palette is None else picture.convert(palette.mode))
    except Exception as error:  # Pillow lets errors of struct and zlib through
        raise UserError(f"{path}: cannot be decoded ({error}). {REMEDY}") from None
    if array.dtype == bool:
        array = array.astype(np.uint8)
    return sitk.GetImageFromArray(array, isVector=array.ndim == 3)
