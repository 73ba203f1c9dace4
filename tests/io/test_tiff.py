"""Reading TIFF, against tifffile, Pillow's writer and arithmetic by hand; the spacing of nnU-Net's CASE.json."""

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image as pillow

from umamba.datasets import read_dataset
from umamba.datasets.digest import dataset_digest
from umamba.io import UserError, read_image, read_label, voxel_count, write_segmentation
from umamba.io.image import Geometry

Refusal = Callable[[Path], str]

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 40), np.uint8)
STACK = RNG.integers(0, 60000, (6, 24, 40)).astype(np.uint16)


@pytest.mark.parametrize(
    ("voxels", "options"),
    [
        ((GREY / 255 - 0.1).astype(np.float16), {}),
        (GREY.astype(np.uint16) * 100, {"tile": (16, 16)}),
        (np.stack([GREY] * 3, -1), {"tile": (16, 16), "photometric": "rgb"}),
        (np.stack([GREY, 255 - GREY, GREY // 2]), {"photometric": "rgb", "planarconfig": "separate"}),
        (GREY > 100, {}),
        (GREY % 5, {"photometric": "palette", "colormap": RNG.integers(0, 65535, (3, 256)).astype(np.uint16)}),
        (GREY, {"photometric": "miniswhite"}),
        (GREY.astype(np.int32) - 99999, {"byteorder": ">", "bigtiff": True, "compression": "zlib", "predictor": True}),
        (STACK, {"compression": "lzma"}),
        (STACK, {"imagej": True}),
        (STACK > 30000, {}),
        (STACK.astype(np.float64) / 7, {"metadata": None, "byteorder": ">"}),
    ],
    ids=str,
)
def test_values_are_those_of_tifffile(tmp_path: Path, voxels: np.ndarray, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, voxels, **({"photometric": "minisblack"} | options))
    expected = tifffile.imread(path)
    np.testing.assert_array_equal(expected, voxels)
    if expected.ndim == 3 and expected.shape[-1] == 3:
        expected = np.moveaxis(expected, -1, 0)
    expected = expected[:, None] if options.get("photometric") == "rgb" else expected.reshape(1, -1, 24, 40)
    image = read_image([path])
    np.testing.assert_array_equal(image.array, expected)
    assert image.array.dtype.isnative
    assert image.geometry.is_2d == (voxels.ndim == 2 or "rgb" in options.values())
    assert voxel_count([path]) == image.array.size


def test_a_label_map_may_be_tiled_boolean_or_have_a_colour_table(tmp_path: Path) -> None:
    label = (GREY > 128).astype(np.uint8)
    colours = RNG.integers(0, 65535, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "tiled.tif", label, tile=(16, 16))
    tifffile.imwrite(tmp_path / "boolean.tif", label > 0)
    tifffile.imwrite(tmp_path / "colours.tif", label, photometric="palette", colormap=colours)
    for name in ("tiled", "boolean", "colours"):
        np.testing.assert_array_equal(read_label(tmp_path / f"{name}.tif").array[0, 0], label)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "group4"])
def test_compressions_that_tifffile_leaves_to_itk(tmp_path: Path, compression: str) -> None:
    stack = STACK > 30000 if compression == "group4" else STACK // 256
    planes = [pillow.fromarray(plane if compression == "group4" else plane.astype(np.uint8)) for plane in stack]
    planes[0].save(tmp_path / "a.tif", save_all=True, append_images=planes[1:], compression=compression)
    np.testing.assert_array_equal(read_image([tmp_path / "a.tif"]).array[0], stack)


def test_lzw_in_tiles_is_one_sentence(tmp_path: Path, refusal: Refusal) -> None:
    """ITK reads tiles as RGBA, so a compression of which tifffile needs imagecodecs cannot be read from them."""
    tifffile.imwrite(tmp_path / "a.tif", GREY, tile=(16, 16), metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    at = content.find(struct.pack("<HHI", 259, 3, 1))
    content[at + 8 : at + 10] = struct.pack("<H", 5)
    (tmp_path / "a.tif").write_bytes(content)
    assert "compressed with LZW" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("options", [{}, {"metadata": None}, {"compression": "zlib"}, {"imagej": True}, {"itk": True}])
def test_a_stack_cut_anywhere_is_refused_or_whole(tmp_path: Path, options: dict[str, Any], refusal: Refusal) -> None:
    path = tmp_path / "a.tif"
    if options.get("itk"):
        sitk.WriteImage(sitk.GetImageFromArray(STACK), str(path))
    else:
        tifffile.imwrite(path, STACK, **options)
    content = path.read_bytes()
    for end in [*range(8, len(content), len(content) // 40), len(content) - 200]:
        path.write_bytes(content[:end])
        if end < STACK.nbytes:
            refusal(path)
            continue
        try:
            array = read_image([path]).array
        except UserError:
            continue
        np.testing.assert_array_equal(array[0], STACK)


def change_tag(path: Path, code: int, kind: str, value: int) -> None:
    """Change a number of the first page's tags in a little-endian file."""
    content = bytearray(path.read_bytes())
    at = content.find(struct.pack("<HH", code, {"H": 3, "I": 4}[kind]))
    assert at > 0
    content[at + 8 : at + 8 + struct.calcsize(kind)] = struct.pack(f"<{kind}", value)
    path.write_bytes(content)


def test_sizes_that_lie_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    for compression in (None, "zlib"):
        path = tmp_path / f"{compression}.tif"
        tifffile.imwrite(path, GREY, compression=compression, metadata=None)
        with tifffile.TiffFile(path) as tiff:
            kind = {3: "H", 4: "I"}[int(tiff.pages[0].tags[257].dtype)]  # type: ignore[union-attr]
        change_tag(path, 257, kind, 60000)
        refusal(path)
    tifffile.imwrite(tmp_path / "pages.tif", STACK)
    content = (tmp_path / "pages.tif").read_bytes()
    (tmp_path / "pages.tif").write_bytes(content.replace(b'"shape": [6, 24, 40]', b'"shape": [9, 24, 40]'))
    refusal(tmp_path / "pages.tif")


def test_a_strip_that_inflates_without_end_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    press = zlib.compressobj(1)
    bomb = b"".join([*(press.compress(bytes(1 << 20)) for _ in range(200)), press.flush()])
    tifffile.imwrite(tmp_path / "a.tif", GREY, compression="zlib", metadata=None, rowsperstrip=24)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        counts = tiff.pages[0].tags[279]  # type: ignore[union-attr]
        offset = counts.offset
    content = bytearray((tmp_path / "a.tif").read_bytes())
    start = len(content)
    content[offset + 2 : offset + 12] = struct.pack("<HII", 4, 1, len(bomb))
    at = content.find(struct.pack("<H", 273))
    content[at + 2 : at + 12] = struct.pack("<HII", 4, 1, start)
    (tmp_path / "a.tif").write_bytes(bytes(content) + bomb)
    assert "inflates to more" in refusal(tmp_path / "a.tif")


def test_pages_in_a_circle_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    (first,) = struct.unpack("<I", content[4:8])
    (tags,) = struct.unpack("<H", content[first : first + 2])
    content[first + 2 + 12 * tags : first + 6 + 12 * tags] = struct.pack("<I", first)
    (tmp_path / "a.tif").write_bytes(content)
    assert "circle" in refusal(tmp_path / "a.tif")


def test_kinds_that_are_no_image(tmp_path: Path, refusal: Refusal) -> None:
    tifffile.imwrite(tmp_path / "alpha.tif", np.stack([GREY] * 2, -1), photometric="minisblack", planarconfig="contig",
                     extrasamples=["unassalpha"])  # fmt: skip
    assert "grey with an alpha channel" in refusal(tmp_path / "alpha.tif")
    tifffile.imwrite(tmp_path / "complex.tif", GREY.astype(np.complex64))
    assert "complex64" in refusal(tmp_path / "complex.tif")
    times = np.stack([STACK] * 2)
    tifffile.imwrite(tmp_path / "times.tif", times, imagej=True, metadata={"axes": "TZYX"})
    assert "the axes TZYX" in refusal(tmp_path / "times.tif")
    with tifffile.TiffWriter(tmp_path / "two.tif") as writer:
        writer.write(STACK, photometric="minisblack")
        writer.write(STACK[0, :5], photometric="minisblack")
    assert "2 images of different kinds" in refusal(tmp_path / "two.tif")


def test_channels_of_imagej_are_channels_beside_slices(tmp_path: Path) -> None:
    channels = STACK.reshape(3, 2, 24, 40)
    tifffile.imwrite(tmp_path / "a.tif", channels, imagej=True, metadata={"axes": "ZCYX"})
    np.testing.assert_array_equal(read_image([tmp_path / "a.tif"]).array, channels.swapaxes(0, 1))


def test_two_samples_without_alpha_are_two_channels(tmp_path: Path) -> None:
    two = np.stack([GREY, 255 - GREY], -1)
    tifffile.imwrite(tmp_path / "a.tif", two, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read_image([tmp_path / "a.tif"]).array[:, 0], two.transpose(2, 0, 1))


def test_spacing_stands_in_the_case_s_json(tmp_path: Path) -> None:
    """nnU-Net 2.8.1, Tiff3DIO: CASE.json beside CASE_0000.tif; 1 mm without it, whatever the resolution tags say."""
    for name in ("a_0000.tif", "b_0000.tif", "a.tif"):
        tifffile.imwrite(tmp_path / name, STACK, resolution=(300, 300), resolutionunit="INCH")
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [5, 0.5, 0.25]}))
    assert read_image([tmp_path / "a_0000.tif"]).geometry.spacing == (5, 0.5, 0.25)
    assert read_label(tmp_path / "a.tif").geometry.spacing == (5, 0.5, 0.25)
    assert read_image([tmp_path / "b_0000.tif"]).geometry.spacing == (1, 1, 1)
    tifffile.imwrite(tmp_path / "a_0000.tif", STACK[:1])
    geometry = read_image([tmp_path / "a_0000.tif"]).geometry
    assert (geometry.spacing, geometry.is_2d) == ((5, 0.5, 0.25), False)


@pytest.mark.parametrize("content", ["[]", "{}", '{"spacing": [1, 2]}', '{"spacing": [1, 0, 2]}', '{"spacing": "123"}',
                                     '{"spacing": [1, NaN, 2]}', '{"spacing": [1, true, 2]}', "nonsense"])  # fmt: skip
def test_unusable_spacing_is_refused(tmp_path: Path, content: str) -> None:
    tifffile.imwrite(tmp_path / "a_0000.tif", STACK)
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        read_image([tmp_path / "a_0000.tif"])


def test_a_segmentation_keeps_its_spacing(tmp_path: Path) -> None:
    geometry = Geometry((5.0, 0.5, 0.25), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1), (6, 24, 40), False)
    label = STACK.astype(int) % 300
    write_segmentation(tmp_path / "a.tif", label, geometry)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), label)
    assert json.loads((tmp_path / "a.json").read_text()) == {"spacing": [5.0, 0.5, 0.25]}
    assert read_label(tmp_path / "a.tif").geometry.spacing == geometry.spacing
    write_segmentation(tmp_path / "flat.tif", label[:1], read_image([write_grey(tmp_path / "grey.tif")]).geometry)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "flat.tif"), label[0])
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.tif", "flat.tif", "grey.tif"]
    slice_ = Geometry((5.0, 0.5, 0.25), geometry.origin_xyz, geometry.direction_xyz, (1, 24, 40), False)
    write_segmentation(tmp_path / "one.tif", label[:1], slice_)
    assert read_label(tmp_path / "one.tif").geometry == slice_


def write_grey(path: Path) -> Path:
    tifffile.imwrite(path, GREY)
    return path


def test_a_dataset_of_tiff_volumes_knows_its_spacing_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "Dataset983_Tif"
    for folder, name in (("imagesTr", "c0_0000.tif"), ("labelsTr", "c0.tif")):
        (root / folder).mkdir(parents=True)
        tifffile.imwrite(root / folder / name, STACK % 2)
        (root / folder / "c0.json").write_text('{"spacing": [5.0, 0.5, 0.5]}')
    declared = {"channel_names": {"0": "em"}, "labels": {"background": 0, "a": 1}, "numTraining": 1}
    (root / "dataset.json").write_text(json.dumps({**declared, "file_ending": ".tif"}))
    dataset = read_dataset(root)
    assert caplog.text == ""
    assert [case.case_id for case in dataset.training] == ["c0"]
    before = dataset_digest(dataset, None)
    (root / "imagesTr" / "c0.json").write_text('{"spacing": [6.0, 0.5, 0.5]}')
    assert dataset_digest(dataset, None) != before
