"""Decode one image file of any format, without ITK's warnings, and refuse damaged files.

NIfTI files are read by `nifti`, DICOM by `dicom`, TIFF by `tiff`, and by `raster` the pictures that ITK reads otherwise
than scikit-image. The others are read by SimpleITK, after `headers` has compared them with their header,
because ITK reads some truncated files without an error and takes memory for whatever size a header declares.
"""

import math
import os
import re
from pathlib import Path

import SimpleITK as sitk

from umamba.io.bounds import REMEDY, check_length, check_regular
from umamba.io.dicom_mark import is_dicom
from umamba.io.errors import UserError
from umamba.io.headers import check_layout
from umamba.io.itk import one_at_a_time
from umamba.io.nifti import ENDINGS as NIFTI_ENDINGS
from umamba.io.nifti import read_nifti
from umamba.io.raster import decode_raster
from umamba.io.tiff import decode_tiff, is_tiff
from umamba.io.tiff_spacing import TIFF_ENDINGS

_READERS = {  # of any case of the ending
    **{".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO"},
    ".gipl": "GiplImageIO",
}
# How the content of a format begins, and the ending that belongs to it
_CONTENTS = (
    (b"NRRD000", ".nrrd"),
    (b"ObjectType", ".mha"),
    (b"NDims", ".mha"),
    (b"\x5c\x01\0\0", ".nii"),
    (b"\0\0\x01\x5c", ".nii"),
    (b"\x1c\x02\0\0n+2", ".nii"),
    (b"\0\0\x02\x1cn+2", ".nii"),
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"II+\0", ".tif"),
    (b"MM\0+", ".tif"),
    (b"BM", ".bmp"),
    (b"\x1f\x8b", ".nii.gz"),
)
_SAME = ({".nii", ".nii.gz"}, {".tif", ".tiff"})  # endings of one reader, which decides by the content


def nonfinite_error(path: Path, count: int) -> UserError:
    """Return the error for an image with voxels that are not finite.

    Args:
        path: the image file.
        count: number of voxels that are NaN or infinite.
    """
    return UserError(f"{path}: {count} voxels are NaN or infinite. Replace them by a real intensity.")


def decode(path: Path) -> sitk.Image:
    """Read one image file.

    Args:
        path: the file; its ending chooses the reader.

    Raises:
        UserError: the file is missing, no regular file, empty, undecodable, truncated, larger than the memory, or of
            another format than its ending says; or its spacing is not positive.
    """
    path = Path(path)
    check_regular(path)
    _check_ending(path)
    if path.name.lower().endswith(NIFTI_ENDINGS):
        return read_nifti(path)
    if is_dicom(path) or path.suffix.lower() == ".dcm":
        from umamba.io.dicom import decode_dicom  # pydicom takes a while to load

        return decode_dicom(path)
    if path.name.lower().endswith(TIFF_ENDINGS) and is_tiff(path):
        return decode_tiff(path)
    picture = decode_raster(path)
    if picture is not None:
        return picture
    numbers = check_layout(path)
    with one_at_a_time:
        image = _read(path, numbers)
    return _without_palette(path, image) if path.suffix.lower() == ".bmp" else image


def _check_ending(path: Path) -> None:
    """Raise UserError if the content is known to be of another format than the ending says."""
    with open(path, "rb") as stream:
        start = stream.read(132)
    found = next((ending for magic, ending in _CONTENTS if start.startswith(magic)), None)
    if start[128:] == b"DICM":
        found = ".dcm"
    own = _ending(path)
    if found is None or own is None or own == found or any({own, found} <= same for same in _SAME):
        return
    what = "compressed with gzip" if found == ".nii.gz" else f"of the format {found}"
    remedy = "Decompress it" if found == ".nii.gz" else f"Rename it so that it ends in {found}"
    raise UserError(f"{path}: its content is {what}, although its name ends in {own}. {remedy}.")


def _ending(path: Path) -> str | None:
    """Return the lower-case ending if it is one of a format that `_CONTENTS` knows."""
    endings = [*NIFTI_ENDINGS, ".gipl", ".tiff", *(ending for _, ending in _CONTENTS)]
    return next((ending for ending in endings if path.name.lower().endswith(ending)), None)


def _read(path: Path, numbers: int | None) -> sitk.Image:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    if path.suffix.lower() in _READERS:
        reader.SetImageIO(_READERS[path.suffix.lower()])  # ITK itself looks for lower-case endings only
    try:
        reader.ReadImageInformation()
        if numbers is not None and math.prod(reader.GetSize()) * reader.GetNumberOfComponents() != numbers:
            raise UserError(f"{path}: its header can be read in two ways. {REMEDY}")
        _check_bmp_length(path)
        return reader.Execute()
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be decoded ({_reason(error)}). {REMEDY}") from None


def _reason(error: RuntimeError) -> str:
    """Return the line of an ITK exception that states the error, without its source-code positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    stated = [line for line in lines if "ERROR" in line] or lines[-1:]
    reason = stated[0].split("ERROR:")[-1].strip().rstrip(".:") if stated else "unknown reason"
    return re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", reason)


def _check_bmp_length(path: Path) -> None:
    """Raise UserError if a BMP file is shorter than its header declares."""
    if path.suffix.lower() == ".bmp":
        check_length(path, path.stat().st_size, _declared_bmp(path))


def _declared_bmp(path: Path) -> int:
    with open(path, "rb") as stream:
        return int.from_bytes(stream.read(6)[2:], "little")


def _without_palette(path: Path, image: sitk.Image) -> sitk.Image:
    """Return a BMP file's image with one channel if it is an 8-bit grey image, which ITK reads as RGB."""
    with open(path, "rb") as stream:
        bits = int.from_bytes(stream.read(30)[28:], "little")
    if bits != 8 or image.GetNumberOfComponentsPerPixel() != 3:
        return image
    colours = sitk.GetArrayViewFromImage(image)
    if (colours != colours[..., :1]).any():
        return image
    return sitk.VectorIndexSelectionCast(image, 0)
