"""Reading PNG and BMP, against scikit-image (nnU-Net's reader of pictures) and arithmetic by hand."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import skimage.io
from PIL import Image as pillow

from umamba.io import UserError, read_image, read_label

Refusal = Callable[[Path], str]

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (13, 21), np.uint8)


def png(
    width: int, height: int, depth: int, kind: int, pixels: bytes, interlaced: int = 0, extra: bytes = b""
) -> bytes:
    """Return a PNG file of raw rows, each of which begins with its filter's byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def palette() -> pillow.Image:
    picture = pillow.fromarray(GREY % 16).convert("P")
    picture.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
    return picture


PICTURES = {
    "bits.png": lambda path: pillow.fromarray(GREY > 128).save(path),
    "bits.bmp": lambda path: pillow.fromarray(GREY > 128).save(path),
    "grey.png": lambda path: pillow.fromarray(GREY).save(path),
    "grey.bmp": lambda path: pillow.fromarray(GREY).save(path),
    "grey16.png": lambda path: pillow.fromarray(GREY.astype(np.uint16) * 250).save(path),
    "grey-transparent.png": lambda path: pillow.fromarray(GREY).save(path, transparency=3),
    "bits-transparent.png": lambda path: pillow.fromarray(GREY > 128).save(path, transparency=1),
    "palette.png": lambda path: palette().save(path),
    "palette4.png": lambda path: palette().save(path, bits=4),
    "palette-transparent.png": lambda path: palette().save(path, transparency=3),
    "rgb.png": lambda path: pillow.fromarray(np.stack([GREY, 255 - GREY, GREY // 2], -1)).save(path),
    "rgb-transparent.png": lambda path: pillow.fromarray(np.stack([GREY] * 3, -1)).save(path, transparency=(3, 3, 3)),
    "rgba.png": lambda path: pillow.fromarray(np.stack([GREY, 255 - GREY, GREY // 2, GREY], -1)).save(path),
    "rgba.bmp": lambda path: pillow.fromarray(np.stack([GREY, 255 - GREY, GREY // 2, GREY], -1)).save(path),
    "two-bits.png": lambda path: path.write_bytes(png(5, 3, 2, 0, b"\0\x1b\x40\0\xe4\x80\0\x00\xc0")),
    "interlaced.png": lambda path: path.write_bytes(png(1, 1, 1, 0, b"\0\x80", interlaced=1)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_values_are_those_of_scikit_image(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    PICTURES[name](path)
    expected = skimage.io.imread(path)
    expected = np.moveaxis(expected, -1, 0)[:, None] if expected.ndim == 3 else expected[None, None]
    image = read_image([path])
    np.testing.assert_array_equal(image.array, expected)
    assert image.geometry.spacing == (999.0, 1.0, 1.0)


def test_one_bit_label_maps_hold_zero_and_one(tmp_path: Path) -> None:
    pillow.fromarray(GREY > 128).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png").array[0, 0], (GREY > 128).astype(int))


def test_colours_of_16_bits_are_whole(tmp_path: Path) -> None:
    """scikit-image shortens them to 8 bits, which loses what the file holds."""
    colours = RNG.integers(0, 65536, (13, 21, 3)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "a.png"))
    np.testing.assert_array_equal(read_image([tmp_path / "a.png"]).array[:, 0], colours.transpose(2, 0, 1))


def test_grey_with_alpha_and_animations_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    pillow.fromarray(GREY).convert("LA").save(tmp_path / "alpha.png")
    assert "grey with an alpha channel" in refusal(tmp_path / "alpha.png")
    frames = [pillow.fromarray(GREY), pillow.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "frames.png", save_all=True, append_images=frames[1:])
    assert "several frames" in refusal(tmp_path / "frames.png")
    palette().save(tmp_path / "palette.png")
    with pytest.raises(UserError, match="a colour image"):
        read_label(tmp_path / "palette.png")


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_cut_anywhere_is_refused(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str], refusal: Refusal
) -> None:
    path = tmp_path / name
    PICTURES[name](path)
    content = path.read_bytes()
    for end in range(8 if name.endswith("png") else 54, len(content), max(1, len(content) // 15)):
        path.write_bytes(content[:end])
        refusal(path)
    out, err = capfd.readouterr()
    assert out + err == ""


@pytest.mark.parametrize("kind", [0, 2, 6])
@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize("height", [50, 2**31 - 1])
def test_sizes_that_lie_are_refused(tmp_path: Path, kind: int, depth: int, height: int, refusal: Refusal) -> None:
    depth = depth if kind == 0 else 8
    (tmp_path / "a.png").write_bytes(png(5, height, depth, kind, b"\0" * 99))
    refusal(tmp_path / "a.png")
