"""A disk that fails at the last moment, a kill around the rename, and links in the way of a writer."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.io import (
    StorageError,
    atomic_directory,
    atomic_path,
    exclusive,
    partial_path,
    read_json,
    remove_stale,
    write_image,
    write_json,
)
from umamba.io.files import file_digest
from umamba.io.tabular import write_table

ERRORS = {
    errno.ENOSPC: r"No space left on device\)\. Make room there",
    errno.EDQUOT: r"Disk quota exceeded\)\. Make room there",
    errno.EROFS: r"Read-only file system\)\. The disk is mounted for reading only",
    errno.ESTALE: r"Stale file handle\)\. The network file system has lost the file",
    errno.EIO: r"Input/output error\)\. The disk is damaged or was disconnected",
    errno.EACCES: r"Permission denied\)\. Ask for the permission",
}


def failing(number: int) -> Callable[..., None]:
    """Return a function of the system that fails with an error number."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# Some file systems refuse fsync with EACCES; nothing is lost then.
@pytest.mark.parametrize(
    ("call", "number"),
    [(c, n) for c in ("os.open", "os.fsync", "os.replace") for n in ERRORS if (c, n) != ("os.fsync", errno.EACCES)],
)
def test_an_error_of_the_disk_is_one_sentence_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    file, folder = tmp_path / "a.json", tmp_path / "folder"
    write_json(file, "old")
    with atomic_directory(folder) as temporary:
        (temporary / "x").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(call, failing(number))
        with pytest.raises(StorageError, match=f"{re.escape(str(file))}: could not be written .{ERRORS[number]}"):
            write_json(file, "new")
        if call != "os.open":
            message = f"{re.escape(str(folder))}: could not be written .{ERRORS[number]}"
            with pytest.raises(StorageError, match=message), atomic_directory(folder) as temporary:
                (temporary / "x").write_text("new")
    assert read_json(file) == "old"
    assert (folder / "x").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]


def test_a_folder_that_cannot_take_its_place_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    with atomic_directory(folder) as temporary:
        (temporary / "x").write_text("old")
    replace, calls = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        replace(source, target)

    monkeypatch.setattr("os.replace", second_fails)
    with pytest.raises(StorageError, match="Stale file handle"), atomic_directory(folder) as temporary:
        (temporary / "x").write_text("new")
    assert len(calls) == 3
    assert (folder / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


KILLED = """
import os, signal, sys
from pathlib import Path
from umamba.io import write_json
call, when, path = sys.argv[1], sys.argv[2], Path(sys.argv[3])
original = getattr(os, call)
def killed(*arguments):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    original(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, call, killed)
write_json(path, ["new"] * 1000)
"""


@pytest.mark.parametrize(("call", "when"), [("fsync", "before"), ("replace", "before"), ("replace", "after")])
def test_a_kill_around_the_rename_leaves_the_old_or_the_new_file(tmp_path: Path, call: str, when: str) -> None:
    path = tmp_path / "a.json"
    write_json(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, call, when, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_json(path) == (["new"] * 1000 if when == "after" else "old")
    remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def writers() -> dict[str, Callable[[Path], None]]:
    """Return a writer for each kind of file."""
    image = sitk.GetImageFromArray(np.zeros((4, 8, 8), np.uint8))
    flat = image[:, :, 0]

    def folder(path: Path) -> None:
        with atomic_directory(path) as temporary:
            (temporary / "x").write_text("x")

    def text(path: Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("x")

    def table(path: Path) -> None:
        import pandas

        write_table(path, pandas.DataFrame({"case": ["a"], "dsc": [1.0]}))

    return {
        "a.json": lambda path: write_json(path, 1),
        "a.txt": text,
        "a.csv": table,
        "folder": folder,
        **{f"a{ending}": lambda path: write_image(path, image) for ending in (".nii.gz", ".NII", ".nrrd", ".mha")},
        **{f"b{ending}": lambda path: write_image(path, flat) for ending in (".png", ".PNG", ".tiff", ".bmp")},
    }


@pytest.mark.parametrize("name", writers())
@pytest.mark.parametrize("planted", ["file", "folder", "nothing"])
def test_a_link_under_a_final_name_is_replaced_and_not_followed(tmp_path: Path, name: str, planted: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "file").write_text("theirs")
    (outside / "folder").mkdir()
    (outside / "folder" / "x").write_text("theirs")
    path = inside / name
    path.symlink_to(outside / planted)
    writers()[name](path)
    assert not path.is_symlink()
    assert path.exists()
    assert list(inside.iterdir()) == [path]
    assert sorted(entry.name for entry in outside.iterdir()) == ["file", "folder"]
    assert (outside / "file").read_text() == "theirs"
    assert (outside / "folder" / "x").read_text() == "theirs"
    digest = file_digest(path / "x" if path.is_dir() else path)
    assert len(digest) == 32


@pytest.mark.parametrize("name", writers())
def test_a_link_under_a_guessed_temporary_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    inside.mkdir()
    monkeypatch.setattr("secrets.token_hex", lambda count: "ab" * count)
    guessed = partial_path(inside / name)
    guessed.unlink()
    if name == "folder":
        guessed = guessed.with_name(guessed.name.removesuffix("."))
    guessed.symlink_to(outside)
    with pytest.raises(StorageError, match=f"{re.escape(str(inside / name))}: could not be written"):
        writers()[name](inside / name)
    assert not outside.exists()
    assert list(inside.iterdir()) == [guessed]


def test_a_link_in_place_of_a_lock_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.symlink_to(tmp_path / "outside")
    message = rf"{re.escape(str(lock))}: could not be written .*\. A symbolic link stands where a file is needed"
    with pytest.raises(StorageError, match=message), exclusive(lock, "nothing"):
        pass
    assert not (tmp_path / "outside").exists()


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.write_text("theirs")
    with pytest.raises(StorageError, match="A file stands where a folder is needed"), atomic_directory(path):
        pass
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]
