"""Make tests/io/corpus: small files that once gave a fault in a reader, or stand for a kind that did.

    python tests/io/make_corpus.py

Each must be refused in one sentence; its name says what was wrong. test_fuzz_targets.py reads them, and takes them as
the beginnings of what it makes up.
"""

import gzip
import struct
import zlib
from pathlib import Path

FOLDER = Path(__file__).with_name("corpus")


def _meta(target: str, sizes: str = "4 3 2", **more: str) -> bytes:
    entries = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "DimSize": sizes,
        "ElementType": "MET_SHORT",
        **more,
        "ElementDataFile": target,
    }
    return "".join(f"{key} = {value}\n" for key, value in entries.items()).encode()


def _nrrd(*fields: str, data: bytes = b"") -> bytes:
    given = {field.partition(":")[0] for field in fields}
    usual = ("type: short", "dimension: 3", "sizes: 4 3 2", "encoding: raw", "endian: little")
    lines = ["NRRD0004", *(field for field in usual if field.partition(":")[0] not in given), *fields, "", ""]
    return "\n".join(lines).encode() + data


def _nifti(dim: tuple[int, ...], data: bytes = b"", offset: float = 352) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, *dim)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, offset)
    header[344:348] = b"n+1\0"
    return bytes(header) + data


def _png(width: int, height: int) -> bytes:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(99))) + part(b"IEND", b"")


def _dicom(frames: int) -> bytes:
    """Return a DICOM file that declares many frames and holds none; explicit, little-endian."""

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HH2sH", group, number, kind, len(value)) + value

    def short(number: int, value: int) -> bytes:
        return element(0x28, number, b"US", struct.pack("<H", value))

    meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1")
    content = element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.2") + element(0x20, 0x0E, b"UI", b"1.2.3")
    content += short(2, 1) + element(0x28, 4, b"CS", b"MONOCHROME2") + element(0x28, 8, b"IS", str(frames).encode())
    content += (
        short(0x10, 6) + short(0x11, 7) + short(0x100, 16) + short(0x101, 16) + short(0x102, 15) + short(0x103, 0)
    )
    content += struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 8) + bytes(8)
    return b"\0" * 128 + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + content


def files() -> dict[str, bytes]:
    """Return the files by name."""
    shape, cube = (3, 4, 3, 2, 1, 1, 1, 1), (3, 30000, 30000, 30000, 1, 1, 1, 1)
    return {
        "follows-a-path.mha": _meta("../secret.raw"),
        "follows-a-path.mhd": _meta("../secret.raw"),
        "string-format.mhd": _meta("%s%s%n.raw 1 2 1"),
        "list-of-files.mhd": _meta("LIST\n../secret.raw"),
        "pattern-of-files.mha": _meta("../secret%d.raw 1 2 1"),
        "reads-a-device.mhd": _meta("/dev/zero"),
        "30000-cubed.mha": _meta("LOCAL", "30000 30000 30000"),
        "negative-size.mha": _meta("LOCAL", "-4 3 2"),
        "two-billion-axes.mha": _meta("LOCAL", NDims="2000000000"),
        "packed-size-of-none.mha": _meta("LOCAL", CompressedData="True", CompressedDataSize="0"),
        "follows-a-path.nrrd": _nrrd("data file: ../secret.raw"),
        "follows-a-path.nhdr": _nrrd("data file: ../secret.raw"),
        "list-of-files.nhdr": _nrrd("data file: LIST\n../secret.raw"),
        "size-of-twenty-digits.nrrd": _nrrd("sizes: 4 3 99999999999999999999", data=bytes(48)),
        "gzip-bomb.nrrd": _nrrd("encoding: gzip", data=gzip.compress(bytes(3_000_000), mtime=0)),
        "cut.nii": _nifti(shape, bytes(20)),
        "30000-cubed.nii": _nifti(cube, bytes(48)),
        "gzip-bomb.nii.gz": gzip.compress(_nifti(shape, bytes(3_000_000)), mtime=0),
        "no-end.nii.gz": gzip.compress(_nifti(shape, bytes(48)), mtime=0)[:-9],
        "offset-beyond.nii": _nifti(shape, bytes(48), 1e9),
        "60000-squared.png": _png(60000, 60000),
        "fewer-pixels.dcm": _dicom(1),
        "a-billion-frames.dcm": _dicom(1_000_000_000),
        "short.tif": b"II*\0\x08\0\0\0\x05\0\0\x01\x03\0",
        "round.tif": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "header-only.gipl": struct.pack(">4H", 60000, 60000, 60000, 1) + bytes(244) + struct.pack(">I", 719555000),
        "empty.bmp": b"BM" + struct.pack("<I", 10**9) + bytes(60),
    }


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for name, content in files().items():
        (FOLDER / name).write_bytes(content)
    print(f"{len(files())} files, {sum(map(len, files().values()))} bytes")


if __name__ == "__main__":
    main()
