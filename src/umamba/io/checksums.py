"""Checksums of files (CRC-32), which find what a disk or a copy damaged. They do not protect from forgery."""

import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from umamba.io.errors import UserError
from umamba.io.resources import available_cpus

_PART = 1 << 18  # bytes read at a time: they are summed while they are in the cache of a core
_THREADS = 8  # at most; zlib sums without holding Python's lock


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

    torch.load does not compare them, so that a flipped bit would change weights in silence. Parts that are packed, or
    that overlap, could stand for any number of bytes; torch.save writes none.

    Args:
        path: the file; what is no zip archive is left to its reader.

    Raises:
        UserError: a part differs from its checksum, or is packed.
        OSError: the file cannot be read.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive, ThreadPoolExecutor(min(available_cpus(), _THREADS)) as pool:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise zipfile.BadZipFile("a part of it is compressed, as torch.save does not write it")
            if sum(part.file_size for part in parts) > path.stat().st_size:
                raise zipfile.BadZipFile("its parts declare more bytes than it has")
            parts.sort(key=lambda part: part.file_size, reverse=True)
            list(pool.map(lambda part: _read(archive, part), parts))
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{path}: is damaged ({error}). Copy it again from where it came from; a run continues from previous.ckpt "
            "by itself."
        ) from None


def _read(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    """Read a part, whereby zipfile compares it with its checksum."""
    with archive.open(part) as stream:
        while stream.read(_PART):
            pass
