"""NIfTI files against nibabel: values, geometry, choice of the transform; and files that their header lies about."""

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from umamba.io import UserError, read_image, voxel_count
from umamba.io.nifti import header_warnings

LPS = np.diag([-1.0, -1.0, 1.0])
AFFINE = np.array([[0.0, -0.9, 0.0, 12.5], [0.7, 0.0, 0.0, -3.25], [0.0, 0.0, 3.0, 40.0], [0, 0, 0, 1]])
NUMBERS = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]


def saved(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, version: int = 1, order: str = "<") -> Path:
    """Write an array (X, Y, Z) with nibabel."""
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    header = kind.header_class(endianness=order)
    header.set_data_dtype(array.dtype)
    nibabel.save(kind(array, affine, header, dtype=array.dtype), path)
    return path


def loaded(path: Path) -> Any:
    """Read a file with nibabel."""
    return nibabel.load(path)


def changed(path: Path, at: int, form: str, *values: float) -> Path:
    """Overwrite numbers in the header of an uncompressed file."""
    content = bytearray(path.read_bytes())
    content[at : at + struct.calcsize(form)] = struct.pack(form, *values)
    path.write_bytes(content)
    return path


def agrees_with_nibabel(path: Path) -> None:
    expected, image = loaded(path), read_image([path])
    np.testing.assert_allclose(image.array[0], expected.get_fdata().transpose(2, 1, 0), rtol=1e-6)
    spacing = np.array(image.geometry.spacing[::-1])
    np.testing.assert_allclose(spacing, expected.header.get_zooms()[:3], rtol=1e-6)
    axes = LPS @ np.reshape(image.geometry.direction_xyz, (3, 3)) * spacing
    np.testing.assert_allclose(axes, expected.affine[:3, :3], atol=1e-5)
    np.testing.assert_allclose(LPS @ image.geometry.origin_xyz, expected.affine[:3, 3], atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_values_and_geometry_are_nibabel_s(tmp_path: Path, dtype: Any, order: str, version: int) -> None:
    array = np.random.default_rng(0).integers(0, 120, (4, 3, 2)).astype(dtype)
    path = saved(tmp_path / "a.nii", array, version=version, order=order)
    agrees_with_nibabel(path)
    assert read_image([path]).array.dtype == dtype
    assert voxel_count([path]) == 24
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(read_image([packed]).array, read_image([path]).array)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.25, 0), (2, 0.5), (0, 7), (float("nan"), 1)])
def test_scaled_integers(tmp_path: Path, ending: str, slope: float, intercept: float) -> None:
    array = np.random.default_rng(0).integers(-500, 500, (4, 3, 2)).astype(np.int16)
    path = changed(saved(tmp_path / "a.nii", array), 112, "<2f", slope, intercept)
    if ending == ".nii.gz":
        (tmp_path / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "b.nii.gz"
    factor, summand = (slope, intercept) if slope and np.isfinite(slope) else (1, 0)
    expected = array.transpose(2, 1, 0) * float(factor) + summand
    np.testing.assert_array_equal(read_image([path]).array[0], expected)
    np.testing.assert_array_equal(loaded(path).get_fdata().transpose(2, 1, 0), expected)


def test_content_that_the_ending_denies(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", np.arange(24, dtype=np.int16).reshape(4, 3, 2))
    content, expected = path.read_bytes(), read_image([path]).array
    (tmp_path / "plain.nii.gz").write_bytes(content)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(content))
    for name in ("plain.nii.gz", "packed.nii"):
        np.testing.assert_array_equal(read_image([tmp_path / name]).array, expected)
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mha: its content is of the format \.nii.*Rename it"):
        read_image([tmp_path / "a.mha"])
    sitk.WriteImage(sitk.GetImageFromArray(expected[0]), str(tmp_path / "b.nrrd"))
    (tmp_path / "b.nrrd").rename(tmp_path / "b.nii.gz")
    with pytest.raises(UserError, match=r"ends in \.nrrd"):
        read_image([tmp_path / "b.nii.gz"])


def test_rgb_and_vectors(tmp_path: Path) -> None:
    rgb = np.zeros((4, 3, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for number, name in enumerate("RGB"):
        rgb[name] = np.arange(24).reshape(4, 3, 2) + 50 * number
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    image = read_image([tmp_path / "rgb.nii"])
    assert image.array.shape == (3, 2, 3, 4)
    np.testing.assert_array_equal(image.array[2], rgb["B"].transpose(2, 1, 0))


SECOND = np.diag([-2.0, 2.0, 2.0, 1.0])


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (1, 4), (1, 0), (0, 1)])
def test_sform_and_qform_as_nibabel_chooses(tmp_path: Path, codes: tuple[int, int]) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), None)
    image.set_qform(np.diag([2.0, 2.0, 2.0, 1.0]), codes[0])
    image.set_sform(SECOND, codes[1])
    nibabel.save(image, tmp_path / "a.nii")
    agrees_with_nibabel(tmp_path / "a.nii")
    messages = header_warnings(tmp_path / "a.nii")
    assert ["place the image differently" in message for message in messages] == [True] * (0 not in codes)


def test_equal_forms_are_no_finding(tmp_path: Path) -> None:
    assert header_warnings(saved(tmp_path / "a.nii", np.zeros((4, 3, 2), np.int16))) == []
    image = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), AFFINE)
    image.set_qform(AFFINE, 1)
    nibabel.save(image, tmp_path / "b.nii")
    assert header_warnings(tmp_path / "b.nii") == []
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "c.nii")
    assert ["left and right are not known" in message for message in header_warnings(tmp_path / "c.nii")] == [True]


def test_skewed_sform(tmp_path: Path) -> None:
    skewed = np.eye(4)
    skewed[0, 1] = 0.3
    image = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), None)
    image.set_sform(skewed, 1)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(UserError, match=r"not perpendicular.*resample_to_output"):
        read_image([tmp_path / "a.nii"])
    image.set_qform(np.eye(4), 1)
    nibabel.save(image, tmp_path / "a.nii")
    assert "qform is used" in header_warnings(tmp_path / "a.nii")[0]
    np.testing.assert_allclose(read_image([tmp_path / "a.nii"]).geometry.direction_xyz, (LPS @ np.eye(3)).ravel())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_spacing_that_is_none(tmp_path: Path, value: float) -> None:
    path = saved(tmp_path / "a.nii", np.zeros((4, 3, 2), np.int16))
    changed(path, 84, "<f", value)
    with pytest.raises(UserError, match="every entry must be positive"):
        read_image([path])


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("memory was taken")

    path = changed(saved(tmp_path / "a.nii", np.zeros((4, 3, 2), np.int16)), 40, "<4h", 3, 30000, 30000, 30000)
    if ending == ".nii.gz":
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr("umamba.io.nifti.np.empty", refuse)
    monkeypatch.setattr("umamba.io.nifti.np.fromfile", refuse)
    with pytest.raises(UserError, match=r"truncated \(.* declares 54000000000000 bytes"):
        read_image([tmp_path / f"a{ending}"])


def test_image_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.nii", np.zeros((4, 3, 2), np.int16))
    monkeypatch.setattr("umamba.io.bounds.memory_bytes", lambda: 40)
    with pytest.raises(UserError, match="GiB of memory here"):
        read_image([path])


def test_gzip_bomb_behind_the_last_voxel(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", np.arange(24, dtype=np.int16).reshape(4, 3, 2))
    expected, content = read_image([path]).array, path.read_bytes()
    (tmp_path / "little.nii.gz").write_bytes(gzip.compress(content + bytes(1000)))
    np.testing.assert_array_equal(read_image([tmp_path / "little.nii.gz"]).array, expected)
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(content + bytes(50 << 20)))
    with pytest.raises(UserError, match="goes on behind the last voxel"):
        read_image([tmp_path / "bomb.nii.gz"])


@pytest.mark.parametrize(
    ("at", "form", "values", "word"),
    [
        (40, "<h", (0,), "size"),
        (40, "<h", (9,), "size"),
        (42, "<h", (-4,), "size"),
        (42, "<h", (0,), "size"),
        (70, "<h", (32,), "data type 32"),
        (70, "<h", (1,), "data type 1 "),
        (108, "<f", (float("nan"),), "vox_offset"),
        (108, "<f", (1e30,), "truncated"),
        (344, "<4s", (b"ni1\0",), "pair of files"),
        (344, "<4s", (b"\0\0\0\0",), "Analyze"),
        (116, "<f", (float("inf"),), "scl_inter"),
    ],
)
def test_headers_that_describe_no_image(
    tmp_path: Path, at: int, form: str, values: tuple[Any, ...], word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "a.nii", np.zeros((4, 3, 2), np.int16))
    changed(path, 112, "<2f", 2, 1)
    changed(path, at, form, *values)
    with pytest.raises(UserError, match=word):
        read_image([path])
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_values_beyond_float32(tmp_path: Path, dtype: Any) -> None:
    array = np.zeros((4, 3, 2), dtype)
    array[1, 1, 1] = 3e18
    with pytest.raises(UserError, match="1 voxels are beyond"):
        read_image([saved(tmp_path / "a.nii", array)])
    array[1, 1, 1] = 9e17
    assert read_image([saved(tmp_path / "a.nii", array)]).array.max() == dtype(9e17)
