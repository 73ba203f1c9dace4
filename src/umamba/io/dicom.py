"""Reads a DICOM series, a folder with one file a slice, as one volume, and refuses what would be read wrongly.

ITK sorts the slices by their position and takes the first two for the spacing of all: a missing slice would go unseen.
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
_UNEVEN = 0.1  # largest deviation from the usual distance of slices, as a share of it


def is_dicom(path: Path) -> bool:
    """Return whether a file is in DICOM's file format (it says so after 128 bytes)."""
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def holds_dicom(folder: Path) -> bool:
    """Return whether a DICOM file lies in a folder."""
    return any(path.is_file() and is_dicom(path) for path in sorted(folder.iterdir()))


@contextmanager
def kept_locale() -> Iterator[None]:
    """Put the process's locale back afterwards: GDCM sets it to C, and files opened later would be read as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def series_files(folder: Path) -> list[Path]:
    """Return the slices of the series in a folder in the order of their position.

    Raises:
        UserError: there is none, or more than one.
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
    """Read the DICOM series in a folder.

    Raises:
        UserError: there is none or more than one, a file cannot be decoded, or slices are missing or doubled.
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
            raise UserError(f"{path}: no readable slice of a DICOM series ({reason}). Export it again.") from None
        along.append(float(position @ np.cross(row, column)))
    distances = np.abs(np.diff(along))
    usual = float(np.median(distances))
    wrong = np.flatnonzero(np.abs(distances - usual) > _UNEVEN * usual) if usual else np.arange(len(distances))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{folder}: the slices of the DICOM series are not evenly spaced: {distances[first]:.3g} mm between "
            f"{files[first].name} and {files[first + 1].name}, {usual:.3g} mm elsewhere. Slices are missing or "
            "doubled; export the series again."
        )
