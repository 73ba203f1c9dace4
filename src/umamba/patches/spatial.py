"""Spatial transforms: rotation, scaling and crop in one resampling step, and mirroring.

They follow nnU-Net's spatial transform without its elastic deformation. TorchIO's RandomAffine is not used because it
resamples labels by nearest neighbour and does not crop. Here images are interpolated linearly with zeros outside. For
labels, each label's indicator is interpolated linearly, the largest value wins, and the outside has the label -1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio
from torch import Tensor
from torch.nn import functional

from umamba.patches.patch import AnySubject
from umamba.patches.seeding import draw_uniform
from umamba.patches.warp import resample_patch
from umamba.preprocessing.case import OUTSIDE
from umamba.settings.augmentation import Rotation, Scaling

IMAGES = ("image", "label")  # names of a subject's images


class RotateScaleCrop(tio.SpatialTransform):
    """Rotate and scale `image` and `label` of a subject, and crop them to the patch.

    Draw the rotation first (`draw_matrix`), read only the region it needs (`source_size`), and pass the drawn matrix as
    the subject's `matrix`. A subject without `matrix` has its rotation drawn here.

    Args:
        patch_size: (Z, Y, X), size of the result, voxels.
        in_plane: rotate and scale only the last two axes: 2D patches (size 1) and flat 3D patches ("dummy 2D").
        max_degrees: largest angle about each axis, degrees.
        rotation: probability of a rotation.
        scaling: probability and range of the zoom.
        around: voxels (Z, Y, X) at each side that transforms before this one need around the sampled region.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        in_plane: bool,
        max_degrees: float,
        rotation: Rotation,
        scaling: Scaling,
        around: Sequence[int] = (0, 0, 0),
    ) -> None:
        super().__init__(copy=False)
        self.patch_size = tuple(patch_size)
        self.axes = 2 if in_plane else 3
        self.max_degrees = max_degrees
        self.rotation = rotation
        self.scaling = scaling
        self.around = np.array(around)

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Return the subject at the size of the patch; without rotation and scaling it is cropped to the centre."""
        image, label = (subject.get_image(name) for name in IMAGES)
        matrix: Any = subject["matrix"] if "matrix" in subject else self.draw_matrix()
        if matrix is None:
            patches = [crop_centre(each.data, self.patch_size) for each in (image, label)]
        elif label.data.device.type == "cpu":
            resampled = resample_patch(image.data.numpy(), label.data.numpy(), matrix, self.patch_size)
            patches = [torch.from_numpy(array) for array in resampled]
        else:
            patches = [
                resample_image_patch(image.data, matrix, self.patch_size),
                vote_label_by_sampling(label.data, matrix, self.patch_size),
            ]
        image.set_data(patches[0])
        label.set_data(patches[1])
        return subject

    def source_size(self, matrix: np.ndarray | None, largest: Sequence[int]) -> tuple[int, ...]:
        """Return the size (Z, Y, X) of the central region that a patch with this matrix is sampled from.

        Args:
            matrix: what `draw_matrix` returned.
            largest: size (Z, Y, X) of the region that any matrix may need; the result is not larger.
        """
        size = np.array(self.patch_size)
        if matrix is None:
            return tuple((size + 2 * self.around).tolist())
        reach = np.abs(matrix) @ (size[-self.axes :] - 1)  # distance between the outermost sampled points
        size[-self.axes :] = np.ceil(reach) + 3  # room for the cells that these points fall into
        size += 2 * self.around
        size += (np.array(largest) - size) % 2  # the same parity, so that the centre does not move
        return tuple(np.minimum(size, largest).tolist())

    def draw_matrix(self) -> np.ndarray | None:
        """Draw the matrix (n, n) that maps an offset from the patch centre to an offset in the source.

        Returns:
            n = 3, or 2 for patches that move in-plane; None: neither rotation nor scaling was drawn.
        """
        rotate, scale = (torch.rand(2) < torch.tensor([self.rotation.p, self.scaling.p])).tolist()
        if not rotate and not scale:
            return None
        matrix = np.eye(self.axes)
        if rotate:
            count = 3 if self.axes == 3 else 1
            angles = [np.deg2rad(draw_uniform(-self.max_degrees, self.max_degrees)) for _ in range(count)]
            matrix = rotation_matrix(angles)
        return matrix * draw_uniform(*self.scaling.factor) if scale else matrix


def rotation_matrix(angles: Sequence[float]) -> np.ndarray:
    """Return the matrix of a rotation by one angle (2, 2), or by three angles about the axes in turn (3, 3).

    Args:
        angles: one or three angles, radians.

    >>> rotation_matrix([np.pi / 2]).round().astype(int).tolist()
    [[0, -1], [1, 0]]
    """
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
    """Return a view (C, *size) of the central region.

    Args:
        tensor_CZYX: at least as large as the region.
        size: (Z, Y, X), voxels.
    """
    for axis, length in enumerate(size, start=1):
        tensor_CZYX = tensor_CZYX.narrow(axis, (tensor_CZYX.shape[axis] - length) // 2, length)
    return tensor_CZYX


def resample_image_patch(image_CZYX: Tensor, matrix: np.ndarray, size: Sequence[int]) -> Tensor:
    """Interpolate a patch (C, *size) linearly on any device, zero outside the image.

    Args:
        image_CZYX: float32 source.
        matrix: maps offsets from the patch centre to offsets from the source centre; (3, 3), or (2, 2) for the last two
            axes, while the first is cropped.
        size: (Z, Y, X) of the patch, voxels.
    """
    if len(matrix) == 2:
        image_CZYX = crop_centre(image_CZYX, (size[0], *image_CZYX.shape[2:]))
    grid = sampling_grid(image_CZYX, matrix, size)
    return sample_linearly(image_CZYX, grid).reshape(len(image_CZYX), *size)


def sampling_grid(tensor_CZYX: Tensor, matrix: np.ndarray, size: Sequence[int]) -> Tensor:
    """Return the points at which a patch of `size` samples a tensor, in the coordinates of `grid_sample`."""
    source, target = tensor_CZYX.shape[-len(matrix) :], size[-len(matrix) :]
    # grid_sample's coordinates run from -1 to 1 over the whole extent, and its axes are in reverse order.
    relative = matrix * np.asarray(target)[None] / np.asarray(source)[:, None]
    theta = torch.zeros(1, len(matrix), len(matrix) + 1)
    theta[0, :, :-1] = torch.from_numpy(relative[::-1, ::-1].copy())
    return functional.affine_grid(theta.to(tensor_CZYX.device), [1, 1, *target], align_corners=False)


def sample_linearly(tensor_CZYX: Tensor, grid: Tensor) -> Tensor:
    """Return the linear interpolation at the points of a grid over the last axes, zero outside."""
    stacked = tensor_CZYX.reshape(1, -1, *tensor_CZYX.shape[-grid.shape[-1] :])
    return functional.grid_sample(stacked, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def vote_label_by_sampling(label_CZYX: Tensor, matrix: np.ndarray, size: Sequence[int]) -> Tensor:
    """Return the label patch (C, *size) on any device: at each voxel the label with the largest interpolated weight.

    The result equals that of `resample_patch` except where two labels have nearly the same weight. Labels are sampled
    one after the other.

    Args:
        label_CZYX: integers; -1 outside.
        matrix: see `resample_image_patch`.
        size: (Z, Y, X) of the patch, voxels.
    """
    if len(matrix) == 2:
        label_CZYX = crop_centre(label_CZYX, (size[0], *label_CZYX.shape[2:]))
    grid = sampling_grid(label_CZYX, matrix, size)
    result = label_CZYX.new_full((len(label_CZYX), *size), OUTSIDE)
    best = torch.zeros(result.shape, device=result.device)
    outside = torch.ones_like(best)  # the weights at a point sum to one, so the outside has what the labels leave
    for value in label_CZYX[label_CZYX != OUTSIDE].unique():
        votes = sample_linearly((label_CZYX == value).float(), grid).reshape(result.shape)
        result = torch.where(votes > best, value, result)
        best, outside = torch.maximum(best, votes), outside - votes
    return result.masked_fill(outside > best, OUTSIDE)


class MirrorPatch(tio.SpatialTransform):
    """Mirror `image` and `label` of a subject along randomly drawn axes, on whichever device they are.

    Args:
        axes: spatial axes (0 is Z) that may be mirrored.
        p_axis: probability of each of them.
    """

    def __init__(self, axes: Sequence[int], p_axis: float) -> None:
        super().__init__(copy=False)
        self.axes = tuple(axes)
        self.p_axis = p_axis

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Mirror image and label along the drawn axes."""
        drawn = (torch.rand(3) < self.p_axis).tolist()  # three draws, whichever axes there are
        axes = [axis + 1 for axis in self.axes if drawn[axis]]
        if axes:
            for name in IMAGES:
                image = subject.get_image(name)
                image.set_data(image.data.flip(axes))
        return subject
