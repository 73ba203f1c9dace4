"""Many prepare.py at once, and one that is killed: the result is one complete store without partial files."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from umamba.datasets import write_phantom
from umamba.preprocessing import open_store

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a raw dataset of eight abdomen phantoms."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset900_Phantom"
    return write_phantom(folder, num_training=8, num_test=0, seed=0, voxel_mm=7.0)


def start(project_dir: Path, raw: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """Start prepare.py in a process group of its own."""
    command = [sys.executable, str(project_dir / "prepare.py"), f"dataset.root={raw}", f"paths.preprocessed={out}"]
    return subprocess.Popen(
        [*command, *more],
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def content(out: Path) -> dict[str, str]:
    """Return the hash of each file in a folder, except for lock files."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture(scope="module")
def single(project_dir: Path, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the files of a single run that is not interrupted."""
    out = tmp_path_factory.mktemp("single")
    process = start(project_dir, raw, out, "data.prepare_workers=1")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    made = content(out)
    assert (
        len(made) == 3 + 2 * 8 + 1
    )  # fingerprint, findings and list of files; image and label of each case; store.json
    return made


def test_eight_at_once_make_one_store(project_dir: Path, raw: Path, tmp_path: Path, single: dict[str, str]) -> None:
    processes = [start(project_dir, raw, tmp_path, "data.prepare_workers=2") for _ in range(8)]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, printed
    assert content(tmp_path) == single
    assert any("Waiting for" in text for text in printed)


def members(group: int) -> list[int]:
    """Return the living processes of a process group (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_five_kills_lose_nothing(project_dir: Path, raw: Path, tmp_path: Path, single: dict[str, str]) -> None:
    done: dict[Path, int] = {}
    for finished in range(1, 6):
        process = start(project_dir, raw, tmp_path, "data.prepare_workers=2")
        limit = time.monotonic() + 120
        while len(list(tmp_path.rglob("*.image.b2nd"))) < finished and time.monotonic() < limit:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        while members(process.pid) and time.monotonic() < limit:  # its workers end by themselves
            time.sleep(0.05)
        assert not members(process.pid)
        assert not list(tmp_path.rglob("store.json"))
        now = {
            path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.image.b2nd") if not path.name.startswith(".")
        }
        assert now.items() >= done.items()  # finished files are kept unchanged
        done = now
    process = start(project_dir, raw, tmp_path, "data.prepare_workers=2")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert content(tmp_path) == single
    assert all(path.stat().st_mtime_ns == changed for path, changed in done.items())
    (mark,) = tmp_path.rglob("store.json")
    store = open_store(mark.parent)
    assert all(store.load(case_id).label.shape[0] == 1 for case_id in store.case_ids)
