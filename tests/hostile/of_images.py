"""Hostile images: headers that lie, cut files, bombs, references to other files, pipes, files of another kind."""

import gzip
import os
import runpy
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
import tifffile
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit

from umamba.io import UserError, read_image, read_label
from umamba.io.image import voxel_count

Made = Callable[[], None]
_IO = Path(__file__).resolve().parents[1] / "io"
_FUZZ = runpy.run_path(str(_IO / "fuzz.py"))
_VOLUMES = runpy.run_path(str(_IO / "test_volumes_fuzz.py"))
_SECRET = np.arange(1000, 1000 + 2 * 3 * 4, dtype="<i2")  # voxels of a file that an image must not lead to


def items() -> list[tuple[str, str, Callable[[Path, Made], str]]]:
    """Return the inputs."""
    found: list[tuple[str, str, Callable[[Path, Made], str]]] = []
    for number in range(136):
        found.append(("image: cut, lying, appended", f"{number:03d}", partial(_generated, number)))
    for number in range(60):
        found.append(("volume: bits, header numbers, words", f"{number:03d}", partial(_volume, number)))
    for name, make in _REFERENCES.items():
        found.append(("image: leads elsewhere", name, partial(_refused, make)))
    for name, make in _BOMBS.items():
        found.append(("image: bomb, huge header", name, partial(_refused, make)))
    for name, make in _OTHERS.items():
        found.append(("image: no image at all", name, partial(_refused, make)))
    for name, change in _TAGS.items():
        found.append(("DICOM: tags", name, partial(_dicom, change)))
    for number in range(24):
        found.append(("DICOM: flipped bits", f"{number:03d}", partial(_flipped_dicom, number)))
    corpus = _IO / "corpus"
    for path in sorted(corpus.iterdir()) if corpus.is_dir() else ():
        found.append(("corpus: faults of the past", path.name, partial(_corpus, path)))
    return found


def _generated(number: int, box: Path, made: Made) -> str:
    """One of the damaged files of tests/io/fuzz.py."""
    count = len(_FUZZ["CONTAINERS"])
    rng = np.random.default_rng([11, number])
    container = _FUZZ["CONTAINERS"][number % count]
    damage = ("lie", "cut-90", "cut-1", "cut-30", "lie", "appended", "cut-90", "cut-1")[number // count % 8]
    kind, geometry = str(rng.choice(_FUZZ["TYPES"])), str(rng.choice(_FUZZ["GEOMETRIES"]))
    folder = box / container
    folder.mkdir()
    path, expected, place = _FUZZ["_WRITERS"][container](
        rng, folder, container, kind, str(rng.choice(["<", ">"])), _FUZZ["geometry_of"](geometry)
    )
    damaged = _FUZZ["_damage"](rng, path, container, damage)
    made()
    voxel_count([path])
    return str(_FUZZ["outcome"](_FUZZ["Sample"](container, path, damaged, expected, place)))


def _volume(number: int, box: Path, made: Made) -> str:
    """One of the damaged volumes of tests/io/test_volumes_fuzz.py, against another reader."""
    rng = np.random.default_rng([7, number])
    path = _VOLUMES["sound"](box, rng, number)
    before = read_image([path]).array
    _VOLUMES["damaged"](path, rng)
    made()
    found = read_image([path]).array
    if found.shape == before.shape and np.array_equal(found, before):
        return "equal"
    expected = _VOLUMES["expected"](path)
    same = found[0].shape == expected.shape and np.allclose(found[0], expected, rtol=1e-6)
    return "equal" if same else "different: from another reader of the damaged file"


def _corpus(path: Path, box: Path, made: Made) -> str:
    """A file that once gave a fault must be refused."""
    (box / path.name).write_bytes(path.read_bytes())
    made()
    return _must_refuse(box / path.name)


def _refused(make: Callable[[Path], Path], box: Path, made: Made) -> str:
    """An input that must be refused, whichever entry reads it."""
    path = make(box)
    made()
    voxel_count([path])
    return _must_refuse(path)


def _must_refuse(path: Path) -> str:
    try:
        read_label(path)
    except UserError as error:
        if path.name not in str(error):
            return f"traceback: the message does not name the file: {error}"
    found = read_image([path], time_is_channels=True)
    secret = found.array.size == _SECRET.size and np.array_equal(np.sort(found.array.ravel()), _SECRET)
    return f"escaped: voxels of another file, {path.name}" if secret else f"different: read as {found.array.shape}"


def _mha(box: Path, name: str = "a.mha", data: bytes = b"", **changes: Any) -> Path:
    entries = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "ElementSpacing": "1 1 1",
        "DimSize": "4 3 2",
        "ElementType": "MET_SHORT",
        **changes,
    }
    entries["ElementDataFile"] = entries.pop("ElementDataFile", "LOCAL")  # the last one
    (box / name).write_bytes("".join(f"{key} = {value}\n" for key, value in entries.items()).encode() + data)
    return box / name


def _nrrd(box: Path, name: str = "a.nrrd", data: bytes = b"", **changes: Any) -> Path:
    entries = {"type": "short", "dimension": 3, "sizes": "4 3 2", "encoding": "raw", "endian": "little", **changes}
    lines = ["NRRD0004", *(f"{key.replace('_', ' ')}: {value}" for key, value in entries.items()), "", ""]
    (box / name).write_bytes("\n".join(lines).encode() + data)
    return box / name


def _secret(box: Path) -> Path:
    path = box.parent / "secret.raw"
    path.write_bytes(_SECRET.tobytes())
    return path


def _nifti(box: Path, name: str = "a.nii", dim: tuple[int, ...] = (3, 4, 3, 2, 1, 1, 1, 1), **changes: Any) -> Path:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, *dim)
    struct.pack_into("<hh", header, 70, changes.get("datatype", 4), changes.get("bitpix", 16))
    struct.pack_into("<8f", header, 76, 1, *changes.get("pixdim", (1, 1, 1, 1, 1, 1, 1)))
    struct.pack_into("<fff", header, 108, changes.get("offset", 352), 1, 0)
    header[344:348] = changes.get("magic", b"n+1\0")
    content = bytes(header) + changes.get("data", bytes(48))
    (box / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return box / name


def _references() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    targets = {
        "up": lambda box: "../secret.raw",
        "absolute": lambda box: str(box.parent / "secret.raw"),
        "other name": lambda box: "secret.raw",
        "list": lambda box: "LIST\n../secret.raw",
        "pattern": lambda box: "../secret%d.raw 1 2 1",
        "string format": lambda box: "%s%s%s%n%n.raw 1 2 1",
        "device": lambda box: "/dev/zero",
        "process": lambda box: "/proc/self/environ",
        "empty": lambda box: "",
        "long": lambda box: "x" * 5000 + ".raw",
    }

    def lead(name: str, target: Callable[[Path], str], box: Path) -> Path:
        (box / "secret.raw").write_bytes(_secret(box).read_bytes())
        for number in (1, 2):
            (box.parent / f"secret{number}.raw").write_bytes(_SECRET[:12].tobytes())
        text = target(box)
        if name.endswith((".mha", ".mhd")):
            return _mha(box, name, ElementDataFile=text)
        return _nrrd(box, name, data_file=text)

    for name in ("a.mha", "a.mhd", "a.nrrd", "a.nhdr"):
        for kind, target in targets.items():
            yield f"{name} {kind}", partial(lead, name, target)

    def link(name: str, target: str, box: Path) -> Path:
        (box / name).symlink_to(target)
        return box / name

    for name in ("a.nii.gz", "a.png", "a.tif", "a.dcm"):
        yield f"{name} links to a device", partial(link, name, "/dev/zero")
        yield f"{name} links to itself", partial(link, name, name)

    def pipe(name: str, box: Path) -> Path:
        os.mkfifo(box / name)
        return box / name

    endings = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".tif", ".png", ".bmp", ".gipl", ".dcm", "")
    for ending in endings:
        yield f"pipe a{ending}", partial(pipe, f"a{ending}")

    def folder_of_pipes(box: Path) -> Path:
        (box / "series").mkdir()
        os.mkfifo(box / "series" / "0.dcm")
        return box / "series"

    yield "series of pipes", folder_of_pipes

    def series_outside(box: Path) -> Path:
        (box / "series").mkdir()
        (box / "series" / "0.dcm").symlink_to("/dev/zero")
        return box / "series"

    yield "series of devices", series_outside


def _bombs() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    zeros = gzip.compress(bytes(10_000_000))

    def behind(box: Path) -> Path:
        path = _nifti(box, "a.nii.gz")
        with path.open("ab") as stream:
            for _ in range(400):
                stream.write(zeros)
        return path

    yield "4 GB behind the voxels, nii.gz", behind
    for dim in ((3, 30000, 30000, 30000, 1, 1, 1, 1), (3, 32767, 32767, 1, 1, 1, 1, 1), (7, *(32767,) * 7),
                (3, -4, 3, 2, 1, 1, 1, 1), (0, 1, 1, 1, 1, 1, 1, 1), (9, 4, 3, 2, 1, 1, 1, 1)):  # fmt: skip
        for name in ("a.nii", "a.nii.gz"):
            yield f"{name} of {dim[:4]}", partial(_nifti, name=name, dim=dim)
    yield "nii with an offset beyond the file", partial(_nifti, offset=1e9)
    yield "nii of an unknown type", partial(_nifti, datatype=77)
    yield "nii of no spacing", partial(_nifti, pixdim=(0, float("nan"), 1e30, 1, 1, 1, 1))
    for sizes in ("30000 30000 30000", "4 3 99999999999999999999", "-4 3 2", "4 3", "0 3 2", "4 3 nan"):
        yield f"mha of {sizes}", partial(_mha, DimSize=sizes, data=bytes(48))
        yield f"nrrd of {sizes}", partial(_nrrd, sizes=sizes, data=bytes(48))
    yield "mha of 50 axes", partial(_mha, NDims=50, DimSize=" ".join(["2"] * 50), data=bytes(48))
    yield "mha of 2e9 axes", partial(_mha, NDims=2_000_000_000, data=bytes(48))
    yield "nrrd of 2e9 axes", partial(_nrrd, dimension=2_000_000_000, data=bytes(48))
    yield "mha of 1e6 channels", partial(_mha, ElementNumberOfChannels=10**9, data=bytes(48))
    bomb = zlib.compress(bytes(50_000_000))
    yield (
        "mha, deflated far behind the voxels",
        partial(_mha, CompressedData="True", CompressedDataSize=len(bomb), data=bomb),
    )
    yield "nrrd, gzip far behind the voxels", partial(_nrrd, encoding="gzip", data=zeros * 4)

    def png(width: int, height: int, box: Path) -> Path:
        def part(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", bomb) + part(b"IEND", b"")
        (box / "a.png").write_bytes(content)
        return box / "a.png"

    for width, height in ((60000, 60000), (2**31 - 1, 2**31 - 1), (0, 5), (100, 2_000_000)):
        yield f"png of {width} x {height}", partial(png, width, height)

    def tiff(shape: tuple[int, int], box: Path) -> Path:
        tifffile.imwrite(box / "a.tif", np.zeros((64, 64), np.uint8), compression="zlib")
        content = (box / "a.tif").read_bytes()
        for tag, size in ((256, shape[1]), (257, shape[0]), (278, shape[0])):
            for form, width in (("<HHI", "<I"), ("<HHI", "<H")):
                at = content.find(struct.pack(form, tag, 4 if width == "<I" else 3, 1))
                if at > 0:
                    value = struct.pack(width, size if width == "<I" else min(size, 65535))
                    content = content[: at + 8] + value + content[at + 8 + len(value) :]
        (box / "a.tif").write_bytes(content)
        return box / "a.tif"

    for shape in ((65000, 65000), (2**31 - 1, 2), (0, 64)):
        yield f"tif of {shape}", partial(tiff, shape)

    def pages(box: Path) -> Path:
        tifffile.imwrite(box / "a.tif", np.zeros((4, 8, 8), np.uint8), photometric="minisblack", metadata=None)
        content = bytearray((box / "a.tif").read_bytes())
        first = struct.unpack_from("<I", content, 4)[0]
        count = struct.unpack_from("<H", content, first)[0]
        struct.pack_into("<I", content, first + 2 + 12 * count, first)  # the next page is the first one
        (box / "a.tif").write_bytes(content)
        return box / "a.tif"

    yield "tif whose pages go round", pages

    def dicom(box: Path, **changes: Any) -> Path:
        path = _series(box) / "0.dcm"
        header = pydicom.dcmread(path)
        for name, value in changes.items():
            setattr(header, name, value)
        header.save_as(path)
        return path

    yield "DICOM of 60000 x 60000", partial(dicom, Rows=60000, Columns=60000)
    yield "DICOM of 1e9 frames", partial(dicom, NumberOfFrames=1_000_000_000)

    def deflated(box: Path) -> Path:
        header = pydicom.dcmread(_series(box) / "0.dcm")
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        header.ImageComments = "a"
        header.add_new(0x00091001, "OB", bytes(400_000_000))
        header.save_as(box / "a.dcm", implicit_vr=False, little_endian=True)
        return box / "a.dcm"

    yield "DICOM deflated 1000 times", deflated

    def nested(box: Path) -> Path:
        content = b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, 0)
        content += struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"
        deep = struct.pack("<HH2sHI", 0x40, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
            "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
        )
        (box / "a.dcm").write_bytes(content + deep * 20000)
        return box / "a.dcm"

    yield "DICOM nested 20,000 deep", nested


def _others() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    contents = {
        "empty": b"",
        "one byte": b"\0",
        "program": b"\x7fELF\x02\x01\x01" + bytes(500),
        "HTML": b"<html><script>alert(1)</script></html>" * 20,
        "PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "zip": b"PK\x03\x04" + bytes(300),
        "random": np.random.default_rng(5).bytes(3000),
        "gzip of random": gzip.compress(np.random.default_rng(6).bytes(3000)),
    }

    def write(name: str, content: bytes, box: Path) -> Path:
        (box / name).write_bytes(content)
        return box / name

    for what, content in contents.items():
        for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.tif", "a.png", "a.bmp", "a.gipl"):
            yield f"{what} as {name}", partial(write, name, content)

    def folder(box: Path) -> Path:
        (box / "a.nii.gz").mkdir()
        return box / "a.nii.gz"

    yield "folder as a.nii.gz", folder


def _series(box: Path) -> Path:
    folder = box / "series"
    folder.mkdir()
    rng = np.random.default_rng(2)
    _FUZZ["_dicom"](rng, folder, "dicom", "u2", "<", _FUZZ["geometry_of"]("uneven"))
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        if header.file_meta.TransferSyntaxUID != ExplicitVRLittleEndian:
            header.decompress() if header.file_meta.TransferSyntaxUID.is_compressed else None
            header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            header.save_as(path, implicit_vr=False, little_endian=True)
    return folder


def _real(folder: Path) -> np.ndarray:
    """Return the real values (Z, Y, X) of a series as pydicom and arithmetic give them, sorted along z."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    slices.sort(key=lambda header: float(header.ImagePositionPatient[2]))
    planes = [
        header.pixel_array * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
        for header in slices
    ]
    return np.stack(planes).astype(np.float64)


def _dicom(change: Callable[[pydicom.Dataset], None], box: Path, made: Made) -> str:
    """A series, one slice of which has another value of a tag: refused, or the values of pydicom."""
    folder = _series(box)
    path = sorted(folder.iterdir())[1]
    header = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        change(header)
        header.save_as(path, implicit_vr=False, little_endian=True)
    made()
    voxel_count([folder])
    found = read_image([folder]).array[0]
    expected = _real(folder)
    return "equal" if np.allclose(found, expected) else "different: from pydicom"


def _flipped_dicom(number: int, box: Path, made: Made) -> str:
    """A series with a flipped bit in a header: refused, or the values of pydicom."""
    folder = _series(box)
    rng = np.random.default_rng([13, number])
    path = sorted(folder.iterdir())[int(rng.integers(len(list(folder.iterdir()))))]
    content = bytearray(path.read_bytes())
    content[int(rng.integers(132, len(content) - 100))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    made()
    found = read_image([folder]).array[0]
    try:
        expected = _real(folder)
    except Exception as error:
        return f"different: pydicom cannot read it ({error})"
    return "equal" if found.shape == expected.shape and np.allclose(found, expected) else "different: from pydicom"


def _tags() -> dict[str, Callable[[pydicom.Dataset], None]]:
    def put(name: str, value: Any) -> Callable[[pydicom.Dataset], None]:
        def change(header: pydicom.Dataset) -> None:
            try:
                setattr(header, name, value)
            except (ValueError, TypeError):  # pydicom writes no text where a number is due
                header[name] = pydicom.DataElement(pydicom.datadict.tag_for_keyword(name) or 0, "LO", value)

        return change

    def drop(name: str) -> Callable[[pydicom.Dataset], None]:
        return lambda header: delattr(header, name)

    def syntax(uid: str) -> Callable[[pydicom.Dataset], None]:
        def change(header: pydicom.Dataset) -> None:
            header.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
            if uid != "1.2.3.4":
                header.PixelData = pydicom.encaps.encapsulate([header.PixelData])

        return change

    values: dict[str, tuple[Any, ...]] = {
        "BitsAllocated": (7, 0, 64, 1),
        "BitsStored": (40, 0),
        "Rows": (0, 7, 60000),
        "SamplesPerPixel": (0, 9),
        "PixelRepresentation": (1, 5),
        "PlanarConfiguration": (4,),
        "NumberOfFrames": ("-1", "0", "7", "abc"),
        "PhotometricInterpretation": ("PALETTE COLOR", "RGB", "<script>", ""),
        "RescaleSlope": ("nan", "1e999", "0", "abc"),
        "PixelSpacing": ([0, 0], [-1, 1], ["1e999", "1"], ["a", "b"]),
        "ImagePositionPatient": (["nan", 0, 0], ["1e300", 0, 0], [0, 0]),
        "ImageOrientationPatient": ([0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [1, 0]),
        "SpecificCharacterSet": ("ISO_IR 999", "../../etc"),
        "SOPInstanceUID": ("../../x", "", "1." * 400),
        "SeriesInstanceUID": ("../../x", ""),
    }
    found = {f"{name}={value!r:.40}": put(name, value) for name, options in values.items() for value in options}
    for name in ("PixelData", "Rows", "BitsAllocated", "PixelSpacing", "ImagePositionPatient", "SeriesInstanceUID"):
        found[f"without {name}"] = drop(name)
    for uid in ("1.2.3.4", JPEGBaseline8Bit, "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"):
        found[f"transfer syntax {uid}"] = syntax(str(uid))
    return found


_REFERENCES = dict(_references())
_BOMBS = dict(_bombs())
_OTHERS = dict(_others())
_TAGS = _tags()
_ = sitk  # imported before the processes are forked
