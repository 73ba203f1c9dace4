"""Check MetaImage, NRRD and GIPL files before ITK opens them: where their voxels are, and how many bytes there must be.

ITK takes memory for whatever size a header declares, follows any file name in a header, and reads some truncated files
without an error.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from umamba.io.bounds import REMEDY, check_inflated, check_length, check_regular, check_room, check_spacing
from umamba.io.errors import UserError

_MOST_HEADER_BYTES = 1 << 20
# Bytes of a number by the names of MetaImage and NRRD, without MET_, signs and spaces
_META_BYTES = {
    **{"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4},
    **{"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8},
}
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
# Keys whose values are one number for each axis, or a matrix
_META_VECTORS = {
    *("TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin", "CenterOfRotation"),
    *("ElementSpacing", "ElementSize"),
}
_GIPL_BYTES = {1: 1, 7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
_GIPL_MAGIC = (719555000, 4026526128)

Encoding = Literal["raw", "deflated", "text", "hex"]
_NRRD_ENCODINGS: dict[str, Encoding] = {
    **{"raw": "raw", "gzip": "deflated", "gz": "deflated", "hex": "hex"},
    **{"txt": "text", "text": "text", "ascii": "text"},
}


@dataclass(frozen=True)
class Layout:
    """Where and how the voxels of a file are stored.

    Attributes:
        numbers: how many there are.
        number_bytes: bytes of each.
        encoding: how they are stored.
        file: the file that holds them.
        offset: byte at which they begin, at least.
        spacing_xyz: as stored; empty if the header has none.
    """

    numbers: int
    number_bytes: int
    encoding: Encoding
    file: Path
    offset: int
    spacing_xyz: tuple[float, ...]


def check_layout(path: Path) -> int | None:
    """Check a MetaImage, NRRD or GIPL file; files of other endings are not looked at.

    Args:
        path: the file.

    Returns:
        How many numbers its voxels are, or None for other endings.

    Raises:
        UserError: the header is none, names foreign files, declares more than is there or fits into the memory, or has
            a spacing that is not positive.
    """
    layout = layout_of(path)
    if layout is None:
        return None
    check_spacing(path, layout.spacing_xyz)
    _check_bytes(path, layout)
    return layout.numbers


def layout_of(path: Path) -> Layout | None:
    """Read the header of a MetaImage, NRRD or GIPL file; the voxels are not looked at.

    Args:
        path: the file.

    Returns:
        Where its voxels are and how many; None for other endings.

    Raises:
        UserError: the header is none, or names foreign files.
    """
    reader = _HEADERS.get(path.suffix.lower())
    if reader is None:
        return None
    check_regular(path)
    try:
        with open(path, "rb") as stream:
            return reader(path, stream)
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise UserError(f"{path}: cannot be decoded (its header is damaged: {error}). {REMEDY}") from None


def _check_bytes(path: Path, layout: Layout) -> None:
    if layout.numbers < 1:
        raise UserError(f"{path}: its header declares no voxels. {REMEDY}")
    needed = layout.numbers * layout.number_bytes
    available = layout.file.stat().st_size - layout.offset
    if layout.encoding == "raw":
        check_length(path, available, needed)
    elif layout.encoding == "deflated":
        check_length(path, available, needed, compressed=True)
    else:  # a digit and a space, or two digits a byte
        check_length(path, available, 2 * layout.numbers - 1 if layout.encoding == "text" else 2 * needed)
    check_room(path, needed)
    if layout.encoding == "deflated":
        with open(layout.file, "rb") as stream:
            stream.seek(layout.offset)
            check_inflated(path, stream, needed)


def _meta(path: Path, stream: BinaryIO) -> Layout:
    """Read the header of a MetaImage file: lines `Key = Value` up to ElementDataFile."""
    entries: dict[str, str] = {}
    while "ElementDataFile" not in entries:
        line = stream.readline(_MOST_HEADER_BYTES)
        if not line or stream.tell() > _MOST_HEADER_BYTES:
            raise UserError(f"{path}: cannot be decoded (its header names no ElementDataFile). {REMEDY}")
        key, separator, value = (part.strip() for part in line.decode("latin-1").partition("="))
        if not key and not separator:
            continue
        if not re.fullmatch(r"[^:\s]+", key) or not separator or key in entries:
            raise UserError(f"{path}: cannot be decoded (its content is no MetaImage, or a key occurs twice). {REMEDY}")
        entries[key] = value
    sizes = [int(word) for word in entries["DimSize"].split()]
    if len(sizes) != int(entries["NDims"]) or min(sizes) < 1:
        raise ValueError(f"DimSize = {entries['DimSize']}")
    for key in _META_VECTORS & set(entries):
        if len([float(word) for word in entries[key].split()]) not in (len(sizes), len(sizes) ** 2):
            raise ValueError(f"{key} = {entries[key]}")
    name = entries["ElementDataFile"]
    local = name.upper() == "LOCAL"
    file = path if local else _beside(path, name, "ElementDataFile")
    offset = stream.tell() if local else max(0, int(entries.get("HeaderSize", "0")))
    kind = entries["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")
    encoding: Encoding = "deflated" if _true(entries, "CompressedData") else "raw"
    if not _true(entries, "BinaryData", default=True):
        encoding = "text"
    if int(entries.get("CompressedDataSize", "1")) < 1:
        raise ValueError(f"CompressedDataSize = {entries['CompressedDataSize']}")
    spacing = entries.get("ElementSpacing", entries.get("ElementSize", ""))
    return Layout(
        math.prod(sizes) * int(entries.get("ElementNumberOfChannels", "1")),
        _META_BYTES[kind],
        encoding,
        file,
        offset,
        tuple(float(word) for word in spacing.split()),
    )


def _true(entries: Mapping[str, str], key: str, default: bool = False) -> bool:
    word = entries.get(key, str(default)).lower()
    if word not in _BOOLEANS:
        raise ValueError(f"{key} = {entries[key]}")
    return _BOOLEANS[word]


def _nrrd(path: Path, stream: BinaryIO) -> Layout:
    """Read the header of an NRRD file: a magic line, lines `field: value`, and an empty line before the voxels."""
    if not stream.readline(16).startswith(b"NRRD"):
        raise UserError(f"{path}: cannot be decoded (its content is no NRRD). {REMEDY}")
    entries: dict[str, str] = {}
    while (line := stream.readline(_MOST_HEADER_BYTES)).strip():
        if stream.tell() > _MOST_HEADER_BYTES:
            raise UserError(f"{path}: cannot be decoded (its header has no end). {REMEDY}")
        key, separator, value = line.decode("latin-1").partition(":")
        if key.startswith("#") or not separator or value.startswith("="):
            continue
        key = key.strip().lower().replace(" ", "")
        if key in entries:
            raise ValueError(f"the field {key} occurs twice")
        entries[key] = value.strip()
    sizes = [int(word) for word in entries["sizes"].split()]
    if len(sizes) != int(entries["dimension"]) or min(sizes) < 1:
        raise ValueError(f"sizes: {entries['sizes']}")
    name = entries.get("datafile")
    file = path if name is None else _beside(path, name, "data file")
    offset = stream.tell() if name is None else 0
    skip = int(entries.get("byteskip", "0"))
    numbers, number_bytes = math.prod(sizes), _NRRD_BYTES[entries["type"].lower()]
    encoding = _NRRD_ENCODINGS.get(entries["encoding"].lower())
    if encoding is None:
        raise UserError(f"{path}: has the encoding {entries['encoding']}. Save it with the encoding gzip or raw.")
    if encoding == "raw":
        offset += max(0, skip)
    return Layout(numbers, number_bytes, encoding, file, offset, _nrrd_spacing(entries))


def _nrrd_spacing(entries: Mapping[str, str]) -> tuple[float, ...]:
    """Return the spacing of the spatial axes; other axes have `none` or `nan` there."""
    if "spacedirections" in entries:
        vectors = re.findall(r"\(([^)]*)\)", entries["spacedirections"])
        return tuple(math.hypot(*(float(word) for word in vector.split(","))) for vector in vectors)
    words = entries.get("spacings", "").split()
    kinds = entries.get("kinds", " ".join(["domain"] * len(words))).split()
    spatial = [word for word, kind in zip(words, kinds, strict=False) if kind in ("domain", "space")]
    return tuple(float(word) for word in spatial)


def _gipl(path: Path, stream: BinaryIO) -> Layout:
    """Read the header of a GIPL file, 256 bytes, big-endian."""
    start = stream.read(256)
    if len(start) < 256:
        raise UserError(f"{path}: the file is truncated (its GIPL header is incomplete). {REMEDY}")
    if struct.unpack(">I", start[252:256])[0] not in _GIPL_MAGIC:
        raise UserError(f"{path}: cannot be decoded (its content is no GIPL). {REMEDY}")
    sizes, (kind,) = struct.unpack(">4H", start[:8]), struct.unpack(">H", start[8:10])
    used = [size for size in sizes if size > 0]
    spacing = struct.unpack(">4f", start[10:26])[: min(3, max(2, len(used)))]
    return Layout(math.prod(used) if used else 0, _GIPL_BYTES[kind], "raw", path, 256, spacing)


def _beside(path: Path, name: str, field: str) -> Path:
    """Return the file of voxels that a header names, if it lies beside the header under the header's own name."""
    own = path.name.removesuffix(path.suffix) + "."
    if not name.startswith(own) or re.search(r"[/\\%\0]", name) or name in (path.name, ".", ".."):
        raise UserError(
            f"{path}: its header takes the voxels from {name!r} ({field}). Only a single file beside it that is called "
            f"{own}raw or the like is read. Save the image as one file."
        )
    check_regular(path.with_name(name))
    return path.with_name(name)


_HEADERS = {".mha": _meta, ".mhd": _meta, ".nrrd": _nrrd, ".nhdr": _nrrd, ".gipl": _gipl}
