"""Rotation, scaling and the crop to the network's patch, resampled once (nnU-Net's spatial transform, without elastic).

TorchIO's RandomAffine resamples labels by nearest neighbour and does not crop; here images are interpolated linearly
with zeros outside, and every label's indicator votes linearly, with -1 outside.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio
from torch import Tensor
from torch.nn import functional
from torchio.transforms.augmentation import RandomTransform

from umamba.patches.resample import resample_patch
from umamba.patches.sampling import OUTSIDE
from umamba.patches.settings import Rotation, Scaling


class RotateScaleCrop(RandomTransform):
    """Rotate, scale and crop `image` and `label` of a subject to the centre patch.

    The subject's `matrix` says how, if it was drawn before (`draw_matrix`), so that no more is read than it needs.

    Args:
        patch_size: (Z, Y, X), the size of the result.
        in_plane: leave the first axis as it is: 2D patches (size 1) and flat 3D patches ("dummy 2D").
        max_degrees: largest angle about each axis.
        rotation: its probability.
        scaling: its probability and factors.
    """

    def __init__(
        self, patch_size: Sequence[int], in_plane: bool, max_degrees: float, rotation: Rotation, scaling: Scaling
    ) -> None:
        super().__init__(copy=False)
        self.patch_size = tuple(patch_size)
        self.axes = 2 if in_plane else 3
        self.max_degrees = max_degrees
        self.rotation = rotation
        self.scaling = scaling

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Return the subject at the size of the patch; without rotation and scaling the centre is cut out."""
        image, label = subject.get_image("image"), subject.get_image("label")
        matrix: Any = subject["matrix"] if "matrix" in subject else self.draw_matrix()
        if matrix is None:
            patches = [crop_centre(each.data, self.patch_size) for each in (image, label)]
        elif label.data.device.type == "cpu":
            made = resample_patch(image.data.numpy(), label.data.numpy(), matrix, self.patch_size)
            patches = [torch.from_numpy(array) for array in made]
        else:
            patches = [
                resample_image_patch(image.data, matrix, self.patch_size),
                vote_label_by_sampling(label.data, matrix, self.patch_size),
            ]
        image.set_data(patches[0])
        label.set_data(patches[1])
        return subject

    def source_size(self, matrix: np.ndarray | None, largest: Sequence[int]) -> tuple[int, ...]:
        """Return the part (Z, Y, X) in the centre of a box of size `largest` that a patch is made of."""
        size = np.array(self.patch_size)
        if matrix is None:
            return self.patch_size
        reach = np.abs(matrix) @ (size[-self.axes :] - 1)  # between the outermost places that are sampled
        size[-self.axes :] = np.ceil(reach) + 3  # and the corners of their cells
        size += (np.array(largest) - size) % 2  # the centre stays where it is
        return tuple(np.minimum(size, largest).tolist())

    def draw_matrix(self) -> np.ndarray | None:
        """Return the (n, n) matrix that takes an offset from the patch centre to one in the source; None: identity."""
        rotate, scale = (torch.rand(2) < torch.tensor([self.rotation.p, self.scaling.p])).tolist()
        if not rotate and not scale:
            return None
        matrix = np.eye(self.axes)
        if rotate:
            angles = [
                np.deg2rad(self.sample_uniform(-self.max_degrees, self.max_degrees))
                for _ in range(3 if self.axes == 3 else 1)
            ]
            matrix = rotation_matrix(angles)
        return matrix * self.sample_uniform(*self.scaling.factor) if scale else matrix


def rotation_matrix(angles: Sequence[float]) -> np.ndarray:
    """Return the rotation by one angle (2, 2), or by three about the axes in turn (3, 3); radians."""
    if len(angles) == 1:
        cosine, sine = np.cos(angles[0]), np.sin(angles[0])
        return np.array([[cosine, -sine], [sine, cosine]])
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        about = np.eye(3)
        about[first, first] = about[second, second] = np.cos(angle)
        about[first, second], about[second, first] = -np.sin(angle), np.sin(angle)
        matrix = about @ matrix
    return matrix


def crop_centre(tensor_CZYX: Tensor, size: Sequence[int]) -> Tensor:
    """Return a view of the centre (C, *size)."""
    for axis, length in enumerate(size, start=1):
        tensor_CZYX = tensor_CZYX.narrow(axis, (tensor_CZYX.shape[axis] - length) // 2, length)
    return tensor_CZYX


def resample_image_patch(image_CZYX: Tensor, matrix: np.ndarray, size: Sequence[int]) -> Tensor:
    """Interpolate linearly at `matrix` times the offsets from the centre of a patch of `size`; zero outside.

    A (2, 2) matrix acts on the last two axes; the first is cropped.
    """
    if len(matrix) == 2:
        image_CZYX = crop_centre(image_CZYX, (size[0], *image_CZYX.shape[2:]))
    grid = sampling_grid(image_CZYX, matrix, size)
    return sample_linearly(image_CZYX, grid).reshape(len(image_CZYX), *size)


def sampling_grid(tensor_CZYX: Tensor, matrix: np.ndarray, size: Sequence[int]) -> Tensor:
    """Return the places in a tensor where a patch of `size` is sampled, as grid_sample takes them."""
    source, target = tensor_CZYX.shape[-len(matrix) :], size[-len(matrix) :]
    # grid_sample counts from -1 to 1 over the whole extent, and its axes run the other way round.
    relative = matrix * np.asarray(target)[None] / np.asarray(source)[:, None]
    theta = torch.zeros(1, len(matrix), len(matrix) + 1)
    theta[0, :, :-1] = torch.from_numpy(relative[::-1, ::-1].copy())
    return functional.affine_grid(theta.to(tensor_CZYX.device), [1, 1, *target], align_corners=False)


def sample_linearly(tensor_CZYX: Tensor, grid: Tensor) -> Tensor:
    """Return the linear interpolation at the places of a grid over the last axes, zero outside."""
    stacked = tensor_CZYX.reshape(1, -1, *tensor_CZYX.shape[-grid.shape[-1] :])
    return functional.grid_sample(stacked, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def vote_label_by_sampling(label_CZYX: Tensor, matrix: np.ndarray, size: Sequence[int]) -> Tensor:
    """Return the label as `resample_patch` does, but for ties, on any device: one label after the other is weighed."""
    if len(matrix) == 2:
        label_CZYX = crop_centre(label_CZYX, (size[0], *label_CZYX.shape[2:]))
    grid = sampling_grid(label_CZYX, matrix, size)
    result = label_CZYX.new_full((len(label_CZYX), *size), OUTSIDE)
    best = torch.zeros(result.shape, device=result.device)
    outside = torch.ones_like(best)  # the weights of a place sum to one: what no label has belongs to the outside
    for value in label_CZYX[label_CZYX != OUTSIDE].unique():
        votes = sample_linearly((label_CZYX == value).float(), grid).reshape(result.shape)
        result = torch.where(votes > best, value, result)
        best, outside = torch.maximum(best, votes), outside - votes
    return result.masked_fill(outside > best, OUTSIDE)


class MirrorPatch(tio.RandomFlip):
    """TorchIO's RandomFlip, mirrored where the tensors lie."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Mirror image and label along the drawn axes."""
        drawn = self.get_params(self.flip_probability)
        axes = [axis + 1 for axis in range(3) if drawn[axis] and axis in self.axes]
        if axes:
            for name in ("image", "label"):
                image = subject.get_image(name)
                image.set_data(image.data.flip(axes))
        return subject
