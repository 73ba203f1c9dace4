"""Locks: who holds one on a file system without flock, when its file is removed, and who must not wait."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from umamba.io import StorageError, UserError, exclusive, locks

ERRORS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes flock fail with an error, as a file system without it does."""

    def apply(number: int) -> None:
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return apply


@pytest.mark.parametrize("number", ERRORS)
def test_a_file_takes_the_place_of_flock(tmp_path: Path, without_flock: Callable[[int], None], number: int) -> None:
    without_flock(number)
    (tmp_path / "a.lock").touch()  # an older version leaves this file when it is killed
    held, order = tmp_path / "a.lock.held", []

    def other() -> None:
        with exclusive(tmp_path / "a.lock", "the other"):
            order.append("other")

    with exclusive(tmp_path / "a.lock", "me"):
        found = json.loads(held.read_text())
        assert (found["pid"], found["host"]) == (os.getpid(), locks.host())
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=0.2)
        order.append("me")
        with pytest.raises(UserError, match="in use"), exclusive(tmp_path / "a.lock", "a third", "in use"):
            pass
    thread.join()
    assert order == ["me", "other"]
    assert not held.exists()


def holder_file(path: Path, **facts: object) -> None:
    """Write the file of a lock that a process with these facts left behind."""
    own = {"host": locks.host(), "machine": locks._machine(), "began": None, "token": "theirs"}
    path.write_text(json.dumps({**own, **facts}))


def test_the_lock_of_a_dead_process_is_removed_at_once(
    tmp_path: Path, without_flock: Callable[[int], None], messages: pytest.LogCaptureFixture
) -> None:
    without_flock(errno.ENOSYS)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for facts in ({"pid": dead.pid}, {"pid": os.getpid(), "began": "before this process"}):
        holder_file(tmp_path / "a.lock.held", **facts)
        with exclusive(tmp_path / "a.lock", "the dead"):
            assert json.loads((tmp_path / "a.lock.held").read_text())["token"] != "theirs"
    assert "has ended" in messages.text
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]


def test_the_lock_of_another_machine_is_removed_when_it_is_silent(
    tmp_path: Path, without_flock: Callable[[int], None]
) -> None:
    without_flock(errno.ENOSYS)
    held = tmp_path / "a.lock.held"
    for write in (lambda: holder_file(held, host="node7", machine="node7 x", pid=1), lambda: held.write_text("{")):
        write()
        with pytest.raises(UserError, match="in use"), exclusive(tmp_path / "a.lock", "theirs", "in use"):
            pass
        silent = time.time() - locks.STALE_S - 10
        os.utime(held, (silent, silent))
        with exclusive(tmp_path / "a.lock", "theirs"):
            pass
        assert not held.exists()


def test_a_holder_touches_its_file(
    tmp_path: Path, without_flock: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(errno.ENOLCK)
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.02)
    held = tmp_path / "a.lock.held"
    with exclusive(tmp_path / "a.lock", "me"):
        os.utime(held, (0, 0))
        deadline = time.monotonic() + 10
        while held.stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - held.stat().st_mtime < 60
        holder_file(held, pid=1)  # another one has taken the lock, because this process was silent for too long
    assert json.loads(held.read_text())["token"] == "theirs"


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refused)
    message = f"{tmp_path}/a.lock: could not be written \\(Read-only file system\\)"
    with pytest.raises(StorageError, match=message), exclusive(tmp_path / "a.lock", "it"):
        pass


def test_a_script_that_would_run_again_in_its_workers_does_not_wait_for_itself(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from pathlib import Path\n"
        "from umamba.io import exclusive\n"
        f"with exclusive(Path({str(tmp_path / 'a.lock')!r}), 'it'):\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    worker.start()\n"
        "    worker.join(60)\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50, check=True)
    assert 'if __name__ == "__main__":' in ended.stderr
