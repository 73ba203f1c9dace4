"""Recognise DICOM files by their first bytes, without loading what reads them."""

from pathlib import Path

from umamba.io.bounds import first_bytes


def is_dicom(path: Path) -> bool:
    """Return whether a file has DICOM's mark "DICM" after its first 128 bytes.

    Args:
        path: the file. If it cannot be read, the answer is False.
    """
    return first_bytes(path, 132)[128:] == b"DICM"


def holds_dicom(folder: Path) -> bool:
    """Return whether a folder directly contains a DICOM file.

    Args:
        folder: the folder; its subfolders are not searched.
    """
    return any(path.is_file() and is_dicom(path) for path in sorted(folder.iterdir()))
