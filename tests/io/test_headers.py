"""MetaImage, NRRD and GIPL files: foreign references, sizes that are not there, pipes, and upper-case endings."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.io import UserError, read_image, read_label, write_segmentation

Change = Callable[[bytes], bytes]
VOXELS = np.random.default_rng(0).integers(0, 200, (6, 20, 30)).astype(np.uint8)


def saved(path: Path, compressed: bool = False) -> Path:
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing((0.5, 0.25, 2.0))
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


def changed(path: Path, *pairs: tuple[bytes, bytes]) -> Path:
    content = path.read_bytes()
    for old, new in pairs:
        assert old in content
        content = content.replace(old, new, 1)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.raw", "b.raw", "a%d.raw 1 6 1", "LIST", "a.mha", "sub/a.raw"]
)
def test_meta_image_takes_no_foreign_voxels(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "secret.raw", tmp_path / "in" / "b.raw"):
        path.write_bytes(VOXELS.tobytes())
    path = changed(saved(tmp_path / "in" / "a.mha"), (b"= LOCAL", b"= " + name.encode()))
    with pytest.raises(UserError, match=r"a\.mha: its header takes the voxels from"):
        read_image([path])


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.raw", "b.raw", "a%d.raw 1 6 1", "LIST", "a.nrrd"])
@pytest.mark.parametrize("field", ["data file", "datafile", "Data File"])
def test_nrrd_takes_no_foreign_voxels(tmp_path: Path, name: str, field: str) -> None:
    path = changed(saved(tmp_path / "a.nrrd"), (b"encoding: raw\n", f"encoding: raw\n{field}: {name}\n".encode()))
    with pytest.raises(UserError, match=r"a\.nrrd: its header takes the voxels from"):
        read_image([path])


def test_voxels_beside_the_header_under_its_name(tmp_path: Path) -> None:
    path = changed(saved(tmp_path / "a.mha"), (b"= LOCAL\n" + VOXELS.tobytes(), b"= a.raw\n"))
    with pytest.raises(UserError, match=r"a\.raw: no such file"):
        read_image([path])
    (tmp_path / "a.raw").write_bytes(VOXELS.tobytes())
    np.testing.assert_array_equal(read_image([path]).array[0], VOXELS)
    (tmp_path / "a.raw").write_bytes(VOXELS.tobytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        read_image([path])
    (tmp_path / "a.raw").unlink()
    os.mkfifo(tmp_path / "a.raw")
    with pytest.raises(UserError, match="no regular file"):
        read_image([path])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".png", ".tif"])
def test_pipes_devices_and_dangling_links(tmp_path: Path, ending: str) -> None:
    os.mkfifo(tmp_path / f"pipe{ending}")
    (tmp_path / f"device{ending}").symlink_to("/dev/zero")
    (tmp_path / f"gone{ending}").symlink_to(tmp_path / "nowhere")
    for name, word in (("pipe", "no regular file"), ("device", "no regular file"), ("gone", "only a link")):
        with pytest.raises(UserError, match=word):
            read_image([tmp_path / f"{name}{ending}"])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("ending", "old", "new"),
    [
        (".mha", b"DimSize = 30 20 6", b"DimSize = 30000 30000 30000"),
        (".nrrd", b"sizes: 30 20 6", b"sizes: 30000 30000 30000"),
        (".gipl", b"\0\x1e\0\x14\0\x06", b"\x75\x30\x75\x30\x75\x30"),
    ],
)
def test_sizes_that_are_not_there(tmp_path: Path, ending: str, old: bytes, new: bytes, compressed: bool) -> None:
    path = changed(saved(tmp_path / f"a{ending}", compressed and ending != ".gipl"), (old, new))
    with pytest.raises(UserError, match="declares 27000000000000 bytes"):
        read_image([path])


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("kept", [0.5, 0.95, 0.999])
def test_truncated_compressed_voxels(tmp_path: Path, ending: str, kept: float) -> None:
    path = saved(tmp_path / f"a{ending}", compressed=True)
    np.testing.assert_array_equal(read_image([path]).array[0], VOXELS)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match="truncated"):
        read_image([path])


@pytest.mark.parametrize(
    ("ending", "old", "new"),
    [
        (".mha", b"ElementSpacing = 0.5", b"ElementSpacing = 0"),
        (".mha", b"ElementSpacing = 0.5", b"ElementSpacing = nan"),
        (".nrrd", b"(0.5,0,0)", b"(0,0,0)"),
        (".gipl", struct.pack(">f", 0.5), bytes(4)),
    ],
)
def test_spacing_that_is_none(tmp_path: Path, ending: str, old: bytes, new: bytes) -> None:
    with pytest.raises(UserError, match="every entry must be positive"):
        read_image([changed(saved(tmp_path / f"a{ending}"), (old, new))])


@pytest.mark.parametrize(
    ("ending", "old", "new"),
    [
        (".mha", b"NDims = 3", b"NDims = three"),
        (".mha", b"MET_UCHAR", b"MET_WORD"),
        (".mha", b"NDims = 3", b"NDims = 3\nDimSize = 1 1 1"),
        (".nrrd", b"sizes: 30 20 6", b"sizes: 30 20"),
        (".nrrd", b"sizes: 30 20 6", b"sizes: 30 20 6\nsizes: 1 1 1"),
        (".nrrd", b"type: unsigned char", b"type: block"),
        (".nrrd", b"encoding: raw", b"encoding: bzip2"),
    ],
)
def test_damaged_headers(tmp_path: Path, ending: str, old: bytes, new: bytes) -> None:
    with pytest.raises(UserError, match=f"a\\{ending}: "):
        read_image([changed(saved(tmp_path / f"a{ending}"), (old, new))])


@pytest.mark.parametrize("ending", [".NII.GZ", ".Nii", ".MHA", ".NRRD", ".GIPL"])
def test_upper_case_endings_are_read_and_written(tmp_path: Path, ending: str) -> None:
    lower = saved(tmp_path / f"a{ending.lower()}")
    upper = lower.rename(tmp_path / f"b{ending}")
    image = read_image([upper])
    np.testing.assert_array_equal(image.array[0], VOXELS)
    write_segmentation(tmp_path / "out" / f"c{ending}", VOXELS, image.geometry)
    np.testing.assert_array_equal(read_label(tmp_path / "out" / f"c{ending}").array[0], VOXELS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"c{ending}"]
    assert ending != ".NII.GZ" or (tmp_path / "out" / f"c{ending}").read_bytes()[:2] == b"\x1f\x8b"


def test_spacings_are_compared_relatively(tmp_path: Path) -> None:
    for name, spacing in (("a", 2e-4), ("b", 4e-4), ("c", 2.0001e-4)):
        image = sitk.GetImageFromArray(VOXELS)
        image.SetSpacing((spacing,) * 3)
        sitk.WriteImage(image, str(tmp_path / f"{name}.mha"))
    with pytest.raises(UserError, match=r"spacing \(Z, Y, X\) \(0.0002, 0.0002, 0.0002\) against \(0.0004"):
        read_image([tmp_path / "a.mha", tmp_path / "b.mha"])
    assert read_image([tmp_path / "a.mha", tmp_path / "c.mha"]).array.shape == (2, 6, 20, 30)
