"""Images in and out with their geometry, atomic files, locks, user errors, provenance. Nothing else."""

from umamba.io.decode import stored_axes, stored_spacing
from umamba.io.dicom import holds_dicom
from umamba.io.errors import StorageError, UserError
from umamba.io.files import (
    atomic_directory,
    atomic_path,
    exclusive,
    file_digest,
    partial_path,
    read_json,
    remove_stale,
    storage_errors,
    write_json,
)
from umamba.io.image import (
    Geometry,
    Image,
    geometry_difference,
    read_image,
    read_label,
    supported_endings,
    voxel_count,
    write_segmentation,
)
from umamba.io.provenance import provenance

__all__ = [
    "Geometry",
    "Image",
    "StorageError",
    "UserError",
    "atomic_directory",
    "atomic_path",
    "exclusive",
    "file_digest",
    "geometry_difference",
    "holds_dicom",
    "partial_path",
    "provenance",
    "read_image",
    "read_json",
    "read_label",
    "remove_stale",
    "storage_errors",
    "stored_axes",
    "stored_spacing",
    "supported_endings",
    "voxel_count",
    "write_json",
    "write_segmentation",
]
