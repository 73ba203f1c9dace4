"""What is known of a file before memory is taken for its voxels: regular file, length, room on this machine.

A header may declare any size. A file is therefore decoded only if the bytes that its header declares are there, or can
be there: deflate shrinks data at most about 1030 times.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from umamba.io.errors import UserError
from umamba.io.resources import memory_bytes

REMEDY = "Copy or export the file again, or remove the case from the dataset."
DEFLATE_RATIO = 1040  # largest factor by which deflate shrinks data, rounded up
TRAILING_BYTES = 1 << 20  # accepted behind the last voxel of a compressed file; more would cost time for nothing
_CHUNK = 1 << 16  # compressed bytes per read; they expand to at most 68 MB


def first_bytes(path: Path, count: int) -> bytes:
    """Return the first bytes of a file; none if it cannot be read, or is a pipe, which would wait for its writer.

    Args:
        path: the file.
        count: how many bytes, or fewer if the file is shorter.
    """
    if not path.is_file():
        return b""
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except OSError:
        return b""


def check_text(path: Path) -> None:
    """Refuse a name that is no text, because the libraries that read and write images would end the process.

    Args:
        path: the file.

    Raises:
        UserError: the name, or that of a folder above, has bytes that are no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: its name has bytes that are no UTF-8. Rename it.") from None


def check_regular(path: Path) -> None:
    """Refuse what is no regular file, because opening a pipe or a device may wait forever.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing, empty, a folder, a pipe, a socket or a device, or its name is no text.
    """
    check_text(path)
    if not path.is_file():
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"{path}: no such file, only a link to one that does not exist. Copy the file itself there."
            )
        if path.exists():
            raise UserError(f"{path}: is no regular file but a folder, pipe or device. Give an image file.")
        raise UserError(f"{path}: no such file. Check the name and the file ending.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty. {REMEDY}")


def check_room(path: Path, needed: int) -> None:
    """Refuse an image that does not fit into this machine's memory.

    Args:
        path: the file, for the message.
        needed: bytes of its voxels.

    Raises:
        UserError: the machine has less memory.
    """
    if needed > memory_bytes():
        raise UserError(
            f"{path}: its header declares {needed / 2**30:.4g} GiB of voxels, more than the "
            f"{memory_bytes() / 2**30:.3g} GiB of memory here. Check the header, or crop or resample the image."
        )


def check_spacing(path: Path, spacing: Sequence[float]) -> None:
    """Refuse a spacing that no image has, because it makes ITK's arithmetic fail.

    Args:
        path: the file, for the message.
        spacing: in mm.

    Raises:
        UserError: an entry is not a number, not positive, below 1e-9 or above 1e9 mm.
    """
    if not all(1e-9 <= value <= 1e9 for value in spacing):  # false for NaN, too
        listed = ", ".join(f"{value:.6g}" for value in spacing)
        raise UserError(
            f"{path}: spacing ({listed}) mm: every entry must be positive, from 1e-9 to 1e9. Correct the header."
        )


def check_length(path: Path, available: int, needed: int, compressed: bool = False) -> None:
    """Refuse a file that is shorter than its header declares.

    Args:
        path: the file, for the message.
        available: bytes from the first voxel to the end of the file.
        needed: bytes that the header declares for them.
        compressed: whether the available bytes are deflated.

    Raises:
        UserError: the file is too short.
    """
    if available * (DEFLATE_RATIO if compressed else 1) < needed:
        what = "compressed bytes of voxels" if compressed else "bytes of voxels"
        raise UserError(
            f"{path}: the file is truncated ({max(0, available)} {what}, its header declares {needed} bytes). {REMEDY}"
        )


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of a stream in pieces.

    Args:
        stream: the stream.
    """
    while chunk := stream.read(_CHUNK):
        yield chunk


def inflated(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the decompressed rest of a stream, checking the checksum of each member.

    Args:
        path: the file, for messages.
        stream: gzip (of one or several members) or zlib data, possibly padded with zeros.

    Raises:
        UserError: the data are damaged or have no end.
    """
    inflate = zlib.decompressobj(wbits=47)  # 47: gzip or zlib, by the first bytes
    try:
        for chunk in chunks(stream):
            while chunk:
                yield inflate.decompress(chunk)
                chunk = inflate.unused_data.lstrip(b"\0")  # another member, or zeros as padding
                if chunk:
                    inflate = zlib.decompressobj(wbits=47)
    except zlib.error as error:
        raise UserError(f"{path}: not a valid gzip file ({error}). {REMEDY}") from None
    if not inflate.eof:
        raise UserError(f"{path}: the file is truncated (its gzip stream has no end). {REMEDY}")


def check_inflated(path: Path, stream: BinaryIO, needed: int) -> None:
    """Decompress the rest of a stream without keeping it, and compare its length with the declared one.

    Args:
        path: the file, for messages.
        stream: gzip or zlib data.
        needed: bytes that the header declares.

    Raises:
        UserError: there are fewer bytes, far more of them, or the data are damaged.
    """
    found = 0
    for part in inflated(path, stream):
        found += len(part)
        check_trailing(path, found - needed)
    if found < needed:
        raise UserError(
            f"{path}: the file is truncated ({found} bytes of voxels, its header declares {needed}). {REMEDY}"
        )


def check_trailing(path: Path, surplus: int) -> None:
    """Refuse a compressed file that goes on far behind its last voxel.

    Args:
        path: the file, for the message.
        surplus: decompressed bytes behind the last voxel so far.

    Raises:
        UserError: there are too many.
    """
    if surplus > TRAILING_BYTES:
        raise UserError(
            f"{path}: goes on behind the last voxel that its header declares, for more than {TRAILING_BYTES} bytes. "
            f"{REMEDY}"
        )
