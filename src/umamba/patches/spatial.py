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

from umamba.patches.patch import AnySubject
from umamba.patches.seeding import draw_uniform
from umamba.patches.warp import resample_patch
from umamba.settings.augmentation import Rotation, Scaling

IMAGES = ("image", "label")  # names of a subject's images


class RotateScaleCrop(tio.SpatialTransform):
    """Rotate and scale `image` and `label` of a subject, and crop them to the patch.

    Draw the rotation first (`draw_matrix`), read only the region it needs (`source_size`), and pass the drawn matrix as
    the subject's `matrix`. A subject without `matrix` has its rotation drawn here. A subject may say with `inside`
    which part of it lies inside the image (see `sampling.inside_of`); the rest is not interpolated.

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
        self.scaling = scaling
        self.around = np.array(around)
        self.chances = torch.tensor([rotation.p, scaling.p])
        self.cropped_size = tuple((np.array(patch_size) + 2 * self.around).tolist())

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Return the subject at the size of the patch; without rotation and scaling it is cropped to the centre."""
        image, label = (subject.get_image(name) for name in IMAGES)
        matrix: Any = subject["matrix"] if "matrix" in subject else self.draw_matrix()
        if matrix is None:
            patches = [crop_centre(each.data, self.patch_size) for each in (image, label)]
        else:
            inside: Any = subject.get("inside")
            resampled = resample_patch(image.data.numpy(), label.data.numpy(), matrix, self.patch_size, inside)
            patches = [torch.from_numpy(array) for array in resampled]
        image.set_data(patches[0])
        label.set_data(patches[1])
        return subject

    def source_size(self, matrix: np.ndarray | None, largest: Sequence[int]) -> tuple[int, ...]:
        """Return the size (Z, Y, X) of the central region that a patch with this matrix is sampled from.

        Args:
            matrix: what `draw_matrix` returned.
            largest: size (Z, Y, X) of the region that any matrix may need; the result is not larger.
        """
        if matrix is None:
            return self.cropped_size
        size = np.array(self.patch_size)
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
        rotate, scale = (torch.rand(2) < self.chances).tolist()
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


def crop_centre(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Return a view (..., *size) of the central region.

    Args:
        tensor: (..., Z, Y, X), at least as large as the region.
        size: (Z, Y, X), voxels.
    """
    for axis, length in zip((-3, -2, -1), size, strict=True):
        tensor = tensor.narrow(axis, (tensor.shape[axis] - length) // 2, length)
    return tensor


class MirrorPatch(tio.SpatialTransform):
    """Mirror `image` and `label` of a subject along randomly drawn axes.

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
        axes = self.draw()
        if axes:
            for name in IMAGES:
                image = subject.get_image(name)
                image.set_data(image.data.flip(axes))
        return subject

    def draw(self) -> tuple[int, ...]:
        """Draw the axes of (C, Z, Y, X) that are mirrored."""
        drawn = (torch.rand(3) < self.p_axis).tolist()  # three draws, whichever axes there are
        return tuple(axis + 1 for axis in self.axes if drawn[axis])
