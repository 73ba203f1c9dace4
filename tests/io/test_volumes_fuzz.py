"""Random volumes, sound and damaged: the values of nibabel or SimpleITK, or one UserError; nothing printed, no more.

Seeds are fixed, so a failure names its file. Run `python -m pytest -m slow tests/io/test_volumes_fuzz.py`.
"""

import gzip
import struct
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from umamba.io import UserError, orientation_of, read_image

COUNT = 300
KINDS = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8")
# Offsets of a NIfTI-1 header whose numbers decide how the file is read, and how they are packed
FIELDS: tuple[tuple[int, str], ...] = (
    *((0, "i"), (40, "h"), (42, "h"), (46, "h"), (70, "h"), (76, "f"), (80, "f"), (108, "f"), (112, "f")),
    *((116, "f"), (252, "h"), (254, "h"), (256, "f"), (280, "f"), (296, "f"), (344, "i")),
)
VALUES = (0, -1, 1, 2, 7, 300, 32767, 1e-3, 1e9, -1e30, float("nan"), float("inf"))
WORDS = (b"30", b"-1", b"0", b"nan", b"99999999999", b"../x.raw", b"%d", b"True", b"")


def sound(folder: Path, rng: np.random.Generator, number: int) -> Path:
    """Write a random volume with nibabel or SimpleITK."""
    shape = tuple(int(size) for size in rng.integers(2, 9, 3))
    kind = np.dtype(rng.choice(["<", ">"]) + rng.choice(KINDS))
    array = rng.integers(0, 100, shape).astype(kind)
    ending = str(rng.choice([".nii", ".nii.gz", ".mha", ".nrrd", ".gipl"]))
    path = folder / f"{number:03d}{ending}"
    if ending.startswith(".nii"):
        affine = np.diag([*rng.uniform(0.3, 4, 3), 1.0])
        affine[:3, :3] = affine[:3, rng.permutation(3)] * rng.choice([-1, 1], 3)
        affine[:3, 3] = rng.uniform(-99, 99, 3)
        version: Any = nibabel.Nifti1Image if rng.random() < 0.6 else nibabel.Nifti2Image
        image = version(array, affine, version.header_class(endianness=kind.str[0].replace("|", "<")), dtype=kind)
        image.set_qform(affine, int(rng.integers(0, 3)))
        image.set_sform(affine, int(rng.integers(1, 5)))
        nibabel.save(image, path)
        return path
    native = array.astype(kind.newbyteorder("="))
    written = sitk.GetImageFromArray(native if ending != ".gipl" or kind.itemsize < 4 else native.astype(np.int16))
    written.SetSpacing([float(value) for value in rng.uniform(0.3, 4, 3)])
    sitk.WriteImage(written, str(path), useCompression=ending != ".gipl" and rng.random() < 0.5)
    return path


def damaged(path: Path, rng: np.random.Generator) -> None:
    """Cut a file, flip one of its bits, or overwrite a number of its header."""
    content = path.read_bytes()
    packed = content[:2] == b"\x1f\x8b"
    kind = rng.integers(0, 4)
    if kind == 0:
        content = content[: int(rng.integers(0, len(content)))]
    elif kind == 1:
        place = int(rng.integers(0, len(content)))
        content = content[:place] + bytes([content[place] ^ (1 << int(rng.integers(0, 8)))]) + content[place + 1 :]
    elif path.name.endswith((".nii", ".nii.gz")):
        plain = bytearray(gzip.decompress(content) if packed else content)
        at, form = FIELDS[int(rng.integers(0, len(FIELDS)))]
        value = VALUES[int(rng.integers(0, len(VALUES)))]
        whole = int(np.clip(value if np.isfinite(value) else 0, -32768, 32767))
        plain[at : at + struct.calcsize(form)] = struct.pack(f"<{form}", value if form == "f" else whole)
        content = gzip.compress(bytes(plain)) if packed else bytes(plain)
    else:
        words = content[:400].split(b" ")
        words[int(rng.integers(0, len(words)))] = WORDS[int(rng.integers(0, len(WORDS)))]
        content = b" ".join(words) + content[400:]
    path.write_bytes(content)


def expected(path: Path) -> np.ndarray:
    """Return the voxels (Z, Y, X) as another program reads them."""
    if path.name.endswith((".nii", ".nii.gz")):
        image: Any = nibabel.load(path)
        return np.asarray(image.get_fdata()).transpose(2, 1, 0)
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), dtype=np.float64)


def test_sound_volumes_have_the_values_of_other_readers(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in range(100):
        path = sound(tmp_path, rng, number)
        image = read_image([path])
        np.testing.assert_array_equal(image.array[0], expected(path), err_msg=path.name)
        if path.name.endswith((".nii", ".nii.gz")):
            other: Any = nibabel.load(path)
            assert orientation_of(image.geometry) == "".join(nibabel.aff2axcodes(other.affine)), path.name
            np.testing.assert_allclose(image.geometry.spacing[::-1], other.header.get_zooms(), rtol=1e-6)


@pytest.mark.slow
def test_damaged_volumes_end_in_one_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    messages: list[str] = []
    read, slowest = 0, 0.0
    for number in range(COUNT):
        path = sound(tmp_path, rng, number)
        before = read_image([path]).array
        damaged(path, rng)
        began = time.perf_counter()
        try:
            found = read_image([path]).array
        except UserError as error:
            messages.append(str(error).replace(str(path), path.name))
        else:
            read += 1
            if found.shape == before.shape and np.array_equal(found, before):
                continue
            # What is read differently must be what another reader of the damaged file gives, too.
            np.testing.assert_allclose(found[0], expected(path), rtol=1e-6, err_msg=path.name)
        finally:
            slowest = max(slowest, time.perf_counter() - began)
    printed = "".join(capfd.readouterr())
    assert printed == ""
    assert [message for message in messages if "\n" in message or message[3] != "."] == []
    assert slowest < 10
    print(f"{COUNT} damaged volumes: {len(messages)} refused, {read} read as other readers do, slowest {slowest:.2f} s")
