"""Read and write images with their geometry, write files atomically, lock, report user errors, record provenance.

The names below are loaded on first use, so that `from umamba.io import UserError` loads neither numpy nor SimpleITK.
"""

from typing import TYPE_CHECKING

from umamba.io.lazy import lazy_names

if TYPE_CHECKING:
    from umamba.io.dicom_mark import holds_dicom
    from umamba.io.documents import read_json
    from umamba.io.errors import StorageError, UserError
    from umamba.io.files import (
        atomic_directory,
        atomic_path,
        below,
        file_digest,
        make_folder,
        partial_path,
        remove_stale,
        storage_errors,
        write_json,
        wrong_name,
    )
    from umamba.io.image import (
        Geometry,
        Image,
        geometry_difference,
        orientation_of,
        oriented_like,
        ras_turn,
        read_image,
        read_label,
        supported_endings,
        turned,
        voxel_count,
        write_segmentation,
    )
    from umamba.io.locks import exclusive
    from umamba.io.orientation import Turn
    from umamba.io.versions import provenance
    from umamba.io.write import write_image

_MODULES = {
    "dicom_mark": ("holds_dicom",),
    "documents": ("read_json",),
    "errors": ("StorageError", "UserError"),
    "files": (
        *("atomic_directory", "atomic_path", "below", "file_digest", "make_folder", "partial_path"),
        *("remove_stale", "storage_errors", "write_json", "wrong_name"),
    ),
    "image": (
        *("Geometry", "Image", "geometry_difference", "read_image", "read_label", "supported_endings", "voxel_count"),
        *("orientation_of", "oriented_like", "ras_turn", "turned", "write_segmentation"),
    ),
    "locks": ("exclusive",),
    "orientation": ("Turn",),
    "versions": ("provenance",),
    "write": ("write_image",),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "Geometry",
    "Image",
    "StorageError",
    "Turn",
    "UserError",
    "atomic_directory",
    "atomic_path",
    "below",
    "exclusive",
    "file_digest",
    "geometry_difference",
    "holds_dicom",
    "make_folder",
    "orientation_of",
    "oriented_like",
    "partial_path",
    "provenance",
    "ras_turn",
    "read_image",
    "read_json",
    "read_label",
    "remove_stale",
    "storage_errors",
    "supported_endings",
    "turned",
    "voxel_count",
    "write_image",
    "write_json",
    "write_segmentation",
    "wrong_name",
]
