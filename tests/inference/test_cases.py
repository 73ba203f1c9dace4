"""How the files of a folder are grouped to cases."""

from pathlib import Path

import pytest

from umamba.inference.cases import list_cases
from umamba.io import UserError


def touch(folder: Path, *names: str) -> Path:
    """Make empty files; only their names matter."""
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def found(folder: Path, num_channels: int) -> dict[str, list[str]]:
    """Return the file names of each case."""
    return {case.case_id: [path.name for path in case.images] for case in list_cases(folder, num_channels)}


def test_channels_are_grouped_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "a_0000.mha", "a_0001.mha", "notes.txt", ".b_0002.nii.gz")
    assert found(tmp_path, 2) == {"a": ["a_0000.mha", "a_0001.mha"], "b": ["b_0000.nii.gz", "b_0001.nii.gz"]}


def test_single_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b_0000.png", "scan_2024.png")
    assert found(tmp_path, 1) == {"a": ["a.png"], "b": ["b_0000.png"], "scan_2024": ["scan_2024.png"]}
    assert found(tmp_path, 3)["b"] == ["b_0000.png"]  # a colour image in one file


def test_jpeg_files_are_named(tmp_path: Path, messages: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.png", "b.JPG", "c.jpeg")
    assert list(found(tmp_path, 1)) == ["a"]
    assert f"2 JPEG files in {tmp_path}, such as b.JPG, are left out" in messages.text


def test_all_problems_together(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.png", "a_0002.png", "b_0000.png", "b_0000.tif")
    with pytest.raises(UserError) as raised:
        list_cases(tmp_path, 3)
    assert "a_0001" in str(raised.value)
    assert "b_0000.tif" in str(raised.value)


def test_nothing_to_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images"):
        list_cases(tmp_path, 1)
    with pytest.raises(UserError, match="no file or folder"):
        list_cases(tmp_path / "absent", 1)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("IM_0000.dcm", "IM_0000"),
        ("IM_0001.dcm", "IM_0001"),
        ("IM0001", "IM0001"),
        ("slice.ima", "slice"),
        ("1.2.840.7", "1.2.840.7"),
    ],
)
def test_a_single_dicom_file_is_a_case_whatever_its_name(tmp_path: Path, name: str, case: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"\0" * 128 + b"DICM")
    assert [(one.case_id, one.images) for one in list_cases(file, 1)] == [(case, (file,))]


def test_a_single_file_without_the_mark_of_dicom_goes_by_its_ending(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.png", "a_0001.png", "IM0001", "old_0000.dcm")
    assert found(tmp_path / "a_0000.png", 2) == {"a": ["a_0000.png", "a_0001.png"]}
    assert found(tmp_path / "old_0000.dcm", 1) == {"old_0000": ["old_0000.dcm"]}
    with pytest.raises(UserError, match="IM0001 is no image"):
        list_cases(tmp_path / "IM0001", 1)
