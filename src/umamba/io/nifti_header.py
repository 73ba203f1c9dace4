"""The header of NIfTI-1 and NIfTI-2 files: parsed from its bytes, checked, and with the position that counts."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba.io.bounds import REMEDY, check_spacing
from umamba.io.errors import UserError
from umamba.io.orientation import is_orthonormal

HEADER_BYTES = 544  # enough for NIfTI-2
# dtype and components of each readable data type; the others hold bits, complex numbers or 128-bit floats
_TYPES = {
    2: ("u1", 1),
    4: ("i2", 1),
    8: ("i4", 1),
    16: ("f4", 1),
    64: ("f8", 1),
    128: ("u1", 3),
    256: ("i1", 1),
    512: ("u2", 1),
    768: ("u4", 1),
    1024: ("i8", 1),
    1280: ("u8", 1),
    2304: ("u1", 4),
}
_VECTOR = 1007  # intent of a file whose fifth axis holds the components of a vector
_UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}  # metre, millimetre, micron; other values count as millimetres
_TOLERANCE = 1e-3  # of directions, and relative of spacings, because headers round them
_ORIGIN_TOLERANCE_MM = 1e-2
_SMALLEST = 1e-30  # direction cosines below count as 0, because ITK's arithmetic fails with denormal numbers
SKEWED = (
    "Resample the image to a straight grid, for example with nibabel.processing.resample_to_output (order=0 for label "
    "maps). If only the header is wrong, correct it (nibabel: image.set_sform)."
)
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class NiftiHeader:
    """The entries of a NIfTI header that images need.

    Attributes:
        shape_xyz: size along each stored axis, without single ones behind the third.
        dtype: of a stored number, with its byte order.
        components: numbers per voxel; more than 1 for RGB, RGBA and vectors.
        planar: whether the first components of all voxels are stored before the second ones (vectors).
        offset: byte of the first voxel in the uncompressed file.
        scale: (slope, intercept) of the stored numbers, or None.
        stored_spacing_xyz: as stored, one entry for each of the first 3 axes.
        unit_mm: length of the file's unit.
        qform: (3, 4) in RAS and file units, or None.
        sform: (3, 4) in RAS and file units, or None.
    """

    shape_xyz: tuple[int, ...]
    dtype: np.dtype
    components: int
    planar: bool
    offset: int
    scale: tuple[float, float] | None
    stored_spacing_xyz: tuple[float, ...]
    unit_mm: float
    qform: np.ndarray | None
    sform: np.ndarray | None

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels as stored."""
        return math.prod(self.shape_xyz) * self.components * self.dtype.itemsize

    def sform_is_skewed(self) -> bool:
        """Return whether there is an sform whose axes are not perpendicular."""
        return self.sform is not None and not is_orthonormal(_directions(self.sform))

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        """Return origin (3,) in mm and direction (3, 3), both LPS as SimpleITK gives them.

        The sform counts, as in nibabel. A skewed one counts only if there is no qform, because no image is skewed here.
        """
        form = self.qform if self.sform is None or (self.sform_is_skewed() and self.qform is not None) else self.sform
        if form is None:
            return np.zeros(3), np.eye(3)
        return RAS_TO_LPS @ form[:, 3] * self.unit_mm + 0.0, RAS_TO_LPS @ _directions(form) + 0.0


def parse_header(path: Path, start: bytes) -> NiftiHeader:
    """Parse the beginning of an uncompressed NIfTI file.

    Args:
        path: the file, for messages.
        start: its first bytes, 540 of them if there are as many.

    Raises:
        UserError: it is no NIfTI header, or one that describes no image.
    """
    order, version = _order_and_version(path, start)
    if version == 1:
        dims = struct.unpack(f"{order}8h", start[40:56])
        (code,) = struct.unpack(f"{order}h", start[70:72])
        (intent,) = struct.unpack(f"{order}h", start[68:70])
        pixdim = struct.unpack(f"{order}8f", start[76:108])
        offset, slope, intercept = struct.unpack(f"{order}3f", start[108:120])
        units = start[123]
        qcode, scode = struct.unpack(f"{order}2h", start[252:256])
        quaternion = struct.unpack(f"{order}6f", start[256:280])
        rows = struct.unpack(f"{order}12f", start[280:328])
        least = 352
    else:
        (code,) = struct.unpack(f"{order}h", start[12:14])
        dims = struct.unpack(f"{order}8q", start[16:80])
        pixdim = struct.unpack(f"{order}8d", start[104:168])
        (offset,) = struct.unpack(f"{order}q", start[168:176])
        slope, intercept = struct.unpack(f"{order}2d", start[176:192])
        qcode, scode = struct.unpack(f"{order}2i", start[344:352])
        quaternion = struct.unpack(f"{order}6d", start[352:400])
        rows = struct.unpack(f"{order}12d", start[400:496])
        units, intent = struct.unpack(f"{order}2i", start[500:508])
        least = 544
    if code not in _TYPES:
        raise UserError(
            f"{path}: its voxels have the NIfTI data type {code} (bits, complex numbers or 128-bit floats). Convert it "
            "to integers or floats of at most 64 bits."
        )
    if not math.isfinite(offset):
        raise UserError(f"{path}: the header gives no position of the voxels (vox_offset {offset}). {REMEDY}")
    kind, components = _TYPES[code]
    shape = _shape(path, dims)
    planar = intent == _VECTOR and len(shape) == 5 and shape[3] == 1 and components == 1
    if planar:
        shape, components = shape[:3], shape[4]
    scale = (slope, intercept) if slope and math.isfinite(slope) and (slope, intercept) != (1, 0) else None
    if scale is not None and not math.isfinite(intercept):
        raise UserError(f"{path}: the header scales the voxels by {slope:g} and adds {intercept}. Correct scl_inter.")
    return NiftiHeader(
        shape,
        np.dtype(order + kind),
        components,
        planar,
        max(least, int(offset)),
        scale if components == 1 or planar else None,
        tuple(pixdim[1 : 1 + min(3, len(shape))]),
        _UNITS.get(units & 7, 1.0),
        _quaternion_form(quaternion, pixdim) if qcode > 0 else None,
        np.array(rows).reshape(3, 4) if scode > 0 else None,
    )


def _order_and_version(path: Path, start: bytes) -> tuple[str, int]:
    """Return the byte order and the version, 1 or 2."""
    for order in "<>":
        length = struct.unpack(f"{order}i", start[:4])[0] if len(start) >= 4 else 0
        for version, bytes_, at in ((1, 348, 344), (2, 540, 4)):
            if length == bytes_ and len(start) < bytes_:
                raise UserError(f"{path}: the file is truncated (its NIfTI header is incomplete). {REMEDY}")
            if length == bytes_:
                magic = start[at : at + 3]
                if magic in (b"ni1", b"ni2"):
                    raise UserError(
                        f"{path}: is one of a pair of files (.hdr and .img). Convert the pair to one .nii.gz file."
                    )
                if magic == b"n+%d" % version:
                    return order, version
                raise UserError(f"{path}: is no NIfTI file but Analyze 7.5 or another format. Convert it to .nii.gz.")
    raise UserError(
        f"{path}: cannot be decoded (its content is no NIfTI, neither plain nor compressed with gzip). {REMEDY}"
    )


def _shape(path: Path, dims: tuple[int, ...]) -> tuple[int, ...]:
    count = dims[0]
    if not 1 <= count <= 7 or min(dims[1 : count + 1]) < 1:
        raise UserError(f"{path}: the header declares the size {dims[1 : max(1, min(7, count)) + 1]}. {REMEDY}")
    shape = tuple(dims[1 : count + 1])
    return _without_single(shape)


def _without_single(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Remove axes of one entry behind the third."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _quaternion_form(quaternion: tuple[float, ...], pixdim: tuple[float, ...]) -> np.ndarray:
    """Return the (3, 4) qform: rotation by the quaternion, scaled by pixdim, as the NIfTI standard defines it."""
    b, c, d = quaternion[:3]
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    norm = math.sqrt(a * a + b * b + c * c + d * d)
    if not norm > 0 or not math.isfinite(norm):
        a, b, c, d, norm = 1.0, 0.0, 0.0, 0.0, 1.0
    a, b, c, d = a / norm, b / norm, c / norm, d / norm
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    if pixdim[0] < 0:
        rotation[:, 2] *= -1
    scales = [value if math.isfinite(value) and value > 0 else 1.0 for value in pixdim[1:4]]
    return np.column_stack([rotation * scales, quaternion[3:6]])


def _directions(form: np.ndarray) -> np.ndarray:
    """Return the columns of a form as unit vectors."""
    axes = form[:, :3]
    units = np.asarray(axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-12))
    return np.where(np.abs(units) < _SMALLEST, 0.0, units)


def _differ(first: np.ndarray, second: np.ndarray, unit_mm: float) -> bool:
    return (
        not np.allclose(_directions(first), _directions(second), rtol=0, atol=_TOLERANCE)
        or not np.allclose(
            np.linalg.norm(first[:, :3], axis=0), np.linalg.norm(second[:, :3], axis=0), rtol=_TOLERANCE, atol=0
        )
        or float(np.linalg.norm(first[:, 3] - second[:, 3])) * unit_mm > _ORIGIN_TOLERANCE_MM
    )


def check_header(path: Path, header: NiftiHeader) -> None:
    """Raise UserError if the header describes no image that can be used."""
    if not 2 <= len(header.shape_xyz) <= 4:
        size = "x".join(map(str, header.shape_xyz))
        raise UserError(
            f"{path}: a {len(header.shape_xyz)}D image of size {size}; images are 2D or 3D. Store one file per channel "
            "(NAME_0000, NAME_0001, ...)."
        )
    check_spacing(path, header.stored_spacing_xyz)
    if header.sform_is_skewed() and header.qform is None:
        raise UserError(f"{path}: direction: the axes of the sform are not perpendicular (not orthonormal). {SKEWED}")
    origin, direction = header.position()
    if not np.isfinite(origin).all() or not np.isfinite(direction).all():
        raise UserError(f"{path}: the origin or direction in the header is not a number. Correct sform and qform.")


def _listed(values: np.ndarray | tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def doubts(header: NiftiHeader) -> list[str]:
    """Return what a user should check in a header whose parts disagree or are missing.

    Args:
        header: the header.
    """
    sform, qform = header.sform, header.qform
    if sform is None and qform is None:
        return ["the header has neither sform nor qform, so left and right are not known. Check the orientation."]
    found = []
    if header.sform_is_skewed():
        found.append(f"direction: the axes of the sform are not perpendicular, so the qform is used. {SKEWED}")
    elif sform is not None:
        axes = min(3, len(header.stored_spacing_xyz))
        lengths = np.linalg.norm(sform[:, :3], axis=0)[:axes]
        if not np.allclose(lengths, header.stored_spacing_xyz[:axes], rtol=_TOLERANCE, atol=0):
            found.append(
                f"spacing: the sform's ({_listed(lengths)}) differs from that of pixdim "
                f"({_listed(header.stored_spacing_xyz)}), which is used, as nnU-Net does. Correct the wrong one."
            )
        if qform is not None and _differ(sform, qform, header.unit_mm):
            found.append(
                "direction: sform and qform place the image differently; the sform is used, as in nibabel. Make both "
                "equal (nibabel: image.set_qform(image.get_sform(), code=1)), or remove the wrong one."
            )
    return found
