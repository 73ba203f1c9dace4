"""Checksums of files (CRC-32), which find what a disk or a copy damaged. They do not protect from forgery."""

import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from umamba.io.errors import UserError

_PART = 1 << 22  # bytes read at a time


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
    """
    value = 0
    with path.open("rb") as file:
        while part := file.read(_PART):
            value = zlib.crc32(part, value)
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

    torch.load does not compare them, so that a flipped bit would change weights in silence.

    Args:
        path: the file; what is no zip archive is left to its reader.

    Raises:
        UserError: a part differs from its checksum.
        OSError: the file cannot be read.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as part:
                    while part.read(_PART):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{path}: is damaged ({error}). Copy it again from where it came from; a run continues from previous.ckpt "
            "by itself."
        ) from None
