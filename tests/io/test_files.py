"""Atomic files, full disks, locks, partial files of ended writers, provenance, and the room's quick import."""

import hashlib
import json
import multiprocessing
import multiprocessing.synchronize
import os
import platform
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba import io
from umamba.cli import main as cli
from umamba.io import (
    StorageError,
    UserError,
    atomic_directory,
    atomic_path,
    exclusive,
    file_digest,
    make_folder,
    partial_path,
    provenance,
    read_json,
    remove_stale,
    write_image,
    write_json,
)

SizeLimit = Callable[[int], AbstractContextManager[None]]


def test_file_appears_on_success_only(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text(str(1 / 0))
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_folder_appears_on_success_only(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("first", "second"):
        with atomic_directory(target) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / content).write_text(content)
        assert [path.name for path in (target / "sub").iterdir()] == [content]
    with pytest.raises(ZeroDivisionError), atomic_directory(target) as temporary:
        (temporary / "half").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path, file_size_limit: SizeLimit) -> None:
    target = tmp_path / "a.json"
    write_json(target, "old")
    message = f"{re.escape(str(target))}: could not be written"
    with file_size_limit(1000), pytest.raises(StorageError, match=message):
        write_json(target, "new" * 1000)

    def library_fails(path: Path) -> None:
        path.write_bytes(bytes(1000))
        raise RuntimeError("a library does not say why")

    with file_size_limit(1000), pytest.raises(StorageError, match=message), atomic_path(target) as temporary:
        library_fails(temporary)
    with pytest.raises(RuntimeError, match="another reason"), atomic_path(target) as temporary:
        raise RuntimeError("another reason")
    folder = tmp_path / "folder"
    message = re.escape(f"{folder}: could not be written")
    with file_size_limit(1000), pytest.raises(StorageError, match=message), atomic_directory(folder) as temporary:
        (temporary / "x").write_bytes(bytes(2000))
    assert list(tmp_path.iterdir()) == [target]
    assert read_json(target) == "old"


@pytest.mark.parametrize("ending", [".nii.gz", ".NII.GZ", ".nrrd", ".mha", ".png", ".tiff", ".bmp"])
def test_no_part_of_an_image_appears_on_a_full_disk(tmp_path: Path, ending: str, file_size_limit: SizeLimit) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    image, path = sitk.GetImageFromArray(voxels), tmp_path / f"a{ending}"
    write_image(path, image)
    size = path.stat().st_size
    path.unlink()
    for limit in (0, 40, 2000, size - 1):
        with file_size_limit(limit), pytest.raises(StorageError, match=f"{re.escape(str(path))}: could not be written"):
            write_image(path, image)
        assert list(tmp_path.iterdir()) == []
    write_image(path, image)
    path = path.rename(path.with_name(path.name.lower()))  # ITK reads lower-case endings only
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).reshape(64, 64, -1)  # ITK reads a grey BMP as RGB
    assert np.array_equal(read[..., 0], voxels)


def test_what_stands_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"file: could not be written .*A file stands where a folder is needed"):
        make_folder(tmp_path / "file")
    with pytest.raises(StorageError, match=r"sub: could not be written .*A file stands where a folder is needed"):
        write_json(tmp_path / "file" / "sub" / "a.json", 1)
    with pytest.raises(StorageError, match=r"folder: could not be written .*A folder stands where a file is needed"):
        write_json(tmp_path / "folder", 1)


def test_a_link_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {partial_path(tmp_path / "a.json").name for _ in range(3)}
    assert len(names) == 3
    foreign = tmp_path / "foreign"
    monkeypatch.setattr("secrets.token_hex", lambda count: "ab" * count)  # somebody has guessed the name
    guessed = tmp_path / next(iter(names)).replace(next(iter(names)).split(".")[-3], "ab" * 6)
    guessed.symlink_to(foreign)
    with pytest.raises(StorageError, match=r"b\.json|a\.json"):
        write_json(tmp_path / "a.json", 1)
    assert not foreign.exists()


def test_the_program_says_which_disk_is_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(name: str, arguments: list[str]) -> int:
        raise OSError(28, "No space left on device", "/data/run/metrics.csv")

    monkeypatch.setattr(cli, "_run", full)
    assert cli.main(["train"]) == 2
    assert "/data/run/metrics.csv: could not be written (No space left on device)" in capsys.readouterr().err


def test_partial_files_of_ended_writers_are_removed(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom umamba.io import atomic_directory, atomic_path\n"
        "with atomic_path(Path(sys.argv[1]) / 'a.nii.gz') as f, atomic_directory(Path(sys.argv[1]) / 'b') as d:\n"
        "    f.write_text('half')\n    (d / 'x').write_text('half')\n    os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".hidden").touch()
    with atomic_path(tmp_path / "living.json") as mine:
        mine.touch()
        remove_stale(tmp_path, "b")
        assert len(list(tmp_path.iterdir())) == 3
        remove_stale(tmp_path, "a.nii.gz")
        remove_stale(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".hidden", mine.name])
    remove_stale(tmp_path / "none")


def test_json(tmp_path: Path) -> None:
    value = {"pi": 0.1 + 0.2, "list": [1, None, "ä"]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == value
    (tmp_path / "bad.json").write_text('{\n "a": 1,\n "b" 2}')
    with pytest.raises(UserError, match=r"bad\.json: not valid JSON .*line 3"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "none.json")


def _hold_and_die(lock: Path, ready: multiprocessing.synchronize.Event) -> None:
    with exclusive(lock, "nothing"):
        ready.set()
        os._exit(1)


def test_lock_excludes_and_outlives_no_holder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    order: list[str] = []

    def other() -> None:
        with exclusive(tmp_path / "a.lock", "the other"):
            order.append("other")

    with exclusive(tmp_path / "a.lock", "me"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=0.3)
        order.append("me")
    thread.join()
    assert order == ["me", "other"]
    assert sum("Waiting for the other" in message for message in caplog.messages) == 1

    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold_and_die, args=(tmp_path / "b.lock", ready))
    holder.start()
    assert ready.wait(60)
    holder.join()
    with exclusive(tmp_path / "b.lock", "the dead"):
        pass


def test_digest_is_blake2b(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.blake2b(b"abc", digest_size=16).hexdigest()


def test_provenance_is_json_and_imports_nothing_heavy() -> None:
    record = json.loads(json.dumps(provenance()))
    assert record["packages"]["numpy"]
    assert record["git"] is None or len(record["git"]["revision"]) == 40
    text = json.dumps(record)
    for private in (socket.gethostname(), str(Path.home()), str(Path.cwd()), platform.release(), *sys.argv):
        assert private not in text, "the record stands in checkpoints that are shared"
    script = "import sys; from umamba.io import provenance; provenance(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_user_error_loads_no_heavy_library() -> None:
    heavy = ("numpy", "SimpleITK", "blosc2", "numba", "skimage", "torch", "filelock")
    script = f"import sys; from umamba.io import UserError; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_can_be_loaded() -> None:
    modules = {path.stem for path in Path(io.__file__).parent.glob("*.py")}
    for name in io.__all__:
        assert getattr(io, name).__name__ == name
        assert name not in modules  # a loaded module would hide the name
    assert set(io.__all__) <= set(dir(io))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        io.absent  # noqa: B018


def test_a_file_name_that_is_no_utf8_comes_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"case_\xff")  # a lone surrogate
    write_json(tmp_path / "a.json", {name: "ü"})
    assert json.loads((tmp_path / "a.json").read_text()) == {name: "ü"}
    assert (tmp_path / "a.json").read_bytes() == '{\n  "case_\\udcff": "ü"\n}\n'.encode()
