"""Read the PNG and BMP files whose pixels ITK reads otherwise than scikit-image (and so nnU-Net), with Pillow.

ITK stretches one bit to 0 and 255, makes a transparent colour a fourth channel, fails on grey with transparency, and
takes the unused byte of 32-bit BMP files for a channel. It remains the reader of 16-bit colours, which Pillow shortens.
"""

import warnings
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image as pillow

from umamba.io.errors import UserError
from umamba.io.itk import one_at_a_time

_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_SAMPLES = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_MOST_EXPANDED = 1100  # Deflate makes at most 1032 bytes of one
_REMEDY = "Copy or export the file again, or remove the case from the dataset."


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
    """Check a PNG file's header and return whether ITK would read other pixels than scikit-image."""
    size = path.stat().st_size
    names = []
    with open(path, "rb") as stream:
        header = stream.read(33)
        if len(header) < 33 or header[12:16] != b"IHDR":
            raise UserError(f"{path}: the file is truncated or damaged (no PNG header). {_REMEDY}")
        width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
        depth, kind = header[24], header[25]
        while (head := stream.read(8)) and len(head) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            names.append(head[4:])
            stream.seek(int.from_bytes(head[:4], "big") + 4, 1)
    declared = width * height * _SAMPLES.get(kind, 1) * depth // 8
    if not width or not height or declared > max(1 << 26, _MOST_EXPANDED * size):
        raise UserError(f"{path}: declares {width} x {height} pixels in {size} bytes. {_REMEDY}")
    if b"acTL" in names:
        raise UserError(f"{path}: an animated PNG holds several frames. Store one frame in each file.")
    if kind == _GREY_ALPHA:
        raise UserError(f"{path}: grey with an alpha channel. Store the grey values alone.")
    return (kind == _GREY and depth == 1) or (b"tRNS" in names and not (kind == _RGB and depth == 16))


def _by_pillow(path: Path) -> sitk.Image:
    try:
        with one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            with pillow.open(path) as picture:
                if picture.mode == "P":
                    picture = picture.convert(picture.palette.mode if picture.palette else "RGB")
                array = np.array(picture)
    except Exception as error:  # Pillow lets errors of struct and zlib through
        raise UserError(f"{path}: cannot be decoded ({error}). {_REMEDY}") from None
    if array.dtype == bool:
        array = array.astype(np.uint8)
    return sitk.GetImageFromArray(array, isVector=array.ndim == 3)
