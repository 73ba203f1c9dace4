"""Files that are either complete or absent: atomic writes, JSON, locks, leftovers of dead writers, content digests.

A writer works on a hidden sibling `.NAME.<host>.<pid>.<number>.partial<suffixes>` of its target, flushes it to the disk
and renames it. The host and process number in that name tell `remove_stale` whose leftovers are nobody's any more.
"""

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from umamba.io.errors import StorageError, UserError

log = logging.getLogger(__name__)

_LEFTOVER = re.compile(r"^\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.\d+\.partial(?P<suffixes>\..+)?$")
_counter = itertools.count()


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "host"


def _temporary_sibling(path: Path, suffixes: str) -> Path:
    stem = path.name.removesuffix(suffixes) if suffixes else path.name
    return path.with_name(f".{stem}.{_host()}.{os.getpid()}.{next(_counter)}.partial{suffixes}")


def _flush(path: Path) -> None:
    """Put a file's or folder's content on the disk, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def partial_path(path: Path) -> Path:
    """Return a hidden sibling of `path` (same suffixes) to work on, which `remove_stale` deletes once we are dead."""
    return _temporary_sibling(path, "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failure of the disk while `path` is written into a StorageError that names it."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(f"{path}: could not be written ({reason}). Check space and rights.") from None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (same suffixes) to write; rename it to `path` on success, remove it on error.

    Missing parent folders are made. Readers see the old file or the whole new one, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a new empty temporary sibling folder of `path`; rename it to `path` on success, remove it on error.

    An existing `path` is replaced: moved aside first, so there is one short moment without it; callers that replace
    hold the lock of `exclusive`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path, "")
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _flush(Path(folder) / name)
            _flush(Path(folder))
        if path.exists():
            aside = _temporary_sibling(path, "")
            os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside)
        else:
            os.replace(temporary, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. Floats round-trip exactly; ValueError for NaN and infinity."""
    text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise UserError naming the file, and the line of a mistake, if it is missing or malformed."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Check the path.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: not valid JSON ({error.msg} at {where}). Mend that line.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}). Check file and permissions.") from None


@contextmanager
def exclusive(lock_path: Path, waiting_for: str) -> Iterator[None]:
    """Hold the lock file while the block runs; wait for another holder, saying once and then each minute for what.

    The operating system frees the lock when its holder dies, so that a killed run never blocks the next one.
    """
    lock_path = Path(lock_path)
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_path)
    waited = 0
    while True:
        try:
            lock.acquire(timeout=0 if waited == 0 else 60)
            break
        except Timeout:
            if waited == 0:
                log.info("Waiting for %s (another process holds %s).", waiting_for, lock_path)
                waited = 1
            else:
                log.info("Still waiting for %s after %d min.", waiting_for, waited)
                waited += 1
    try:
        yield
    finally:
        lock.release()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_stale(folder: Path, target: str | None = None) -> None:
    """Delete what dead writers left in `folder` (not below it); call it while holding the lock of `exclusive`.

    With `target`, only the leftovers of that file or folder name, for folders in which others write under other locks.

    Leftovers of living processes of this machine stay. Those of another machine go too: the lock, which their writer
    would have to hold, is ours.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        match = _LEFTOVER.match(entry.name)
        if match is None or (target is not None and match["name"] + (match["suffixes"] or "") != target):
            continue
        if match["host"] == _host() and _alive(int(match["pid"])):
            continue
        log.info("Removing the leftover of an interrupted run: %s", entry)
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Return the BLAKE2b-128 hash of a file's content, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
