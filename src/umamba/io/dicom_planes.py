"""The slices of a DICOM series in the order of its volume, with their headers: what results in DICOM refer to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset

from umamba.io.dicom import read_dataset, readable, series_files
from umamba.io.dicom_frames import Frame, along_normal, frames_of
from umamba.io.dicom_mark import is_dicom
from umamba.io.errors import UserError

_NEEDED = {
    "SOPClassUID": "SOP Class UID",
    "SOPInstanceUID": "SOP Instance UID",
    "StudyInstanceUID": "Study Instance UID",
    "SeriesInstanceUID": "Series Instance UID",
    "FrameOfReferenceUID": "Frame of Reference UID",
}


@dataclass(frozen=True)
class Plane:
    """One slice of a volume.

    Attributes:
        header: of its file, without pixels; the frames of one file share it.
        frame: where it lies.
    """

    header: FileDataset
    frame: Frame

    @property
    def position_xyz(self) -> np.ndarray:
        """Centre of the first pixel in mm."""
        assert self.frame.position_xyz is not None
        return self.frame.position_xyz

    def points_xyz(self, rows_columns: np.ndarray) -> np.ndarray:
        """Return the places of pixels in the patient.

        Args:
            rows_columns: (N, 2) rows and columns; whole numbers are centres of pixels.

        Returns:
            (N, 3) in mm (PS3.3 C.7.6.2.1.1).
        """
        along_rows, down_columns = self.frame.axes_xyz
        height, width = self.frame.spacing
        across, down = rows_columns[:, 1, None] * width * along_rows, rows_columns[:, 0, None] * height * down_columns
        return self.position_xyz + across + down


def is_dicom_image(source: Path) -> bool:
    """Return whether an image comes from DICOM: a folder with a series, or a file.

    Args:
        source: the file or folder.
    """
    return source.is_dir() or is_dicom(source)


def read_planes(source: Path) -> list[Plane]:
    """Read the headers of a series or file, in the order of the slices of the volume that `read_image` gives.

    A tilted gantry is no obstacle, because each slice has its own place.

    Args:
        source: a folder with one series, or a file of one or many frames.

    Raises:
        UserError: a file cannot be read, or lacks an identifier or a position that results must refer to.
    """
    files = series_files(source) if source.is_dir() else [source]
    planes: list[Plane] = []
    for path in files:
        header = read_dataset(path, with_pixels=False)
        with readable(path):
            _check(path, header)
            frames = frames_of(path, header)
        planes += [Plane(header, frame) for frame in frames]
        if any(frame.position_xyz is None for frame in frames):
            raise UserError(
                f"{path}: states no position (Image Position (Patient)), so a result in DICOM cannot refer to it. "
                "Leave the DICOM forms out of export."
            )
    return [planes[index] for index in along_normal([plane.frame for plane in planes])]


def _check(path: Path, header: FileDataset) -> None:
    missing = [name for keyword, name in _NEEDED.items() if not str(header.get(keyword) or "").strip()]
    if missing:
        raise UserError(
            f"{path}: has no {' and no '.join(missing)}, which a result in DICOM must repeat. Export the series again "
            "with it, or leave the DICOM forms out of export."
        )


def headers_of(planes: Sequence[Plane]) -> list[FileDataset]:
    """Return the headers of the files of planes, each once, in the order of the planes.

    Args:
        planes: of one volume.
    """
    found = {id(plane.header): plane.header for plane in planes}
    return list(found.values())
