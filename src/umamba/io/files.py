"""Write files atomically, read and write JSON, remove files of interrupted writers, hash file contents.

A writer fills a hidden sibling `.NAME.<host>.<pid>.<token>.partial<suffixes>` of its target, flushes it to disk and
renames it. From the host and process number in that name `remove_stale` knows whether the writer still runs. The token
is random, and the sibling is created exclusively, so that nobody can put a link in its place beforehand. A disk that
cannot be written ends in a StorageError that names the target.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from umamba.io.errors import StorageError, UserError, storage_error

log = logging.getLogger(__name__)

_LONGEST_NAME = 200  # file systems have 255, of which temporary names need some
_PARTIAL = re.compile(r"^\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]+\.partial(?P<suffixes>\..+)?$")


def host() -> str:
    """Return the name of this machine, in letters that a file name may have."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "host"


def alive(pid: int) -> bool:
    """Return whether a process of this machine runs.

    Args:
        pid: its number.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _temporary_sibling(path: Path, suffixes: str) -> Path:
    stem = path.name.removesuffix(suffixes) if suffixes else path.name
    return path.with_name(f".{stem}.{host()}.{os.getpid()}.{secrets.token_hex(6)}.partial{suffixes}")


def _flush(path: Path) -> None:
    """Flush a file's or folder's content to disk, if the file system supports it and the user may read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF):
            raise


def below(root: Path, *names: str) -> Path:
    """Return a path below a folder whose names come from a file of somebody else; nothing else may be written there.

    Args:
        root: the folder.
        names: names of the folders and the file below it, each a single one.

    Raises:
        UserError: a name is empty or too long, is "." or "..", or has a slash, a backslash or a control character,
            or bytes that are no UTF-8.

    >>> below(Path("out"), "Dataset001_A", "case 1.nii.gz").as_posix()
    'out/Dataset001_A/case 1.nii.gz'
    """
    for name in names:
        wrong = wrong_name(name)
        if wrong:
            raise UserError(
                f"{root}: {str(name)[:100]!r} {wrong}, so it cannot be the name of a file or folder. Rename it."
            )
    return Path(root).joinpath(*names)


def wrong_name(name: str) -> str | None:
    """Return why a text cannot be the name of a file or folder; None if it can.

    Args:
        name: the text.
    """
    if not isinstance(name, str) or not name.strip() or name in (".", ".."):
        return "is no name"
    if any(character in "/\\" or ord(character) < 32 or ord(character) == 127 for character in name):
        return "has a slash, a backslash or a control character"
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "has bytes that are no UTF-8"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} bytes"
    return None


def partial_path(path: Path) -> Path:
    """Create a hidden empty sibling of `path`, which `remove_stale` deletes after this process has ended.

    Args:
        path: the target; its suffixes are kept, because many writers choose the format by them.

    Returns:
        The sibling.

    Raises:
        StorageError: it cannot be created.
    """
    two = path.name.lower().endswith(".gz")
    temporary = _temporary_sibling(path, "".join(path.suffixes[-2:]) if two else path.suffix)
    with storage_errors(path):
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    return temporary


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError raised inside the block into a StorageError that names `path`.

    Args:
        path: the file that the block writes.

    Raises:
        StorageError: the block raised an OSError.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(path, error) from None


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, unless they exist.

    Args:
        path: the folder.

    Returns:
        `path`.

    Raises:
        StorageError: it cannot be created.
    """
    with storage_errors(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write; rename it to `path` on success, delete it on an error.

    Readers see the old file or the complete new one, never a part.

    Args:
        path: the file to write. Missing parent folders are created; the sibling has the same suffixes.

    Raises:
        StorageError: the disk cannot be written, whatever error the block raised because of that.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     target = Path(folder) / "scores.txt"
        ...     with atomic_path(target) as temporary:
        ...         characters = temporary.write_text("0.91")
        ...         before = target.exists()
        ...     before, target.read_text()
        (False, '0.91')
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = partial_path(path)
    with storage_errors(path):
        try:
            try:
                yield temporary
            except (RuntimeError, ValueError):
                _append(temporary)
                raise
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _append(path: Path) -> None:
    """Write a little more to a file; an OSError explains why a library, which does not say so, could not write it."""
    with open(path, "ab") as stream:
        stream.write(bytes(1 << 16))
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a new empty sibling folder of `path` to fill; rename it to `path` on success, delete it on an error.

    An existing `path` is moved aside before the new folder takes its place, so it is absent for a moment. A caller that
    replaces a folder must therefore hold the lock of `exclusive`. If the new folder cannot take its place, the former
    one comes back. A symbolic link at `path` is replaced, and what it leads to stays as it is.

    Args:
        path: the folder to write. Missing parent folders are created.

    Raises:
        StorageError: the disk cannot be written, or `path` is a file.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = _temporary_sibling(path, "")
    with storage_errors(path):
        temporary.mkdir()
        try:
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _flush(Path(folder) / name)
                _flush(Path(folder))
            _replace_folder(temporary, path)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, path: Path) -> None:
    """Rename a folder to `path`, and delete what was there; on an error put it back."""
    if not os.path.lexists(path):
        os.replace(new, path)
        return
    if not path.is_dir() and not path.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
    aside = _temporary_sibling(path, "")
    os.replace(path, aside)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(aside, path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    """Delete a folder with its content, or a file or link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, obj: Any) -> None:
    """Write a value as indented JSON, atomically; floats are written so that they are read back exactly.

    Bytes of a file name that are no UTF-8 are lone surrogates in Python, which are written as JSON's escapes.

    Args:
        path: the file to write.
        obj: a value that the `json` module can write.

    Raises:
        ValueError: `obj` holds NaN or infinity.
    """
    text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def remove_stale(folder: Path, target: str | None = None) -> None:
    """Delete partial files and folders that interrupted writers left directly in `folder`.

    The caller must hold the lock of `exclusive`. Partial files of running processes of this machine are kept. Those of
    another machine are deleted, because their writer would have to hold the lock that the caller holds.

    Args:
        folder: the folder to clean; nothing is done if it does not exist.
        target: delete only the partial files of this file or folder name. Needed where others write into `folder`
            under other locks. None: all of them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        match = _PARTIAL.match(entry.name)
        if match is None or (target is not None and match["name"] + (match["suffixes"] or "") != target):
            continue
        if match["host"] == host() and alive(int(match["pid"])):
            continue
        log.info("Removing a partial file of an interrupted run: %s", entry)
        _remove(entry)


def file_digest(path: Path) -> str:
    """Return the BLAKE2b-128 hash of a file's content, in hexadecimal.

    Args:
        path: the file.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
