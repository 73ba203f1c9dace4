"""The labels of a cascade's previous stage in a patch: their augmentation and their channels in the network's input.

While a patch is made, its label map has a second channel with these labels, so that they turn and are mirrored with the
image. At the end they become further channels of the image, one for each label value, and are spoilt as nnU-Net does
(batchgeneratorsv2, `transforms/nnunet`), because the previous stage makes more mistakes in new images: objects grow,
shrink, lose gaps or thin parts, and small ones vanish.
"""

from collections.abc import Callable

import numpy as np
import torch
import torchio as tio
from scipy.signal import fftconvolve
from skimage.measure import label as numbered
from skimage.morphology import ball

from umamba.labels import LabelSet
from umamba.labels.masks import one_hot
from umamba.patches.patch import AnySubject
from umamba.patches.seeding import draw_uniform
from umamba.settings.augmentation import PreviousStage


class AddPreviousStage(tio.Transform):
    """Move the second channel of `label` to `image`, as one channel of 0 and 1 for each label value.

    Args:
        labels: the label set.
        spoilt: how the channels are spoilt; None: they are not, as for validation patches.
    """

    def __init__(self, labels: LabelSet, spoilt: PreviousStage | None = None) -> None:
        super().__init__(copy=False)
        self.labels = labels
        self.spoilt = spoilt

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Return the subject with more channels in the image, and one in the label."""
        image, label = subject.get_image("image"), subject.get_image("label")
        channels = one_hot(label.data[1].numpy(), self.labels)
        if self.spoilt is not None:
            spoil(channels, self.spoilt)
        image.set_data(torch.cat([image.data, torch.from_numpy(channels)]))
        label.set_data(label.data[:1])
        return subject


def spoil(channels: np.ndarray, settings: PreviousStage) -> None:
    """Change the channels of the labels in place, by draws from torch's global CPU generator.

    Args:
        channels: (labels, Z, Y, X) of 0 and 1.
        settings: probabilities and ranges.
    """
    if torch.rand(1).item() < settings.p_shape:
        for channel in _drawn(len(channels), settings.p_label):
            change = SHAPE_CHANGES[int(torch.randint(len(SHAPE_CHANGES), (1,)))]
            change_shape(channels, channel, change, draw_uniform(*settings.radius))
    if torch.rand(1).item() < settings.p_removal:
        for channel in _drawn(len(channels), settings.p_label):
            remove_component(channels[channel], settings.removed_share)


def change_shape(
    channels: np.ndarray, channel: int, change: Callable[[np.ndarray, np.ndarray], np.ndarray], radius: float
) -> None:
    """Change the shape of a label in place; voxels that it gains are taken from the other labels.

    Args:
        channels: (labels, Z, Y, X) of 0 and 1.
        channel: number of the label.
        change: one of `SHAPE_CHANGES`.
        radius: of the ball, voxels.
    """
    before = channels[channel] > 0
    if not before.any():
        return
    element = ball(radius, dtype=bool)
    box = _box_around(before, len(element) + 1)  # what is farther away does not change
    after = change(before[box], element)
    gained = after & ~before[box]
    for other in range(len(channels)):
        if other != channel:
            channels[other][box][gained] = 0
    channels[channel][box] = after


def remove_component(mask: np.ndarray, most: float) -> None:
    """Remove one connected component, drawn from those that are small enough, in place.

    Args:
        mask: (Z, Y, X) of 0 and 1.
        most: largest share of all voxels of the patch that it may have.
    """
    components = numbered(mask > 0)  # voxels that touch at a corner are connected
    sizes = np.bincount(components.ravel())
    small = [number for number, size in enumerate(sizes) if number and size < mask.size * most]
    if small:
        mask[components == small[int(torch.randint(len(small), (1,)))]] = 0


def dilated(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Return a mask (Z, Y, X) dilated by a symmetric element; outside it is background.

    An element with an even edge reaches one voxel farther towards higher indices, as in nnU-Net's convolution.
    """
    padding = [((edge - 1) // 2, edge // 2) for edge in element.shape]
    # A product of Fourier transforms: balls of 17 voxels make other ways slow. The sums are whole numbers.
    sums = fftconvolve(np.pad(mask, padding).astype(np.float32), element.astype(np.float32), mode="valid")
    found: np.ndarray = sums > 0.5
    return found


def eroded(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Return a mask eroded by a symmetric element; outside it counts as foreground."""
    return ~dilated(~mask, element)


def opened(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Return a mask without its parts that are thinner than the element."""
    return dilated(eroded(mask, element), element)


def closed(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Return a mask without its gaps that are narrower than the element."""
    return eroded(dilated(mask, element), element)


SHAPE_CHANGES = (dilated, eroded, closed, opened)


def _drawn(count: int, p: float) -> list[int]:
    """Draw labels, each with probability `p`, in random order."""
    order = torch.randperm(count).tolist()
    return [channel for channel, chosen in zip(order, (torch.rand(count) < p).tolist(), strict=True) if chosen]


def _box_around(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Return the box of a mask that is not empty, with a margin, within the array."""
    box = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin))
    return tuple(box)
