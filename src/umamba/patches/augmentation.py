"""The chain of TorchIO transforms that a patch goes through, in nnU-Net's order, and the size it is read with."""

from collections.abc import Sequence

import numpy as np
import torchio as tio

from umamba.patches.intensity import (
    AddNoise,
    ApplyGamma,
    BlurChannels,
    ClearOutside,
    LowerResolution,
    ScaleBrightness,
    ScaleContrast,
)
from umamba.patches.settings import Augmentation
from umamba.patches.spatial import MirrorPatch, RotateScaleCrop, rotation_matrix

FLAT = 3  # 3D patches whose largest edge is more than this many times the first are rotated in-plane only
ELONGATED = 1.5  # 2D patches with a larger ratio of their edges are rotated by small angles only
READ_MARGIN = 0.85  # the box that is read is larger by one over this


def is_flat(patch_size: Sequence[int]) -> bool:
    """Return whether a 3D patch is treated slice by slice in space (nnU-Net's "dummy 2D")."""
    return len(patch_size) == 3 and max(patch_size) / patch_size[0] > FLAT


def max_degrees(augmentation: Augmentation, patch_size: Sequence[int]) -> float:
    """Return the largest angle of rotation for a patch with 2 or 3 axes."""
    rotation = augmentation.rotation
    if is_flat(patch_size):
        return rotation.degrees_in_plane
    if len(patch_size) == 3:
        return rotation.degrees_3d
    elongated = max(patch_size) / min(patch_size) > ELONGATED
    return rotation.degrees_elongated if elongated else rotation.degrees_in_plane


def read_size(augmentation: Augmentation, patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return the size (Z, Y, X) of the box that is read for a patch with 2 or 3 axes.

    Per axis the largest extent of the patch's corner when it is rotated by the largest angle (at most 90 degrees) about
    each axis in turn, divided by 0.85 and truncated. The patch itself if nothing rotates or scales.
    """
    whole = (1,) * (3 - len(patch_size)) + tuple(patch_size)
    if not augmentation.rotation.p and not augmentation.scaling.p:
        return whole
    angle = np.deg2rad(min(90.0, max_degrees(augmentation, patch_size)))
    in_plane = len(patch_size) == 2 or is_flat(patch_size)
    moving = np.asarray(whole[-2:] if in_plane else whole, dtype=float)
    extent = moving
    if in_plane:
        extent = np.maximum(extent, np.abs(moving @ rotation_matrix([angle])))
    else:
        # The rotation about the middle axis turns the other way (right-handed axes), which decides which edge grows.
        for angles in ([angle, 0.0, 0.0], [0.0, -angle, 0.0], [0.0, 0.0, angle]):
            extent = np.maximum(extent, np.abs(moving @ rotation_matrix(angles)))
    enlarged = tuple(int(edge) for edge in extent / READ_MARGIN)
    return (whole[0], *enlarged) if in_plane else enlarged


def training_transforms(
    augmentation: Augmentation, patch_size: Sequence[int], masked_channels: tuple[int, ...]
) -> tio.Compose:
    """Return the chain for training patches; kinds with probability 0 are left out.

    Args:
        augmentation: kinds, probabilities, ranges.
        patch_size: the network's patch, 2 or 3 axes.
        masked_channels: channels with masked normalisation, zeroed where the label is -1.
    """
    a = augmentation
    whole = (1,) * (3 - len(patch_size)) + tuple(patch_size)
    in_plane = len(patch_size) == 2 or is_flat(patch_size)
    chain: list[tio.Transform] = []
    if a.rotation.p or a.scaling.p:
        chain.append(RotateScaleCrop(whole, in_plane, max_degrees(a, patch_size), a.rotation, a.scaling))
    if a.noise.p:
        chain.append(AddNoise(a.noise))
    if a.blur.p:
        chain.append(BlurChannels(a.blur))
    if a.brightness.p:
        chain.append(ScaleBrightness(a.brightness))
    if a.contrast.p:
        chain.append(ScaleContrast(a.contrast))
    if a.low_resolution.p:
        chain.append(LowerResolution(a.low_resolution, in_plane))
    if a.gamma_negated.p:
        chain.append(ApplyGamma(a.gamma_negated, negated=True))
    if a.gamma.p:
        chain.append(ApplyGamma(a.gamma, negated=False))
    if a.mirror.p:
        axes = range(len(patch_size)) if a.mirror.axes is None else a.mirror.axes
        shifted = tuple(axis + 3 - len(patch_size) for axis in axes)
        chain.append(MirrorPatch(axes=shifted, flip_probability=a.mirror.p, copy=False))
    chain.append(ClearOutside(masked_channels))
    return tio.Compose(chain, copy=False)


def validation_transforms() -> tio.Compose:
    """Return the chain for validation patches: -1 becomes background."""
    return tio.Compose([ClearOutside(())], copy=False)
