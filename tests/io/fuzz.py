"""Generated image files of every format, whole and damaged, and what independent readers make of them.

    python tests/io/fuzz.py OUT [COUNT] [SEED]

writes COUNT (300) files to OUT, reads them with umamba, and prints a table of container and outcome. A file is of one
container x type x byte order x geometry x damage. What it must read as is found by nibabel (NIfTI), pydicom (DICOM),
tifffile (TIFF) and scikit-image (PNG, BMP); NRRD and MHA are put together here, byte by byte, from the numbers that
they must read as. Outcomes: `equal` (values and geometry), `refused` (one UserError), `different` and `traceback`; the
last two are faults. A damaged file must be refused, unless the damage leaves its values whole.
"""

import gzip
import math
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pydicom
import skimage.io
import tifffile
from PIL import Image as pillow
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from umamba.io import UserError, read_image

SHAPE = (4, 6, 7)  # (Z, Y, X)
CONTAINERS = (
    *("nii", "nii.gz", "nii2", "nrrd", "nrrd-gzip", "mha", "mha-zlib"),
    *("tif", "tif-zlib", "tif-tiles", "tif-imagej", "tif-2d", "png", "png-bits", "bmp", "dicom", "dicom-enhanced"),
)
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "f2", "b1")
GEOMETRIES = ("unit", "uneven", "tiny", "flipped", "oblique")
Order = Literal["<", ">"]
DAMAGES = ("none", "none", "none", "cut-30", "cut-90", "cut-1", "lie", "appended")


@dataclass(frozen=True)
class Geometry:
    """Spacing (Z, Y, X) in mm, origin and direction as ITK gives them (LPS, row by row)."""

    spacing: tuple[float, float, float]
    origin_xyz: tuple[float, float, float]
    direction_xyz: tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """One generated file; `expected` is (C, Z, Y, X), and `geometry` None where the format has none."""

    name: str
    path: Path
    damaged: bool
    expected: np.ndarray
    geometry: Geometry | None


def geometry_of(kind: str) -> Geometry:
    """Return one of the geometries."""
    spacing = {"unit": (1.0, 1.0, 1.0), "tiny": (2e-4, 1e-4, 1.5e-4)}.get(kind, (2.5, 0.75, 0.5))
    angle = 0.5 if kind == "oblique" else 0.0
    cosine, sine = math.cos(angle), math.sin(angle)
    direction = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    if kind == "flipped":
        direction = direction * [-1, -1, 1]
    return Geometry(spacing, (10.0, -20.0, 30.5), tuple(direction.ravel().tolist()))


def numbers(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return random voxels of a type, over much of its range."""
    dtype = np.dtype(kind)
    if dtype.kind == "b":
        return rng.random(shape) > 0.5
    if dtype.kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -(10**6)), min(limits.max, 10**6), shape, dtype, endpoint=True)


def generate(folder: Path, count: int, seed: int) -> list[Sample]:
    """Write generated files, the same ones for the same seed.

    Args:
        folder: where to.
        count: how many.
        seed: of the generator.
    """
    samples = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        container = CONTAINERS[index % len(CONTAINERS)]
        kind = str(rng.choice(TYPES))
        order: Order = "<" if rng.choice(["<", ">"]) == "<" else ">"
        geometry, damage = str(rng.choice(GEOMETRIES)), str(rng.choice(DAMAGES))
        name = f"{index:03d}-{container}-{kind}-{'little' if order == '<' else 'big'}-{geometry}-{damage}"
        target = folder / name
        target.mkdir(parents=True)
        path, expected, place = _WRITERS[container](rng, target, container, kind, order, geometry_of(geometry))
        damaged = damage != "none" and _damage(rng, path, container, damage)
        samples.append(Sample(name, path, damaged, expected, place))
    return samples


def outcome(sample: Sample) -> str:
    """Read one file with umamba and return how that ended, with the reason."""
    try:
        image = read_image([sample.path], time_is_channels=True)
    except UserError as error:
        text = str(error)
        return f"refused: {text}" if "\n" not in text and sample.path.name in text else f"traceback: unclear {text}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    expected = sample.expected.astype(np.float64)
    if image.array.shape != expected.shape:
        return f"different: shape {image.array.shape} instead of {expected.shape}"
    if not np.allclose(image.array.astype(np.float64), expected, rtol=1e-6, atol=1e-9):
        worst = float(np.abs(image.array.astype(np.float64) - expected).max())
        return f"different: values, by up to {worst:g}"
    if sample.geometry is not None:
        for field in ("spacing", "origin_xyz", "direction_xyz"):
            ours, theirs = getattr(image.geometry, field), getattr(sample.geometry, field)
            if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-9 if field == "spacing" else 1e-4):
                return f"different: {field} {ours} instead of {theirs}"
    return "equal"


def _nifti(
    rng: np.random.Generator, folder: Path, container: str, kind: str, order: Order, geometry: Geometry
) -> tuple[Path, np.ndarray, Geometry | None]:
    kind = {"f2": "f4", "b1": "u1"}.get(kind, kind)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(geometry.direction_xyz, (3, 3)) * geometry.spacing[::-1]
    affine[:3, 3] = geometry.origin_xyz
    affine[:2] *= -1  # LPS to RAS
    name = {"nii2": "a.nii"}.get(container, f"a.{container}")
    voxels = numbers(rng, kind, SHAPE[::-1])
    header = (nib.Nifti2Header if container == "nii2" else nib.Nifti1Header)(endianness=order)
    header.set_data_dtype(np.dtype(kind).newbyteorder(order))
    image = (nib.Nifti2Image if container == "nii2" else nib.Nifti1Image)(voxels, affine, header)
    if rng.random() < 0.3:
        image.header.set_slope_inter(0.5, -3.0)
        image = type(image)(voxels * 0.5 - 3.0, affine, image.header)
        image.header.set_data_dtype(np.dtype(kind).newbyteorder(order))
    nib.save(image, folder / name)
    read: Any = nib.load(folder / name)
    spacing = tuple(float(value) for value in read.header.get_zooms()[:3])[::-1]
    assert np.allclose(spacing, geometry.spacing, rtol=1e-4)
    return folder / name, np.asarray(read.dataobj).T[None], geometry


def _nrrd(
    rng: np.random.Generator, folder: Path, container: str, kind: str, order: Order, geometry: Geometry
) -> tuple[Path, np.ndarray, Geometry | None]:
    names = {"u1": "uchar", "i1": "signed char", "u2": "ushort", "i2": "short", "u4": "uint", "i4": "int"}
    kind = {"f2": "f4", "b1": "u1"}.get(kind, kind)
    type_name = {**names, "f4": "float", "f8": "double"}[kind]
    voxels = numbers(rng, kind, SHAPE)
    axes = np.reshape(geometry.direction_xyz, (3, 3)) * geometry.spacing[::-1]
    header = [
        *("NRRD0004", f"type: {type_name}", "dimension: 3", "space: left-posterior-superior", "sizes: 7 6 4"),
        "space directions: " + " ".join(f"({','.join(repr(float(value)) for value in axis)})" for axis in axes.T),
        *("kinds: domain domain domain", f"endian: {'little' if order == '<' else 'big'}"),
        f"encoding: {'gzip' if container == 'nrrd-gzip' else 'raw'}",
        f"space origin: ({','.join(map(repr, geometry.origin_xyz))})",
    ]
    data = voxels.astype(np.dtype(kind).newbyteorder(order)).tobytes()
    data = gzip.compress(data) if container == "nrrd-gzip" else data
    (folder / "a.nrrd").write_bytes("\n".join(header).encode() + b"\n\n" + data)
    return folder / "a.nrrd", voxels[None], geometry


def _mha(
    rng: np.random.Generator, folder: Path, container: str, kind: str, order: Order, geometry: Geometry
) -> tuple[Path, np.ndarray, Geometry | None]:
    names = {"u1": "MET_UCHAR", "i1": "MET_CHAR", "u2": "MET_USHORT", "i2": "MET_SHORT", "u4": "MET_UINT"}
    kind = {"f2": "f4", "b1": "u1"}.get(kind, kind)
    type_name = {**names, "i4": "MET_INT", "f4": "MET_FLOAT", "f8": "MET_DOUBLE"}[kind]
    voxels = numbers(rng, kind, SHAPE)
    data = voxels.astype(np.dtype(kind).newbyteorder(order)).tobytes()
    packed = container == "mha-zlib"
    data = zlib.compress(data) if packed else data
    matrix = np.reshape(geometry.direction_xyz, (3, 3)).T.ravel().tolist()  # MetaImage lists one axis after the other
    header = [
        *("ObjectType = Image", "NDims = 3", "BinaryData = True"),
        f"BinaryDataByteOrderMSB = {order == '>'}",
        f"CompressedData = {packed}",
        *([f"CompressedDataSize = {len(data)}"] if packed else []),
        f"TransformMatrix = {' '.join(map(repr, matrix))}",
        f"Offset = {' '.join(map(repr, geometry.origin_xyz))}",
        f"ElementSpacing = {' '.join(map(repr, geometry.spacing[::-1]))}",
        *("DimSize = 7 6 4", f"ElementType = {type_name}", "ElementDataFile = LOCAL"),
    ]
    (folder / "a.mha").write_bytes("\n".join(header).encode() + b"\n" + data)
    return folder / "a.mha", voxels[None], geometry


def _tiff(
    rng: np.random.Generator, folder: Path, container: str, kind: str, order: Order, geometry: Geometry
) -> tuple[Path, np.ndarray, Geometry | None]:
    path = folder / "a_0000.tif"
    flat = container == "tif-2d"
    colours = flat and rng.random() < 0.3 and kind in ("u1", "u2")
    shape = (32, 48) if container == "tif-tiles" else SHAPE[1:] if flat else SHAPE
    shape = (*shape, 3) if colours else shape
    options: dict[str, Any] = {"photometric": "rgb" if colours else "minisblack"}
    if container == "tif-zlib":
        options |= {"compression": "zlib", "predictor": bool(kind[0] in "ui" and rng.random() < 0.5)}
    elif container == "tif-tiles":
        options |= {"tile": (16, 16)}
    elif container == "tif-imagej":
        kind, order = {"u1": "u1", "f4": "f4"}.get(kind, "u2"), ">"
        options |= {"imagej": True}
    elif rng.random() < 0.5:
        options |= {"metadata": None}
    voxels = numbers(rng, kind, shape)
    tifffile.imwrite(path, voxels, byteorder=order, bigtiff=bool(not options.get("imagej") and rng.random() < 0.3),
                     resolution=(300, 300), **options)  # fmt: skip
    read = tifffile.imread(path)
    expected = np.moveaxis(read, -1, 0)[:, None] if colours else read.reshape(1, -1, *read.shape[-2:])
    if flat or container == "tif-tiles":
        return path, expected, None
    stated = rng.random() < 0.5
    if stated:
        (folder / "a.json").write_text(f'{{"spacing": {list(geometry.spacing)}}}')
    unit = geometry_of("unit")
    spacing = geometry.spacing if stated else unit.spacing
    return path, expected, Geometry(spacing, (0.0, 0.0, 0.0), unit.direction_xyz)


def _picture(
    rng: np.random.Generator, folder: Path, container: str, kind: str, order: Order, geometry: Geometry
) -> tuple[Path, np.ndarray, Geometry | None]:
    path = folder / f"a.{container[:3]}"
    if container == "png-bits":
        mode = str(rng.choice(["1", "P", "LA", "RGBA", "transparent", "P-transparent"]))
        grey = rng.integers(0, 256, SHAPE[1:], np.uint8)
        picture = pillow.fromarray(grey)
        if mode in ("1", "LA", "RGBA"):
            picture = picture.convert(mode)
        elif mode.startswith("P"):
            picture = picture.convert("P")
            picture.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
        options: dict[str, Any] = {"transparency": 3} if mode.endswith("transparent") else {}
        picture.save(path, **options)
    else:
        wide = container == "png" and kind[1] != "1"
        colours = not wide and rng.random() < 0.4
        voxels = numbers(rng, "u2" if wide else "u1", (*SHAPE[1:], 3) if colours else SHAPE[1:])
        pillow.fromarray(voxels > 128 if kind == "b1" and not colours else voxels).save(path)
    read = skimage.io.imread(path).astype(np.float64)
    return path, (np.moveaxis(read, -1, 0) if read.ndim == 3 else read[None])[:, None], None


def _dicom(
    rng: np.random.Generator, folder: Path, container: str, kind: str, order: Order, geometry: Geometry
) -> tuple[Path, np.ndarray, Geometry | None]:
    """A series or an enhanced file with a slope of its own for each slice, slices in any order."""
    kind = kind if kind in ("u1", "u2", "i2") else "u2"
    voxels = numbers(rng, kind, SHAPE)
    syntax = ExplicitVRBigEndian if order == ">" else [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless][
        int(rng.integers(3))
    ]  # fmt: skip
    scales = [(1.0, -1024.0)] * SHAPE[0] if rng.random() < 0.5 else [(0.5 + z, z * 1.0) for z in range(SHAPE[0])]
    axes = np.reshape(geometry.direction_xyz, (3, 3))
    positions = [np.array(geometry.origin_xyz) + z * geometry.spacing[0] * axes[:, 2] for z in range(SHAPE[0])]
    stored = rng.permutation(SHAPE[0])
    orientation = [*axes[:, 0].tolist(), *axes[:, 1].tolist()]
    inverted = bool(rng.random() < 0.3)
    expected = np.empty((1, *SHAPE))
    for place, z in enumerate(stored) if container == "dicom" else [(0, 0)]:
        header = _dicom_header(folder / f"{place}.dcm", syntax, voxels.dtype, inverted)
        planes = voxels[z : z + 1] if container == "dicom" else voxels[stored]
        if container == "dicom":
            header.ImagePositionPatient, header.ImageOrientationPatient = _words(positions[z]), _words(orientation)
            header.PixelSpacing, header.SliceThickness = _words(geometry.spacing[1:]), geometry.spacing[0]
            header.RescaleSlope, header.RescaleIntercept = scales[z]
        else:
            header.NumberOfFrames = SHAPE[0]
            _describe_frames(header, [(positions[i], scales[i]) for i in stored], orientation, geometry.spacing)
        data = planes.astype(planes.dtype.newbyteorder(order)).tobytes()
        header[0x7FE00010] = pydicom.DataElement(0x7FE00010, "OB" if kind == "u1" else "OW", data)
        if syntax == RLELossless:
            header.compress(RLELossless, planes if len(planes) > 1 else planes[0], generate_instance_uid=False)
        header.save_as(folder / f"{place}.dcm", enforce_file_format=True)
        read = pydicom.dcmread(folder / f"{place}.dcm").pixel_array.reshape(planes.shape)
        for frame, index in zip(read, [z] if container == "dicom" else stored, strict=True):
            expected[0, index] = frame.astype(np.float64) * scales[index][0] + scales[index][1]
    return folder, expected, geometry


def _words(values: Sequence[float] | np.ndarray) -> list[str]:
    return [f"{float(value):.10g}"[:16] for value in values]


def _dicom_header(path: Path, syntax: UID, dtype: np.dtype, inverted: bool) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{path.stem}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    little = syntax != ExplicitVRBigEndian
    implicit = syntax == ImplicitVRLittleEndian
    header = FileDataset(str(path), {}, b"\0" * 128, meta, is_implicit_VR=implicit, is_little_endian=little)
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.Modality, header.StudyInstanceUID, header.SeriesInstanceUID = "CT", "1.2.3", "1.2.4"
    header.Rows, header.Columns, header.SamplesPerPixel = SHAPE[1], SHAPE[2], 1
    header.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = dtype.itemsize * 8
    header.HighBit, header.PixelRepresentation = dtype.itemsize * 8 - 1, int(dtype.kind == "i")
    return header


def _describe_frames(
    header: FileDataset,
    frames: list[tuple[np.ndarray, tuple[float, float]]],
    orientation: list[float],
    spacing: tuple[float, float, float],
) -> None:
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = _words(spacing[1:]), spacing[0]
    plane.ImageOrientationPatient = _words(orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    header.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for position, (slope, intercept) in frames:
        group, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = _words(position)
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, intercept, "HU"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [values]
        groups.append(group)
    header.PerFrameFunctionalGroupsSequence = groups


_Writer = Callable[[np.random.Generator, Path, str, str, Order, Geometry], tuple[Path, np.ndarray, Geometry | None]]
_WRITERS: dict[str, _Writer] = {
    **dict.fromkeys(("nii", "nii.gz", "nii2"), _nifti),
    **dict.fromkeys(("nrrd", "nrrd-gzip"), _nrrd),
    **dict.fromkeys(("mha", "mha-zlib"), _mha),
    **dict.fromkeys(("tif", "tif-zlib", "tif-tiles", "tif-imagej", "tif-2d"), _tiff),
    **dict.fromkeys(("png", "png-bits", "bmp"), _picture),
    **dict.fromkeys(("dicom", "dicom-enhanced"), _dicom),
}


def _damage(rng: np.random.Generator, path: Path, container: str, damage: str) -> bool:
    """Cut a file, make its header declare more than it holds, or append bytes; return whether it was damaged."""
    file = sorted(path.iterdir())[int(rng.integers(len(list(path.iterdir()))))] if path.is_dir() else path
    content = file.read_bytes()
    if damage == "lie":
        changed = _lie(content, container)
        if changed is None:
            return False
        file.write_bytes(changed)
    elif damage == "appended":
        file.write_bytes(content + b"\0" * 10)
        return False  # readers pass over what follows; equal or refused are both right
    else:
        kept = {"cut-30": len(content) * 3 // 10, "cut-90": len(content) * 9 // 10, "cut-1": len(content) - 1}[damage]
        file.write_bytes(content[:kept])
    return True


def _lie(content: bytes, container: str) -> bytes | None:
    """Return a file whose header declares more rows or slices than it holds; None for formats that are left out."""
    if container.startswith("nrrd"):
        return content.replace(b"sizes: 7 6 4", b"sizes: 7 6 9")
    if container.startswith("mha"):
        return content.replace(b"DimSize = 7 6 4", b"DimSize = 7 60000 40000")
    if container == "nii":
        order = "<" if content[:4] == struct.pack("<i", 348) else ">"
        return content[:46] + struct.pack(f"{order}h", 30000) + content[48:]  # dim[3]
    if container == "nii2":
        order = "<" if content[:4] == struct.pack("<i", 540) else ">"
        return content[:40] + struct.pack(f"{order}q", 1 << 40) + content[48:]
    if container.startswith("dicom"):
        for order in ("<H", ">H"):
            rows = struct.pack(order, 0x28) + struct.pack(order, 0x10)
            at = content.find(rows)
            if at > 0:
                return content[: at + 8] + struct.pack(order, 60000) + content[at + 10 :]
    if container.startswith("png"):
        header = content[12:16] + struct.pack(">II", 7, 50000) + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    if container.startswith("tif") and content[2:4] in (b"*\0", b"\0*"):
        order = "<" if content[:2] == b"II" else ">"
        at = content.find(struct.pack(f"{order}HHI", 257, 3, 1))  # ImageLength, a short
        if at > 0:
            return content[: at + 8] + struct.pack(f"{order}H", 60000) + content[at + 10 :]
    return None


def main() -> None:
    """Write the files, read them and print the outcomes."""
    folder = Path(sys.argv[1])
    count, seed = (int(word) for word in (*sys.argv[2:4], "300", "0")[:2]) if len(sys.argv) > 2 else (300, 0)
    table: Counter[tuple[str, str]] = Counter()
    for sample in generate(folder, count, seed):
        found = outcome(sample)
        word = found.split(":")[0]
        fault = word in ("different", "traceback")
        if fault or (word == "refused" and not sample.damaged):
            print(f"{'FAULT' if fault else 'note '} {sample.name}: {found}")
        table[sample.name.split("-")[1], ("damaged " if sample.damaged else "whole ") + word] += 1
    for (container, word), number in sorted(table.items()):
        print(f"{container:8} {word:20} {number}")


if __name__ == "__main__":
    main()
