"""The chain of transforms that augments a patch, in nnU-Net's order, and the size of the region that it needs."""

from collections.abc import Sequence

import numpy as np
import torchio as tio

from umamba.labels import LabelSet
from umamba.patches.convolution import ConvolveRandomly
from umamba.patches.cutmix import PasteBox
from umamba.patches.extra import CropPatch, Surroundings, extra_transforms
from umamba.patches.intensity import (
    AddNoise,
    ApplyGamma,
    BlurChannels,
    ClearOutside,
    LowerResolution,
    ScaleBrightness,
    ScaleContrast,
)
from umamba.patches.previous_stage import AddPreviousStage
from umamba.patches.sampling import as_3d
from umamba.patches.spatial import MirrorPatch, RotateScaleCrop, rotation_matrix
from umamba.settings import AugmentationSettings

FLAT = 3  # 3D patches whose largest edge is more than this many times the first are rotated in-plane only
ELONGATED = 1.5  # 2D patches whose edges have a larger ratio than this are rotated by small angles only
MIN_SCALE = 0.85  # nnU-Net enlarges the region by 1 / 0.85, although it scales down to 0.7


def is_flat(patch_size: Sequence[int]) -> bool:
    """Return whether a 3D patch is rotated and scaled slice by slice (nnU-Net's "dummy 2D" augmentation).

    Args:
        patch_size: 2 or 3 axes, voxels.
    """
    return len(patch_size) == 3 and max(patch_size) / patch_size[0] > FLAT


def moves_in_plane(patch_size: Sequence[int]) -> bool:
    """Return whether only the last two axes are rotated and scaled: 2D patches and flat 3D patches."""
    return len(patch_size) == 2 or is_flat(patch_size)


def max_degrees(augmentation: AugmentationSettings, patch_size: Sequence[int]) -> float:
    """Return the largest rotation angle in degrees.

    Args:
        augmentation: holds one angle for each kind of patch.
        patch_size: 2 or 3 axes, voxels.
    """
    rotation = augmentation.rotation
    if is_flat(patch_size):
        return rotation.degrees_in_plane
    if len(patch_size) == 3:
        return rotation.degrees_3d
    elongated = max(patch_size) / min(patch_size) > ELONGATED
    return rotation.degrees_elongated if elongated else rotation.degrees_in_plane


def read_size(augmentation: AugmentationSettings, patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return the size (Z, Y, X) of the region that is read for a patch, as nnU-Net computes it.

    Rotate the patch's corner by the largest angle (at most 90 degrees) about each axis in turn, take the largest extent
    along each axis, divide it by 0.85 and truncate. Without rotation and scaling the region is the patch.

    Args:
        augmentation: decides the largest angle.
        patch_size: the network's patch, 2 or 3 axes, voxels.

    >>> read_size(AugmentationSettings(), (128, 128, 128))
    (205, 205, 205)
    >>> read_size(AugmentationSettings(), (512, 512))
    (1, 602, 602)
    """
    return _sampled_size(augmentation, patch_size, as_3d(patch_size))


def _sampled_size(
    augmentation: AugmentationSettings, patch_size: Sequence[int], whole: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the size of the region for a patch whose size with its surroundings is `whole` (Z, Y, X)."""
    if not augmentation.rotation.p and not augmentation.scaling.p:
        return whole
    angle = np.deg2rad(min(90.0, max_degrees(augmentation, patch_size)))
    in_plane = moves_in_plane(patch_size)
    corner = np.asarray(whole[-2:] if in_plane else whole, dtype=float)
    extent = corner
    if in_plane:
        extent = np.maximum(extent, np.abs(corner @ rotation_matrix([angle])))
    else:
        # The rotation about the middle axis has the opposite sign (right-handed axes), which decides which edge grows.
        for angles in ([angle, 0.0, 0.0], [0.0, -angle, 0.0], [0.0, 0.0, angle]):
            extent = np.maximum(extent, np.abs(corner @ rotation_matrix(angles)))
    enlarged = tuple(int(edge) for edge in extent / MIN_SCALE)
    return (whole[0], *enlarged) if in_plane else enlarged


def surroundings(
    augmentation: AugmentationSettings, patch_size: Sequence[int], spacing: Sequence[float]
) -> Surroundings:
    """Return the voxels that the extra transforms need around what they are applied to.

    Args:
        augmentation: kinds, probabilities and ranges.
        patch_size: the network's patch, 2 or 3 axes, voxels.
        spacing: mm for each axis of the patch.

    Raises:
        UserError: TorchIO refuses an argument of an extra transform.
    """
    patch = as_3d(patch_size)
    after = before = (0, 0, 0)
    for step in reversed(extra_transforms(augmentation, "after", spacing)):
        after = _sum(after, step.border(_enlarged(patch, after)))
    region = _sampled_size(augmentation, patch_size, _enlarged(patch, after))
    for step in reversed(extra_transforms(augmentation, "before", spacing)):
        before = _sum(before, step.border(_enlarged(region, before)))
    return Surroundings(before, after)


def read_margin(
    augmentation: AugmentationSettings, patch_size: Sequence[int], spacing: Sequence[float]
) -> tuple[int, ...]:
    """Return the voxels (Z, Y, X) that are read at each side beyond `read_size`; 0 without extra transforms.

    Args:
        augmentation: kinds, probabilities and ranges.
        patch_size: the network's patch, 2 or 3 axes, voxels.
        spacing: mm for each axis of the patch.

    Raises:
        UserError: TorchIO refuses an argument of an extra transform.
    """
    if not augmentation.extra:
        return (0, 0, 0)
    around, drawn = surroundings(augmentation, patch_size, spacing), read_size(augmentation, patch_size)
    region = _sampled_size(augmentation, patch_size, _enlarged(as_3d(patch_size), around.after))
    grown = [-((size - larger) // 2) for size, larger in zip(drawn, region, strict=True)]  # rounded up
    return _sum(grown, around.before)


def _sum(one: Sequence[int], other: Sequence[int]) -> tuple[int, int, int]:
    first, second, third = (a + b for a, b in zip(one, other, strict=True))
    return first, second, third


def _enlarged(size: Sequence[int], around: Sequence[int]) -> tuple[int, int, int]:
    """Return a size with a border at each side."""
    return _sum(size, _sum(around, around))


def training_transforms(
    augmentation: AugmentationSettings,
    patch_size: Sequence[int],
    use_mask_for_norm: Sequence[bool],
    spacing: Sequence[float] | None = None,
    cascade: LabelSet | None = None,
) -> tio.Compose:
    """Return the chain of transforms for training patches; kinds with probability 0 are left out.

    Args:
        augmentation: kinds, probabilities and ranges.
        patch_size: the network's patch, 2 or 3 axes, voxels.
        use_mask_for_norm: for each channel, whether it was normalised inside the nonzero mask only; such channels are
            set to zero outside the mask.
        spacing: mm for each axis of the patch, which extra transforms need; None: 1 mm.
        cascade: the labels of the previous stage, which are the second channel of the label map; None: no cascade.

    Raises:
        UserError: mirroring is asked for along an axis that the patch does not have, or TorchIO refuses an argument of
            an extra transform.
    """
    kinds = augmentation
    in_plane = moves_in_plane(patch_size)
    spacing = (1.0,) * len(patch_size) if spacing is None else spacing
    around, patch = surroundings(kinds, patch_size, spacing), as_3d(patch_size)
    sampled = _enlarged(patch, around.after)
    chain: list[tio.Transform] = [*extra_transforms(kinds, "before", spacing)]
    if kinds.rotation.p or kinds.scaling.p:
        largest = max_degrees(kinds, patch_size)
        chain.append(RotateScaleCrop(sampled, in_plane, largest, kinds.rotation, kinds.scaling, around.before))
    elif any(around.before):
        chain.append(CropPatch(sampled))
    if kinds.cutmix.p:
        chain.append(PasteBox(kinds.cutmix, sampled))
    if kinds.convolution.p:
        chain.append(ConvolveRandomly(kinds.convolution, in_plane))
    if kinds.noise.p:
        chain.append(AddNoise(kinds.noise))
    if kinds.blur.p:
        chain.append(BlurChannels(kinds.blur))
    if kinds.brightness.p:
        chain.append(ScaleBrightness(kinds.brightness))
    if kinds.contrast.p:
        chain.append(ScaleContrast(kinds.contrast))
    if kinds.low_resolution.p:
        chain.append(LowerResolution(kinds.low_resolution, in_plane))
    if kinds.gamma_negated.p:
        chain.append(ApplyGamma(kinds.gamma_negated, negated=True))
    if kinds.gamma.p:
        chain.append(ApplyGamma(kinds.gamma, negated=False))
    if kinds.mirror.p:
        added_axes = 3 - len(patch_size)
        axes = [axis + added_axes for axis in kinds.mirrored_axes(len(patch_size))]
        chain.append(MirrorPatch(axes, kinds.mirror.p))
    chain += extra_transforms(kinds, "after", spacing)
    if any(around.after):
        chain.append(CropPatch(patch))
    chain.append(ClearOutside([channel for channel, masked in enumerate(use_mask_for_norm) if masked]))
    if cascade is not None:
        chain.append(AddPreviousStage(cascade, kinds.previous_stage))
    return tio.Compose(chain, copy=False)


def validation_transforms(cascade: LabelSet | None = None) -> tio.Compose:
    """Return the chain for validation patches: label -1 becomes background, and nothing is augmented.

    Args:
        cascade: the labels of the previous stage; None: no cascade.
    """
    added = [] if cascade is None else [AddPreviousStage(cascade)]
    return tio.Compose([ClearOutside(()), *added], copy=False)
