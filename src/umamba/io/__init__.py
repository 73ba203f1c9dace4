"""Images in and out with their geometry, atomic files, locks, user errors, provenance. Nothing else."""

from umamba.io.decode import stored_axes, stored_spacing
from umamba.io.errors import UserError
from umamba.io.files import (
    atomic_directory,
    atomic_path,
    exclusive,
    file_digest,
    read_json,
    remove_stale,
    write_json,
)
from umamba.io.image import (
    Geometry,
    Image,
    geometry_difference,
    read_image,
    read_label,
    supported_endings,
    write_segmentation,
)
from umamba.io.provenance import provenance

__all__ = [
    "Geometry",
    "Image",
    "UserError",
    "atomic_directory",
    "atomic_path",
    "exclusive",
    "file_digest",
    "geometry_difference",
    "provenance",
    "read_image",
    "read_json",
    "read_label",
    "remove_stale",
    "stored_axes",
    "stored_spacing",
    "supported_endings",
    "write_json",
    "write_segmentation",
]
