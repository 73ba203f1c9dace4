"""Lock a file while a block runs: by flock, or by a file with the holder's name where the file system has no flock.

The operating system releases flock when its holder ends, so a killed process never blocks the next one. Some file
systems have no flock: NFS without a lock daemon (ENOLCK), FUSE (EOPNOTSUPP), Lustre mounted without it (ENOSYS). There
the file `<lock>.held` says who holds the lock: machine, process, token. Its holder touches it every 30 seconds. Others
remove it if the holder is a process of this machine that has ended, or if it has not been touched for five minutes by
the clock of the file system.
"""

import contextlib
import errno
import fcntl
import json
import logging
import multiprocessing
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from umamba.io.errors import UserError
from umamba.io.files import alive, host, make_folder, partial_path, storage_errors

log = logging.getLogger(__name__)

HEARTBEAT_S = 30.0
STALE_S = 300.0
_NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_POLL_S = 0.05


@contextmanager
def exclusive(lock_path: Path, waiting_for: str, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file while the block runs; wait if another process holds it, with a log message every minute.

    Args:
        lock_path: the lock file. Missing parent folders are created.
        waiting_for: what the other process makes, for the log message.
        busy: message of the error if another process holds the lock; None: wait for it.

    Raises:
        UserError: another process holds the lock, and `busy` is given.
        StorageError: the lock file cannot be created.
    """
    lock_path = Path(lock_path)
    make_folder(lock_path.parent)
    with storage_errors(lock_path):
        descriptor = _opened(lock_path)
    held = lock_path.with_name(f"{lock_path.name}.held")
    token = ""
    try:
        began = reported = time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _refuse_a_script_that_starts_itself()
                holder = "another process"
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise UserError(f"{lock_path}: cannot be locked ({error.strerror or error}).") from None
                token, holder = _take(held)
                if token:
                    break
            if busy is not None:
                raise UserError(busy)
            now = time.monotonic()
            if reported == began:
                log.info("Waiting for %s (%s holds %s).", waiting_for, holder, lock_path)
                reported = now
            elif now - reported >= 60:
                log.info("Still waiting for %s after %d min (%s).", waiting_for, round((now - began) / 60), holder)
                reported = now
            time.sleep(_POLL_S if now - began < 5 else 20 * _POLL_S)
        with _touched(held, token) if token else contextlib.nullcontext():
            yield
    finally:
        os.close(descriptor)  # this releases flock


def _refuse_a_script_that_starts_itself() -> None:
    """Refuse to wait in a worker process that is still importing the user's script: its parent waits for it.

    Raises:
        UserError: with the remedy.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "Each worker process imports your script, and would run all of it again. Put what starts the work below "
            'the line: if __name__ == "__main__":'
        )


def _opened(path: Path) -> int:
    """Open a lock file for writing, or for reading if it belongs to another user; return its descriptor."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _machine() -> str:
    """Return what a process number belongs to: this machine since it started, and its container."""
    facts = [host()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(facts)


def _take(held: Path) -> tuple[str, str]:
    """Create the file that says who holds the lock; return its token, or "" and who holds it."""
    token = secrets.token_hex(8)
    holder = {"host": host(), "machine": _machine(), "pid": os.getpid(), "began": _began(os.getpid()), "token": token}
    try:
        with storage_errors(held):
            descriptor = os.open(held, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            with os.fdopen(descriptor, "w") as stream:
                json.dump(holder, stream)
        return token, ""
    except OSError as error:
        if error.errno != errno.EEXIST:
            held.unlink(missing_ok=True)
            raise
    found = _read(held)
    if found is None:
        return "", "another process"
    if _ended(held, found):
        _remove(held, found)
    return "", f"process {found.get('pid')} of {found.get('host')}" if found else "another process"


def _read(held: Path) -> dict[str, Any] | None:
    """Return who holds the lock: empty if that is not readable, None if nobody does."""
    try:
        found = json.loads(held.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _ended(held: Path, found: dict[str, Any]) -> bool:
    """Return whether the holder has ended; only a process of another machine is judged by when it last spoke."""
    pid = found.get("pid")
    if found.get("machine") == _machine() and isinstance(pid, int):
        return not alive(pid) or _began(pid) != found.get("began")
    return _age(held) > STALE_S


def _began(pid: int) -> str | None:
    """Return when a process of this machine began, because the system uses numbers again; None if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _age(path: Path) -> float:
    """Return the seconds since a file was touched, by the clock of its file system; 0 if it is gone."""
    fresh = partial_path(path)
    try:
        return fresh.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        fresh.unlink(missing_ok=True)


def _remove(held: Path, found: dict[str, Any]) -> None:
    """Remove the file of a holder that has ended; a guard prevents that two processes remove each other's locks."""
    guard = held.with_name(f"{held.name}.guard")
    try:
        os.close(os.open(guard, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644))
    except FileExistsError:
        if _age(guard) > STALE_S:
            guard.unlink(missing_ok=True)
        return
    try:
        if _read(held) == found:
            log.warning("Removing the lock %s: its holder (%s) has ended.", held, found.get("host") or "unknown")
            held.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


@contextmanager
def _touched(held: Path, token: str) -> Iterator[None]:
    """Touch the file of a lock while the block runs, then remove it."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(held)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if (_read(held) or {}).get("token") == token:
            held.unlink(missing_ok=True)
