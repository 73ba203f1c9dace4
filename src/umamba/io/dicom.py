"""Read a DICOM series, a folder with one file per slice, as one volume, and refuse a series with missing slices.

ITK sorts the slices by position and takes the distance of the first two as the spacing of all, so it would not notice
a missing slice.
"""

import locale
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.io.errors import UserError
from umamba.io.itk import one_at_a_time

_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
_UNEVEN = 0.1  # largest allowed deviation from the median distance of slices, as a fraction of that distance


def is_dicom(path: Path) -> bool:
    """Return whether a file has DICOM's mark "DICM" after its first 128 bytes.

    Args:
        path: the file. If it cannot be read, the answer is False.
    """
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def holds_dicom(folder: Path) -> bool:
    """Return whether a folder directly contains a DICOM file.

    Args:
        folder: the folder; its subfolders are not searched.
    """
    return any(path.is_file() and is_dicom(path) for path in sorted(folder.iterdir()))


@contextmanager
def kept_locale() -> Iterator[None]:
    """Restore the process's locale afterwards, because GDCM sets it to C and Python would then read files as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def series_files(folder: Path) -> list[Path]:
    """Return the files of the DICOM series in a folder, ordered by slice position.

    Args:
        folder: a folder with the files of one series.

    Raises:
        UserError: the folder holds no series, or more than one.
    """
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with one_at_a_time, kept_locale():
        found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(os.fspath(folder))
    if len(found) != 1:
        what = "no DICOM series" if not found else f"{len(found)} DICOM series ({', '.join(found)})"
        raise UserError(f"{folder}: {what} in this folder. Give a folder with the files of one series.")
    with one_at_a_time, kept_locale():
        return [Path(name) for name in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(os.fspath(folder), found[0])]


def decode_series(folder: Path) -> sitk.Image:
    """Read the DICOM series in a folder as one volume.

    Args:
        folder: a folder with the files of one series.

    Raises:
        UserError: the folder holds no series or more than one, a file cannot be decoded, or slices are missing or
            duplicated.
    """
    files = series_files(folder)
    if len(files) > 1:
        _check_distances(folder, files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([os.fspath(path) for path in files])
    try:
        with one_at_a_time, kept_locale():
            return reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{folder}: the DICOM series cannot be decoded ({reason}). Export it again.") from None


def _check_distances(folder: Path, files: Sequence[Path]) -> None:
    along = []
    for path in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(os.fspath(path))
        try:
            with one_at_a_time:
                reader.ReadImageInformation()
            position = np.array(reader.GetMetaData(_POSITION).split("\\"), dtype=float)
            row, column = np.array(reader.GetMetaData(_ORIENTATION).split("\\"), dtype=float).reshape(2, 3)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: not a readable slice of a DICOM series ({reason}). Export it again.") from None
        along.append(float(position @ np.cross(row, column)))
    distances = np.abs(np.diff(along))
    usual = float(np.median(distances))
    wrong = np.flatnonzero(np.abs(distances - usual) > _UNEVEN * usual) if usual else np.arange(len(distances))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{folder}: the slices of the DICOM series are not evenly spaced: {distances[first]:.3g} mm between "
            f"{files[first].name} and {files[first + 1].name}, {usual:.3g} mm elsewhere. Slices are missing or "
            "duplicated; export the series again."
        )
