"""Read DICOM: a series of one file per slice, or a file of one or many frames, as one volume with its real values.

Frames are sorted by their position, whatever their order in the files. A volume whose frames do not make a straight and
even grid (missing or doubled slices, a tilted gantry, mixed orientations) is refused, because no spacing describes it.
The values are those of the file times the slope of each frame, plus its intercept; they are not inverted for display.
"""

import locale
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from umamba.io.bounds import check_room
from umamba.io.dicom_frames import Frame, frames_of, stack
from umamba.io.dicom_mark import is_dicom
from umamba.io.dicom_pixels import check_deflated, declared_shape, real_values, stored_values
from umamba.io.errors import UserError
from umamba.io.itk import one_at_a_time

log = logging.getLogger(__name__)

_GROUP_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # a file without the mark begins with group 2 or 8
_UNCOMPRESSED = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
_DIRECTORY = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR


@contextmanager
def kept_locale() -> Iterator[None]:
    """Restore the process's locale afterwards, because GDCM sets it to C and Python would then read files as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def series_files(folder: Path) -> list[Path]:
    """Return the files of the DICOM series in a folder, in the order of their names.

    Args:
        folder: a folder with the files of one series. Files without pixels, such as reports, are left out.

    Raises:
        UserError: the folder holds no series, or more than one, or a DICOM file that cannot be read.
    """
    series: dict[str, list[Path]] = {}
    kinds: set[str] = set()
    without_pixels: list[tuple[Path, str, str]] = []
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not _looks_like_dicom(path):
            continue
        header = read_dataset(path, with_pixels=False)
        with readable(path):
            kind = str(header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or "")
            uid = str(header.get("SeriesInstanceUID") or "")
        if "Rows" in header:
            series.setdefault(uid, []).append(path)
            kinds.add(kind)
        elif kind != _DIRECTORY:
            without_pixels.append((path, kind, uid))
    for path, kind, uid in without_pixels:
        if not kind or not uid or kind in kinds or uid in series:
            raise UserError(f"{path}: the DICOM file is truncated: it ends before its pixels. Export it again.")
    if len(series) != 1:
        what = "no DICOM series" if not series else f"{len(series)} DICOM series ({', '.join(sorted(series))})"
        raise UserError(f"{folder}: {what} in this folder. Give a folder with the files of one series.")
    return next(iter(series.values()))


def declared_voxels(path: Path) -> int:
    """Return how many voxels a DICOM file, or the series in a folder, declares over all its channels.

    Args:
        path: the file, or the folder. What cannot be read counts 0.
    """
    files = [path]
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file() and _looks_like_dicom(file)]
    if not files:
        return 0
    try:
        header = read_dataset(files[0], with_pixels=False)
        with readable(files[0]):
            return math.prod(declared_shape(header)) * len(files)
    except UserError:
        return 0


def decode_series(folder: Path) -> sitk.Image:
    """Read the DICOM series in a folder as one volume.

    Args:
        folder: a folder with the files of one series.

    Raises:
        UserError: the folder holds no series or more than one, a file cannot be decoded or holds too few pixels, or
            the slices are no straight and even grid.
    """
    return _decode(folder, series_files(folder))


def decode_dicom(path: Path) -> sitk.Image:
    """Read one DICOM file, of one or many frames, as a volume.

    Args:
        path: the file.

    Raises:
        UserError: it cannot be decoded or holds too few pixels, or its frames are no straight and even grid.
    """
    return _decode(path, [path])


def _decode(source: Path, files: Sequence[Path]) -> sitk.Image:
    """Read frames file by file, sort them by position and put them on one grid."""
    frames: list[Frame] = []
    values: list[np.ndarray] = []
    inverted = False
    for path in files:
        dataset = read_dataset(path, with_pixels=True)
        with readable(path):
            bits = max(8, int(dataset.get("BitsAllocated") or 8))
            check_room(source, math.prod(declared_shape(dataset)) * bits // 8 * len(files))
            found = frames_of(path, dataset)
            table = dataset if dataset.get("ModalityLUTSequence") else None
            values.extend(real_values(stored_values(dataset), [frame.scale for frame in found], table))
            inverted = inverted or dataset.get("PhotometricInterpretation") == "MONOCHROME1"
        frames += found
        if len(files) > 1 and len(found) > 1:
            raise UserError(
                f"{source}: {path.name} holds {len(found)} frames, and there are {len(files)} files. Give each file of "
                "many frames alone."
            )
    if len({plane.shape for plane in values}) > 1:
        sizes = next((a.shape[:2], b.shape[:2]) for a, b in pairwise(values) if a.shape != b.shape)
        raise UserError(
            f"{source}: the slices differ in size: {sizes[0]} and {sizes[1]} pixels (Y, X). Leave only "
            "the slices of one volume in the folder."
        )
    if inverted:
        log.info("%s: MONOCHROME1, which is shown inverted; the values are read as they are stored.", source)
    order, normal, distance = stack(source, frames)
    array = np.stack([values[index] for index in order])
    first = frames[order[0]]
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    image.SetSpacing((first.spacing[1], first.spacing[0], distance))
    image.SetOrigin([0.0, 0.0, 0.0] if first.position_xyz is None else first.position_xyz.tolist())
    image.SetDirection(np.stack([*first.axes_xyz, normal], axis=1).ravel().tolist())
    return image


def _looks_like_dicom(path: Path) -> bool:
    """Return whether a file has DICOM's mark, or begins as files of old exports that lack it."""
    if is_dicom(path):
        return True
    with open(path, "rb") as stream:
        start = stream.read(4)
    return start[:2] in _GROUP_STARTS and b"\0" in start[2:4]


def read_dataset(path: Path, with_pixels: bool) -> FileDataset:
    """Read one DICOM file.

    Args:
        path: the file.
        with_pixels: whether its pixels are read, too.

    Raises:
        UserError: it cannot be read.
    """
    with readable(path):
        if is_dicom(path):
            check_deflated(path)
        dataset = pydicom.dcmread(os.fspath(path), stop_before_pixels=not with_pixels, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:  # pydicom has found out the encoding by itself
            implicit, little = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = _UNCOMPRESSED[bool(implicit), bool(little)]
        return dataset


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises for foreign bytes into one UserError, and keep its warnings off the terminal.

    Args:
        path: the file.

    Raises:
        UserError: the block raised an error.
    """
    with one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # pydicom parses lazily and lets errors of any kind through
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")
            raise UserError(f"{path}: not a readable DICOM file ({reason}). Export it again.") from None
