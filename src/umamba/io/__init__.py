"""Read and write images with their geometry, write files atomically, lock, report user errors, record provenance.

The names below are loaded on first use, so that `from umamba.io import UserError` loads neither numpy nor SimpleITK.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umamba.io.dicom import holds_dicom
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

# The module that defines each name. No name equals a module's, because the module would hide it once it is loaded.
_MODULES = {
    "dicom": ("holds_dicom",),
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
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
