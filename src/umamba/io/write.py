"""Write an image file that is complete or absent: the one writer of image files, which reads back what it wrote."""

import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba.io.bounds import check_text
from umamba.io.decode import decode, nonfinite_error
from umamba.io.errors import StorageError, UserError
from umamba.io.files import atomic_path
from umamba.io.itk import one_at_a_time
from umamba.io.tiff import write_tiff
from umamba.io.tiff_spacing import TIFF_ENDINGS


def write_image(path: Path, image: sitk.Image) -> None:
    """Write an image atomically and compressed, and compare its voxels with those of the file.

    Args:
        path: the file; its ending chooses the format.
        image: the image.

    Raises:
        UserError: the image holds NaN or infinity, the name is no text, or the format cannot hold the direction.
        StorageError: the disk could not be written.
    """
    check_text(path)
    voxels = sitk.GetArrayViewFromImage(image)
    if np.issubdtype(voxels.dtype, np.floating) and not np.isfinite(voxels).all():
        raise nonfinite_error(path, voxels.size - int(np.count_nonzero(np.isfinite(voxels))))
    identity = np.eye(image.GetDimension()).ravel()
    if path.name.lower().endswith(".gipl") and not np.allclose(image.GetDirection(), identity, atol=1e-4):
        raise UserError(f"{path}: a GIPL file cannot hold the direction of this image. Give .nii.gz, .nrrd or .mha.")
    with atomic_path(path) as temporary:
        lower = temporary.with_name(temporary.name.lower())  # ITK knows only endings in lower case
        try:
            if lower.name.endswith(TIFF_ENDINGS) and image.GetNumberOfComponentsPerPixel() == 1:
                write_tiff(lower, voxels)
            else:
                with one_at_a_time:
                    sitk.WriteImage(image, os.fspath(lower), useCompression=True)
            _check_written(lower, path, voxels)
            os.replace(lower, temporary)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StorageError(f"{path}: could not be written ({reason}). Check disk space and permissions.") from None
        finally:
            if lower != temporary:
                lower.unlink(missing_ok=True)


def _check_written(temporary: Path, path: Path, voxels: np.ndarray) -> None:
    """Read the file back; raise StorageError if it differs, because ITK does not report a full disk."""
    try:
        written = decode(temporary)
    except UserError as error:
        reason = str(error).partition(": ")[2].partition(". ")[0]
        raise StorageError(f"{path}: could not be written ({reason}). Check the free disk space.") from None
    found = sitk.GetArrayViewFromImage(written)
    if found.size != voxels.size or not np.array_equal(found.reshape(voxels.shape), voxels):
        raise StorageError(f"{path}: could not be written: the file read back differs. Check the free disk space.")
    # A lost end need not hold voxels: the checksum of a compressed NRRD file. A disk that took the end takes a byte.
    size = temporary.stat().st_size
    with open(temporary, "ab") as stream:
        stream.write(b"\0")
        stream.flush()
        stream.truncate(size)
