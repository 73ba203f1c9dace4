"""TorchIO's own transforms in the chain of a patch (`augmentation.extra`), and the voxels around a patch they need.

A transform gets the patch as TorchIO reads an image from a file: axes (C, X, Y, Z), the plan's spacing in mm. Degrees
and millimetres therefore mean what TorchIO documents, and a 2D patch is a 2D image. A transform that moves voxels gets
a larger region, from which the patch is cut afterwards; so no voxel of the patch comes from beyond the region.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchio as tio
from torch import Tensor

from umamba.io import UserError
from umamba.patches.patch import AnySubject
from umamba.patches.spatial import IMAGES, crop_centre
from umamba.preprocessing.case import OUTSIDE
from umamba.settings.augmentation import ExtraTransform

if TYPE_CHECKING:
    from umamba.settings import AugmentationSettings

# What TorchIO raises for arguments or patches that a transform cannot use.
_REFUSALS = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AssertionError, OSError)
_ROUND = 1e-6  # relative excess of a computed border that is rounding


@dataclass(frozen=True)
class Surroundings:
    """The voxels (Z, Y, X) at each side that extra transforms need.

    Attributes:
        before: around the region that rotation and scaling sample.
        after: around the patch.
    """

    before: tuple[int, ...] = (0, 0, 0)
    after: tuple[int, ...] = (0, 0, 0)


class ApplyTorchIO(tio.Transform):
    """Apply one transform of TorchIO to `image` and `label` (C, Z, Y, X) of a subject.

    Args:
        extra: name and arguments of the transform.
        spacing: mm for each axis of the patch: (Z, Y, X), or (Y, X) for 2D patches.

    Raises:
        UserError: TorchIO refuses an argument.
    """

    def __init__(self, extra: ExtraTransform, spacing: Sequence[float]) -> None:
        super().__init__(copy=False)
        self.key = f"augmentation.extra: {extra.name}"
        self.transform = _made(extra.name, extra.arguments, self.key)
        self.moves = isinstance(self.transform, tio.SpatialTransform | tio.RandomAnisotropy)
        self.planar = len(spacing) == 2
        whole = [1.0] * self.planar + [float(edge) for edge in spacing]
        self.affine = np.diag([*reversed(whole), 1.0])
        if self.planar:
            _stay_in_slice(self.transform)

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Return the subject with the transformed image, and the transformed label if voxels move.

        A patch with a constant channel stays as it is if TorchIO cannot apply the transform to it.

        Raises:
            UserError: TorchIO cannot apply the transform to this patch.
        """
        image, label = (subject.get_image(name) for name in IMAGES)
        _check_swap(self, image.spatial_shape)
        shown = label.data if self.moves else label.data.clamp(min=0)  # masks by label do not contain label -1
        given = tio.Subject(
            image=tio.ScalarImage(tensor=_swapped(image.data), affine=self.affine),
            label=tio.LabelMap(tensor=_swapped(shown), affine=self.affine),
        )
        try:
            with kept_device_generators():
                made = self.transform(given)
        except _REFUSALS as error:
            if any(channel.min() == channel.max() for channel in image.data):
                return subject  # nothing to transform: a normalisation, for example, cannot divide by a deviation of 0
            raise UserError(
                f"{self.key}: TorchIO cannot apply it to a patch of {' x '.join(map(str, image.spatial_shape))} voxels"
                f"{_place(subject)} ({_first_line(error)}). Change its arguments, or take it out of augmentation.extra."
            ) from error
        for name, before in ((IMAGES[0], image), (IMAGES[1], label))[: 2 if self.moves else 1]:
            after = _swapped(made.get_image(name).data)
            if after.shape != before.data.shape:
                raise UserError(f"{self.key}: it changes the size of the patch. Take it out of augmentation.extra.")
            if not before.data.is_floating_point():
                after = after.round()
            before.set_data(after.to(before.data.dtype).contiguous())
        return subject

    def border(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return how many voxels (Z, Y, X) beyond a region the transform may sample at each side.

        Args:
            size: of the region, (Z, Y, X), voxels.
        """
        spacing = np.diag(self.affine)[:3]
        voxels = reach(self.transform, np.array(size[::-1]), spacing, self.planar)[::-1]
        if self.planar:
            voxels[0] = 0
        return tuple(math.ceil(edge - _ROUND * max(1.0, edge)) for edge in voxels)


class CropPatch(tio.SpatialTransform):
    """Cut the central patch out of `image` and `label` of a subject.

    Args:
        patch_size: (Z, Y, X), voxels.
    """

    def __init__(self, patch_size: Sequence[int]) -> None:
        super().__init__(copy=False)
        self.patch_size = tuple(patch_size)

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Crop image and label."""
        for name in IMAGES:
            image = subject.get_image(name)
            image.set_data(crop_centre(image.data, self.patch_size).contiguous())
        return subject


def extra_transforms(augmentation: "AugmentationSettings", place: str, spacing: Sequence[float]) -> list[ApplyTorchIO]:
    """Return the extra transforms of a place in their order.

    Args:
        augmentation: `extra` is read.
        place: before or after the other kinds.
        spacing: mm for each axis of the patch, 2 or 3.

    Raises:
        UserError: TorchIO refuses an argument, or the transform would move a 2D image without its label.
    """
    if len(spacing) == 2 and any(extra.name == "RandomMotion" for extra in augmentation.extra):
        raise UserError(
            "augmentation.extra: RandomMotion: TorchIO mixes positions along the first axis of a patch, which 2D "
            "patches do not have; it would move the image and not its label. Take it out of augmentation.extra."
        )
    return [ApplyTorchIO(extra, spacing) for extra in augmentation.extra if extra.place == place]


def check_arguments(augmentation: "AugmentationSettings") -> None:
    """Make each extra transform once, so that TorchIO checks the values of its arguments.

    Args:
        augmentation: `extra` is read.

    Raises:
        UserError: TorchIO refuses an argument.
    """
    for place in ("before", "after"):
        extra_transforms(augmentation, place, (1.0, 1.0, 1.0))


def check_on_patch(augmentation: "AugmentationSettings", patch_size: Sequence[int], spacing: Sequence[float]) -> None:
    """Apply each extra transform to a patch of noise, so that one that does not fit the patch is refused in time.

    Args:
        augmentation: `extra` is read; every transform is applied whatever its probability.
        patch_size: the network's patch, 2 or 3 axes, voxels.
        spacing: mm for each axis of the patch.

    Raises:
        UserError: TorchIO cannot apply a transform to such a patch.
    """
    size = (1,) * (3 - len(patch_size)) + tuple(patch_size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for place in ("before", "after"):
            for step in extra_transforms(augmentation, place, spacing):
                step.border(size)
                step.transform.probability = 1
                image, label = torch.randn(1, *size), torch.zeros(1, *size, dtype=torch.int16)
                label[..., : size[-1] // 2] = 1
                step(tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label)))


def _check_swap(step: ApplyTorchIO, size: Sequence[int]) -> None:
    """Refuse swapped boxes that fill the patch, for which TorchIO searches another place for ever."""
    if isinstance(step.transform, tio.RandomSwap):
        box = np.broadcast_to(step.transform.patch_size, 3)[::-1]
        if np.all(np.array(size) - box < 2):
            raise UserError(
                f"{step.key}: patch_size={box[::-1].tolist()} fills the network's patch of "
                f"{' x '.join(map(str, size))} voxels. Give smaller boxes."
            )


def reach(transform: tio.Transform, size_XYZ: np.ndarray, spacing_XYZ: np.ndarray, planar: bool) -> np.ndarray:
    """Return how far beyond a region a transform may sample at each side, voxels (X, Y, Z).

    Args:
        transform: any transform of TorchIO.
        size_XYZ: the region, voxels.
        spacing_XYZ: mm.
        planar: a 2D image, which TorchIO turns about the Z axis only.
    """
    none = np.zeros(3)
    if isinstance(transform, tio.RandomAffine | tio.Affine):
        return _affine_reach(transform, size_XYZ, spacing_XYZ, planar)
    if isinstance(transform, tio.RandomElasticDeformation):
        # A B-spline is a weighted mean of its control points, none of which moves further than this.
        return np.array(transform.max_displacement, dtype=float) / spacing_XYZ
    if isinstance(transform, tio.RandomAffineElasticDeformation):
        elastic = np.ceil(reach(transform.random_elastic, size_XYZ, spacing_XYZ, planar))
        return elastic + reach(transform.random_affine, size_XYZ + 2 * elastic, spacing_XYZ, planar)
    if isinstance(transform, tio.RandomAnisotropy):
        axes = [axis for axis in transform.axes if not (planar and axis == 2)]
        none[axes] = max(transform.downsampling_range)  # the last of the coarse samples may lie so far inside
    return none


def _affine_reach(transform: Any, size_XYZ: np.ndarray, spacing_XYZ: np.ndarray, planar: bool) -> np.ndarray:
    """Return the reach of a rotation, scaling and translation, from the largest value of each entry of the matrix."""
    degrees, translation = (
        np.abs(np.array(values, dtype=float).reshape(3, -1)).max(1)
        for values in (transform.degrees, transform.translation)
    )
    scales = np.array(transform.scales, dtype=float).reshape(3, -1).min(1)
    if getattr(transform, "isotropic", False):
        scales[:] = scales[0]
    if planar:
        degrees[:2], scales[2] = 0, 1
    if scales.min() <= 0:
        raise UserError("augmentation.extra: scales: must be above 0 for a patch.")
    half = (size_XYZ - 1) / 2 * spacing_XYZ
    sines = np.where(degrees < 90, np.sin(np.deg2rad(np.minimum(degrees, 90))), 1.0)
    bound = np.eye(3)
    for axis, sine in enumerate(sines):
        one, other = (index for index in range(3) if index != axis)
        about = np.eye(3)
        about[one, other] = about[other, one] = sine
        bound = bound @ about
    scaled = half / scales + translation / np.minimum(scales, 1)
    radius = np.linalg.norm(scaled[:2] if planar else scaled)
    turned = np.minimum(bound @ scaled, np.where(sines.any(), radius, np.inf))
    return np.maximum(turned - half, 0) / spacing_XYZ


@contextmanager
def kept_device_generators() -> Iterator[None]:
    """Keep the generators of GPUs as they are: TorchIO's noise calls `torch.manual_seed`, which seeds them, too.

    The generator of the CPU is not kept, because transforms draw from it (see `seed_torch`).
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def _made(name: str, arguments: Mapping[str, Any], key: str) -> tio.Transform:
    """Make a transform from plain values."""
    given = {argument: _tuples(value) for argument, value in arguments.items()}
    if name in ("RandomAffine", "Affine"):
        given["default_pad_label"] = OUTSIDE
    try:
        return getattr(tio, name)(**given, copy=False)  # type: ignore[no-any-return]
    except _REFUSALS as error:
        raise UserError(f"{key}: TorchIO refuses its arguments ({_first_line(error)}). Change them.") from error


def _stay_in_slice(transform: tio.Transform) -> None:
    """Do not move a 2D image along the Z axis: TorchIO neither turns nor scales it there, but moves it out."""
    transform = getattr(transform, "random_affine", transform)
    if isinstance(transform, tio.RandomAffine):
        transform.translation = (*transform.translation[:4], 0.0, 0.0)
    elif isinstance(transform, tio.Affine):
        transform.translation = (*transform.translation[:2], 0.0)


def _tuples(value: Any) -> Any:
    """Return a plain value with tuples for lists, because TorchIO's checks expect tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def _swapped(tensor: Tensor) -> Tensor:
    """Return a view with the spatial axes in reverse order: (C, Z, Y, X) and (C, X, Y, Z) become each other."""
    return tensor.permute(0, 3, 2, 1)


def _place(subject: AnySubject) -> str:
    return f" of case {subject['case_id']}" if "case_id" in subject else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
