"""Checksums of files (CRC-32), which find what a disk or a copy damaged. They do not protect from forgery."""

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from umamba.io.errors import UserError
from umamba.io.resources import available_cpus

Read = TypeVar("Read")

_PART = 1 << 18  # bytes read at a time: they are summed while they are in the cache of a core
_THREADS = 8  # at most; zlib sums without holding Python's lock
_HEADER = struct.Struct("<26xHH")  # of a part: lengths of its name and of further entries, which stand before its bytes


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
    """
    value, part = 0, memoryview(bytearray(_PART))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(part):
            value = zlib.crc32(part[:count], value)
    return value


def checksums(paths: Sequence[Path], workers: int) -> list[int | None]:
    """Return the CRC-32 of files; None for a file that cannot be read.

    Args:
        paths: the files.
        workers: threads; reading and summing run beside each other.
    """

    def of(path: Path) -> int | None:
        try:
            return checksum(path)
        except OSError:
            return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(of, paths))


def check_archive(path: Path) -> None:
    """Compare the parts of a zip archive, such as a file of torch.save, with the checksums in it.

    Args:
        path: the file; what is no zip archive is left to its reader.

    Raises:
        UserError: a part differs from its checksum, or is packed.
        OSError: the file cannot be read.
    """
    read_checked(path, lambda: None)


def read_checked(path: Path, read: Callable[[], Read]) -> Read:
    """Read a zip archive, such as a file of torch.save, while threads compare its parts with the checksums in it.

    torch.load does not compare them, so that a flipped bit would change weights in silence. Parts that are packed, or
    that overlap, could stand for any number of bytes; torch.save writes none, and they are refused before anything is
    read.

    Args:
        path: the file; what is no zip archive is left to its reader.
        read: reads it.

    Returns:
        What `read` returned.

    Raises:
        UserError: a part differs from its checksum, or is packed.
        OSError: the file cannot be read.
        Exception: what `read` raised, if the parts are whole.
    """
    if not zipfile.is_zipfile(path):
        return read()
    try:
        parts = _parts(path)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        raise _damage(path, error) from None
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(min(available_cpus(), _THREADS)) as pool:
        compared = [pool.submit(_compare, file.fileno(), part) for part in parts]
        try:
            return read()
        finally:  # damage is the better reason for what `read` may raise
            try:
                for part in compared:
                    part.result()
            except zipfile.BadZipFile as error:
                raise _damage(path, error) from None


def _damage(path: Path, reason: Exception) -> UserError:
    return UserError(
        f"{path}: is damaged ({reason}). Copy it again from where it came from; a run continues from previous.ckpt by "
        "itself."
    )


def _parts(path: Path) -> list[zipfile.ZipInfo]:
    """Return what the archive says of its parts, the largest first."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise zipfile.BadZipFile("a part of it is compressed, as torch.save does not write it")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise zipfile.BadZipFile("its parts declare more bytes than it has")
    return sorted(parts, key=lambda part: part.file_size, reverse=True)


def _compare(descriptor: int, part: zipfile.ZipInfo) -> None:
    """Compare a part with its checksum; raise BadZipFile if it differs."""
    header = os.pread(descriptor, _HEADER.size, part.header_offset)
    if len(header) < _HEADER.size or not header.startswith(b"PK\3\4"):
        raise zipfile.BadZipFile(f"the part {part.filename!r:.60} is missing")
    place, left = part.header_offset + _HEADER.size + sum(_HEADER.unpack(header)), part.file_size
    value, room = 0, memoryview(bytearray(min(_PART, left)))
    while left:
        count = os.preadv(descriptor, [room[:left]], place)
        if not count:
            raise zipfile.BadZipFile(f"the part {part.filename!r:.60} is cut")
        value = zlib.crc32(room[:count], value)
        place, left = place + count, left - count
    if value != part.CRC:
        raise zipfile.BadZipFile(f"the checksum of its part {part.filename!r:.60} differs")
