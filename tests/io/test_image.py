"""Reading and writing images, against files written by SimpleITK, their headers and their raw bytes."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.io import UserError, read_image, read_label, voxel_count, write_image, write_segmentation

OBLIQUE = (1.0, 0.0, 0.0, 0.0, 0.8, -0.6, 0.0, 0.6, 0.8)


def volume(shape: tuple[int, ...] = (4, 5, 6), spacing: tuple[float, ...] = (0.7, 0.9, 3.1)) -> sitk.Image:
    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.integers(-1000, 1000, shape).astype(np.int16))
    image.SetSpacing(spacing)
    return image


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_axis_order_and_geometry(tmp_path: Path, ending: str) -> None:
    source = volume()
    source.SetOrigin((10.0, -20.0, 30.0))
    source.SetDirection(OBLIQUE)
    sitk.WriteImage(source, str(tmp_path / f"a{ending}"))
    image = read_image([tmp_path / f"a{ending}"])
    assert image.array.shape == (1, 4, 5, 6)
    assert image.array.dtype == np.int16
    for x, y, z in ((0, 0, 0), (5, 1, 2), (3, 4, 3)):
        assert image.array[0, z, y, x] == source[x, y, z]
    np.testing.assert_allclose(image.geometry.spacing, (3.1, 0.9, 0.7), rtol=1e-6)
    np.testing.assert_allclose(image.geometry.origin_xyz, (10, -20, 30), rtol=1e-6)
    np.testing.assert_allclose(image.geometry.direction_xyz, OBLIQUE, atol=1e-6)
    assert not image.geometry.is_2d


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_rgb_is_three_channels_of_one_slice(tmp_path: Path, ending: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / f"a{ending}"))
    image = read_image([tmp_path / f"a{ending}"])
    np.testing.assert_array_equal(image.array, pixels.transpose(2, 0, 1)[:, None])
    assert image.geometry.spacing == (999.0, 1.0, 1.0)
    assert image.geometry.is_2d
    with pytest.raises(UserError, match="3 \\(a colour image"):
        read_label(tmp_path / f"a{ending}")


def test_2d_medical_image_keeps_its_spacing(tmp_path: Path) -> None:
    sitk.WriteImage(volume((5, 6), (0.5, 0.25)), str(tmp_path / "a.mha"))
    assert read_image([tmp_path / "a.mha"]).geometry.spacing == (499.5, 0.25, 0.5)


def test_vector_nifti_is_several_channels(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).random((3, 4, 5, 2)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=True), str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(read_image([tmp_path / "a.nii.gz"]).array, voxels.transpose(3, 0, 1, 2))


def test_4d_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(
        sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.float32), isVector=False), str(tmp_path / "a.nii.gz")
    )
    with pytest.raises(UserError, match=r"a\.nii\.gz: a 4D image of size 5x4x3x2"):
        read_image([tmp_path / "a.nii.gz"])


def test_channels_from_several_files(tmp_path: Path) -> None:
    for index in range(2):
        sitk.WriteImage(volume() + index, str(tmp_path / f"a_{index}.nii.gz"))
    image = read_image([tmp_path / "a_0.nii.gz", tmp_path / "a_1.nii.gz"])
    assert image.array.shape == (2, 4, 5, 6)
    np.testing.assert_array_equal(image.array[1], image.array[0] + 1)
    sitk.WriteImage(volume((4, 5, 7)), str(tmp_path / "a_1.nii.gz"))
    with pytest.raises(UserError, match=r"a_1\.nii\.gz: its grid differs from that of a_0\.nii\.gz"):
        read_image([tmp_path / "a_0.nii.gz", tmp_path / "a_1.nii.gz"])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".bmp", ".tif", ".gipl"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_truncated_files_are_refused_quietly(
    tmp_path: Path, ending: str, kept: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a{ending}"
    flat = ending in (".png", ".bmp", ".tif")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50) if flat else (9, 20, 30)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(path))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=f"a\\{ending}"):
        read_image([path])
    out, err = capfd.readouterr()
    assert out + err == ""


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(volume((20, 30, 30)), str(path))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match="gzip"):
        read_image([path])


def test_gzip_of_several_members_is_read(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), str(tmp_path / "a.nii"))
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]) + b"\0" * 512)
    expected = read_image([tmp_path / "a.nii"]).array
    np.testing.assert_array_equal(read_image([tmp_path / "b.nii.gz"]).array, expected)


def test_missing_and_undecodable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_image([tmp_path / "none.nii.gz"])
    (tmp_path / "text.nrrd").write_text("hello")
    with pytest.raises(UserError, match=r"text\.nrrd: cannot be decoded"):
        read_image([tmp_path / "text.nrrd"])


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(("highest", "dtype"), [(3, np.uint8), (300, np.uint16), (70000, np.uint32)])
def test_segmentation_keeps_the_grid_to_the_bit(tmp_path: Path, ending: str, highest: int, dtype: type) -> None:
    source = volume(spacing=(0.7, 0.9, 1 / 3))
    source.SetOrigin((0.1, -20.7, 1e3 / 3))
    source.SetDirection(OBLIQUE)
    sitk.WriteImage(source, str(tmp_path / f"image{ending}"))
    image = read_image([tmp_path / f"image{ending}"])
    segmentation = np.random.default_rng(0).integers(0, highest + 1, (4, 5, 6))
    segmentation[0, 0, 0] = highest
    write_segmentation(tmp_path / "out" / f"a{ending}", segmentation, image.geometry)
    written = read_label(tmp_path / "out" / f"a{ending}")
    np.testing.assert_array_equal(written.array[0], segmentation)
    assert written.array.dtype == dtype
    assert written.geometry.shape == image.geometry.shape
    # NRRD stores direction times spacing, from which ITK restores the spacing up to its last bit.
    np.testing.assert_array_max_ulp(written.geometry.spacing, image.geometry.spacing, 3 if ending == ".nrrd" else 0)
    assert written.geometry.origin_xyz == image.geometry.origin_xyz
    tolerance = {".nii.gz": 1e-6, ".nrrd": 1e-15}.get(ending, 0)
    np.testing.assert_allclose(written.geometry.direction_xyz, image.geometry.direction_xyz, rtol=0, atol=tolerance)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"a{ending}"]


def test_segmentation_of_a_png(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 7), np.uint8)), str(tmp_path / "a.png"))
    geometry = read_image([tmp_path / "a.png"]).geometry
    segmentation = np.arange(35).reshape(1, 5, 7)
    write_segmentation(tmp_path / "b.png", segmentation, geometry)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "b.png"))), segmentation[0])
    with pytest.raises(UserError, match="cannot write this ending"):
        write_segmentation(tmp_path / "b.xyz", segmentation, geometry)
    with pytest.raises(UserError, match="label 70000"):
        write_segmentation(tmp_path / "b.png", segmentation + 69966, geometry)
    with pytest.raises(ValueError, match="negative"):
        write_segmentation(tmp_path / "b.png", segmentation - 1, geometry)


def test_counting_voxels_waits_for_no_pipe_and_follows_no_header(tmp_path: Path) -> None:
    """ITK would wait for the writer of a pipe, and end the process for some names of files in a header."""
    for name in ("a.png", "a.mha", "a.nrrd", "a"):
        os.mkfifo(tmp_path / name)
        assert voxel_count([tmp_path / name]) == 0
    (tmp_path / "b.mhd").write_text(
        "NDims = 3\nDimSize = 4 3 2\nElementType = MET_SHORT\nElementDataFile = %s%s%n.raw 1 2 1\n"
    )
    assert voxel_count([tmp_path / "b.mhd"]) == 0


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """ITK ends the process for such a name."""
    path = tmp_path / os.fsdecode(b"a\xff.nii.gz")
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\\udcff\.nii\.gz: its name has bytes that are no UTF-8"):
        read_image([path])
    with pytest.raises(UserError, match="no UTF-8"):
        write_image(path, sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)))
    path.rename(tmp_path / "a.mha")
    (tmp_path / "a.mha").write_bytes(
        b"NDims = 3\nDimSize = 4 \x1b[2J 2\nElementType = MET_CHAR\nElementDataFile = LOCAL\n"
    )
    with pytest.raises(UserError) as error:
        read_image([tmp_path / "a.mha"])
    assert "\x1b" not in str(error.value)


def test_a_format_without_a_direction_is_refused_where_it_would_be_lost(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.ones((3, 4, 5), np.uint8))
    write_image(tmp_path / "a.gipl", image)
    assert sitk.ReadImage(str(tmp_path / "a.gipl")).GetSize() == (5, 4, 3)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    with pytest.raises(UserError, match=r"b\.gipl: a GIPL file cannot hold the direction"):
        write_image(tmp_path / "b.gipl", image)
    assert not (tmp_path / "b.gipl").exists()
