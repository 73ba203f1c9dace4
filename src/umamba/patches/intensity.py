"""Intensity transforms with nnU-Net's rules, channel by channel; TorchIO's own follow other rules.

All of them draw from torch's global CPU generator (see `seed_torch`) and change the subject's image (C, Z, Y, X) on
the CPU in place; `change_rows` changes channels of a whole batch on any device. TorchIO's RandomNoise is not used
because it reseeds torch globally, CUDA included.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio
from torch import Tensor
from torch.nn import functional

from umamba.patches.blur import blur_axis, blur_rows, gaussian_weights
from umamba.patches.patch import AnySubject
from umamba.patches.seeding import draw_uniform
from umamba.preprocessing.case import OUTSIDE
from umamba.settings.augmentation import Blur, Brightness, Contrast, Gamma, LowResolution, Noise, Range

EPSILON = 1e-7  # keeps divisors of constant channels above zero


def draw_around_one(limits: Range) -> float:
    """Draw a factor: half the time below 1 and half the time above, uniformly within each half.

    Args:
        limits: lowest and highest factor. If 1 is not between them, the factor is drawn uniformly.
    """
    low, high = limits
    if low < 1 < high:
        low, high = (low, 1.0) if torch.rand(1).item() < 0.5 else (1.0, high)
    return draw_uniform(low, high)


class ChannelTransform(tio.IntensityTransform):
    """Base of transforms that change the channels of `image` one by one: draw numbers, then change voxels by them.

    Args:
        p: probability that the patch is changed.
        p_channel: probability of each channel of such a patch.
    """

    def __init__(self, p: float, p_channel: float = 1.0) -> None:
        super().__init__(p=p, copy=False)
        self.p_channel = p_channel

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Change each channel with probability `p_channel`."""
        image = subject.get_image("image").data
        for channel, drawn in self.draw(image.shape):
            image[channel].copy_(self.change(image[channel], drawn))
        return subject

    def draw(self, shape: Sequence[int]) -> list[tuple[int, Any]]:
        """Draw which channels of a patch (C, Z, Y, X) are changed, and by what."""
        return [
            (channel, self.draw_channel())
            for channel in range(shape[0])
            if self.p_channel >= 1 or torch.rand(1).item() < self.p_channel
        ]

    @abstractmethod
    def draw_channel(self) -> Any:
        """Draw by what a channel is changed."""

    @abstractmethod
    def change(self, channel_ZYX: Tensor, drawn: Any) -> Tensor:
        """Return a changed channel (Z, Y, X) on the CPU."""

    def numbers(self, drawn: Any, shape: Sequence[int]) -> np.ndarray:
        """Return what was drawn as numbers for `change_rows`, always as many for channels of one shape (Z, Y, X)."""
        return np.array([drawn], dtype=np.float64)

    @abstractmethod
    def change_rows(self, rows_RZYX: Tensor, numbers_RN: Tensor) -> Tensor:
        """Return changed channels (R, Z, Y, X) on any device, each by its own `numbers`, float32."""


class AddNoise(tio.IntensityTransform):
    """Add Gaussian noise with one drawn standard deviation to all channels."""

    def __init__(self, noise: Noise) -> None:
        super().__init__(p=noise.p, copy=False)
        self.std = noise.std

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Draw the noise, then its standard deviation, and add it."""
        image = subject.get_image("image").data
        noise, std = self.draw(image.shape)
        image.add_(noise, alpha=std)
        return subject

    def draw(self, shape: Sequence[int]) -> tuple[Tensor, float]:
        """Draw standard normal noise of a shape on the CPU, and the standard deviation."""
        return torch.randn(*shape), draw_uniform(*self.std)


class BlurChannels(ChannelTransform):
    """Gaussian blur with a sigma drawn for each axis, mirrored at the borders."""

    def __init__(self, blur: Blur) -> None:
        super().__init__(blur.p, blur.p_channel)
        self.sigma = blur.sigma

    def draw_channel(self) -> list[float]:
        """Draw a sigma for each axis."""
        return [draw_uniform(*self.sigma) for _axis in range(3)]

    def change(self, channel_ZYX: Tensor, drawn: Sequence[float]) -> Tensor:
        """Return the blurred channel; axes of size 1 are not blurred."""
        for axis, length in enumerate(channel_ZYX.shape):
            if length > 1:
                channel_ZYX = blur_axis(channel_ZYX, gaussian_weights(drawn[axis]), axis)
        return channel_ZYX

    def numbers(self, drawn: Sequence[float], shape: Sequence[int]) -> np.ndarray:
        """Return the weights for each axis, filled up with zeros to those of the largest sigma."""
        length = len(gaussian_weights(self.sigma[1]))
        found = np.zeros((3, length))
        for own, sigma in zip(found, drawn, strict=True):
            weights = gaussian_weights(sigma).numpy()
            first = (length - len(weights)) // 2
            own[first : first + len(weights)] = weights
        return found.ravel()

    def change_rows(self, rows_RZYX: Tensor, numbers_RN: Tensor) -> Tensor:
        """Return the blurred channels."""
        weights = numbers_RN.view(len(rows_RZYX), 3, -1)
        for axis, length in enumerate(rows_RZYX.shape[1:]):
            if length > 1:
                rows_RZYX = blur_rows(rows_RZYX, weights[:, axis], axis)
        return rows_RZYX


class ScaleBrightness(ChannelTransform):
    """Multiply each channel by a factor."""

    def __init__(self, brightness: Brightness) -> None:
        super().__init__(brightness.p)
        self.factor = brightness.factor

    def draw_channel(self) -> float:
        """Draw the factor."""
        return draw_around_one(self.factor)

    def change(self, channel_ZYX: Tensor, drawn: float) -> Tensor:
        """Return the channel times the factor."""
        return channel_ZYX * drawn

    def change_rows(self, rows_RZYX: Tensor, numbers_RN: Tensor) -> Tensor:
        """Return the channels times their factors."""
        return rows_RZYX * numbers_RN.view(-1, 1, 1, 1)


class ScaleContrast(ChannelTransform):
    """Multiply each channel's distance from its mean by a factor and clamp the result to the channel's old range."""

    def __init__(self, contrast: Contrast) -> None:
        super().__init__(contrast.p)
        self.factor = contrast.factor

    def draw_channel(self) -> float:
        """Draw the factor."""
        return draw_around_one(self.factor)

    def change(self, channel_ZYX: Tensor, drawn: float) -> Tensor:
        """Return the channel with the new contrast."""
        lowest, highest = torch.aminmax(channel_ZYX)
        mean = channel_ZYX.mean()
        return (channel_ZYX - mean).mul_(drawn).add_(mean).clamp_(lowest, highest)

    def change_rows(self, rows_RZYX: Tensor, numbers_RN: Tensor) -> Tensor:
        """Return the channels with their new contrasts."""
        lowest, highest = (each(rows_RZYX, (1, 2, 3), keepdim=True) for each in (torch.amin, torch.amax))
        mean = rows_RZYX.mean((1, 2, 3), keepdim=True)
        return (rows_RZYX - mean).mul_(numbers_RN.view(-1, 1, 1, 1)).add_(mean).clamp_(lowest, highest)


class LowerResolution(ChannelTransform):
    """Reduce each channel by nearest neighbour and enlarge it linearly, with one factor for all axes.

    Args:
        low_resolution: probabilities and range of the factor.
        in_plane: do not reduce the first axis.
    """

    def __init__(self, low_resolution: LowResolution, in_plane: bool) -> None:
        super().__init__(low_resolution.p, low_resolution.p_channel)
        self.factor = low_resolution.factor
        self.in_plane = in_plane
        self.axes = 2 if in_plane else 3

    def draw_channel(self) -> float:
        """Draw the factor."""
        return draw_uniform(*self.factor)

    def change(self, channel_ZYX: Tensor, drawn: float) -> Tensor:
        """Return the channel at the lower resolution, in its old size."""
        full = channel_ZYX.shape[-self.axes :]
        reduced = [_reduced(length, drawn) for length in full]
        stacked = channel_ZYX.reshape(1, -1, *full)
        small = functional.interpolate(stacked, size=reduced, mode="nearest-exact")
        linear = "bilinear" if self.in_plane else "trilinear"
        return functional.interpolate(small, size=full, mode=linear, align_corners=False).reshape(channel_ZYX.shape)

    def numbers(self, drawn: float, shape: Sequence[int]) -> np.ndarray:
        """Return for each reduced axis which two voxels the new ones lie between, and the second one's share."""
        return np.concatenate([_two_nearest(length, _reduced(length, drawn)).ravel() for length in shape[-self.axes :]])

    def change_rows(self, rows_RZYX: Tensor, numbers_RN: Tensor) -> Tensor:
        """Return the channels at their lower resolutions."""
        first = 0
        for axis in range(4 - self.axes, 4):
            length = rows_RZYX.shape[axis]
            own = numbers_RN[:, first : first + 3 * length].reshape(
                [-1, 3, *[length if other == axis else 1 for other in (1, 2, 3)]]
            )
            low, high = (own[:, index].long().expand(rows_RZYX.shape) for index in (0, 1))
            rows_RZYX = torch.lerp(rows_RZYX.gather(axis, low), rows_RZYX.gather(axis, high), own[:, 2])
            first += 3 * length
        return rows_RZYX


def _reduced(length: int, factor: float) -> int:
    return max(1, round(length * factor))


def _two_nearest(length: int, reduced: int) -> np.ndarray:
    """Return what reducing and enlarging an axis does to it: (3, length), two indices and the second one's share."""
    kept = functional.interpolate(torch.arange(float(length)).view(1, 1, -1), size=reduced, mode="nearest-exact")
    scale = np.float32(reduced) / np.float32(length)
    places = scale * (np.arange(length, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    places = np.maximum(places, np.float32(0))
    low = places.astype(np.int64)
    kept_voxels = kept.numpy().ravel()
    return np.stack([kept_voxels[low], kept_voxels[np.minimum(low + 1, reduced - 1)], places - low])


class ApplyGamma(ChannelTransform):
    """Scale each channel to 0..1, raise it to a power, and restore its mean and standard deviation.

    Args:
        gamma: probability and range of the exponent.
        negated: negate the channel before, and back afterwards.
    """

    def __init__(self, gamma: Gamma, negated: bool) -> None:
        super().__init__(gamma.p)
        self.exponent = gamma.exponent
        self.sign = -1.0 if negated else 1.0

    def draw_channel(self) -> float:
        """Draw the exponent."""
        return draw_around_one(self.exponent)

    def change(self, channel_ZYX: Tensor, drawn: float) -> Tensor:
        """Return the channel after the power law."""
        std, mean = std_and_mean(channel_ZYX)
        lowest, highest = torch.aminmax(channel_ZYX)
        zero, extent = lowest if self.sign > 0 else highest, (highest - lowest).clamp_min(EPSILON)
        curved = (channel_ZYX - zero).mul_(self.sign / extent).pow_(drawn)
        new_std, new_mean = std_and_mean(curved)
        gain = self.sign * std / new_std.clamp_min(EPSILON)
        return curved.mul_(gain).add_(mean - gain * new_mean)

    def change_rows(self, rows_RZYX: Tensor, numbers_RN: Tensor) -> Tensor:
        """Return the channels after their power laws."""
        std, mean = _std_and_mean_of_rows(rows_RZYX)
        lowest, highest = (each(rows_RZYX, (1, 2, 3), keepdim=True) for each in (torch.amin, torch.amax))
        zero, extent = lowest if self.sign > 0 else highest, (highest - lowest).clamp_min(EPSILON)
        curved = (rows_RZYX - zero).mul_(self.sign / extent).pow_(numbers_RN.view(-1, 1, 1, 1))
        new_std, new_mean = _std_and_mean_of_rows(curved)
        gain = self.sign * std / new_std.clamp_min(EPSILON)
        return curved.mul_(gain).add_(mean - gain * new_mean)


def std_and_mean(channel_ZYX: Tensor) -> tuple[Tensor, Tensor]:
    """Return the population standard deviation and the mean; torch.std_mean is many times slower on a CPU."""
    mean = channel_ZYX.mean()
    return torch.linalg.vector_norm(channel_ZYX - mean) / channel_ZYX.numel() ** 0.5, mean


def _std_and_mean_of_rows(rows_RZYX: Tensor) -> tuple[Tensor, Tensor]:
    """Return the population standard deviation and the mean of each channel, (R, 1, 1, 1)."""
    mean = rows_RZYX.mean((1, 2, 3), keepdim=True)
    norm = torch.linalg.vector_norm(rows_RZYX - mean, dim=(1, 2, 3), keepdim=True)
    return norm / rows_RZYX[0].numel() ** 0.5, mean


class ClearOutside(tio.Transform):
    """Set channels with masked normalisation to zero where the label is -1, then replace label -1 by background.

    Args:
        channels: indices of these channels; empty for validation patches, as in nnU-Net.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(copy=False)
        self.channels = tuple(channels)

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Clear image and label."""
        label = subject.get_image("label").data
        if self.channels:
            outside = label[0] == OUTSIDE
            for channel in self.channels:
                subject.get_image("image").data[channel].masked_fill_(outside, 0.0)
        label.clamp_(min=0)  # -1 is the only negative label, also of a previous stage
        return subject
