"""The digest changes with the content of the training files; the cache only saves reading them again."""

import os
import shutil
from pathlib import Path

import pytest

from umamba.datasets import dataset_digest, digest, read_dataset
from umamba.io import UserError


def test_follows_content_and_not_the_place(raw: Path, tmp_path: Path) -> None:
    before = dataset_digest(read_dataset(raw), None)
    copy = shutil.copytree(raw, tmp_path / "elsewhere" / "copy")
    assert dataset_digest(read_dataset(copy), None) == before
    label = copy / "labelsTr" / "b.nii.gz"
    label.write_bytes(label.read_bytes() + b"\0")
    assert dataset_digest(read_dataset(copy), None) != before


def test_cache(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read_dataset(raw)
    cache = tmp_path / "cache.json"
    expected = dataset_digest(dataset, None)
    assert dataset_digest(dataset, cache) == expected
    read: list[str] = []
    genuine = digest.file_digest

    def recorded(path: Path) -> str:
        read.append(path.name)
        return genuine(path)

    monkeypatch.setattr(digest, "file_digest", recorded)
    assert dataset_digest(dataset, cache) == expected
    assert read == []
    os.utime(raw / "labelsTr" / "a.nii.gz", ns=(0, 0))
    assert dataset_digest(dataset, cache) == expected
    assert read == ["a.nii.gz"]
    cache.write_text("{")
    assert dataset_digest(dataset, cache) == expected
    assert len(read) == 1 + 7


def test_a_pipe_is_refused_and_not_read(raw: Path) -> None:
    dataset = read_dataset(raw)
    (raw / "labelsTr" / "b.nii.gz").unlink()
    os.mkfifo(raw / "labelsTr" / "b.nii.gz")
    with pytest.raises(UserError, match=r"b\.nii\.gz: is no regular file"):
        dataset_digest(dataset, None)


def test_files_that_vanish_are_named_together(raw: Path) -> None:
    dataset = read_dataset(raw)
    (raw / "imagesTr" / "a_0000.nii.gz").unlink()
    (raw / "labelsTr" / "b.nii.gz").unlink()
    (raw / "labelsTr" / "b.nii.gz").mkdir()
    with pytest.raises(UserError, match=r"a_0000\.nii\.gz: No such file(.|\n)*b\.nii\.gz: Is a directory"):
        dataset_digest(dataset, None)
