"""Intensity transforms with nnU-Net's rules, channel by channel; TorchIO's own follow other rules.

All of them draw from torch's global CPU generator (see `seed_torch`) and change the subject's image (C, Z, Y, X) in
place, on whichever device it is. TorchIO's RandomNoise is not used because it reseeds torch globally, CUDA included.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torchio as tio
from torch import Tensor
from torch.nn import functional

from umamba.patches.blur import blur_axis
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
    """Base of transforms that change the channels of `image` one by one.

    Args:
        p: probability that the patch is changed.
        p_channel: probability of each channel of such a patch.
    """

    def __init__(self, p: float, p_channel: float = 1.0) -> None:
        super().__init__(p=p, copy=False)
        self.p_channel = p_channel

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Change each channel with probability `p_channel`."""
        for channel in subject.get_image("image").data:
            if self.p_channel >= 1 or torch.rand(1).item() < self.p_channel:
                channel.copy_(self.change(channel))
        return subject

    @abstractmethod
    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the changed channel (Z, Y, X)."""


class AddNoise(tio.IntensityTransform):
    """Add Gaussian noise with one drawn standard deviation to all channels."""

    def __init__(self, noise: Noise) -> None:
        super().__init__(p=noise.p, copy=False)
        self.std = noise.std

    def apply_transform(self, subject: AnySubject) -> AnySubject:
        """Draw the noise, then its standard deviation, and add it."""
        image = subject.get_image("image").data
        image.add_(self.noise_like(image), alpha=draw_uniform(*self.std))
        return subject

    def noise_like(self, image: Tensor) -> Tensor:
        """Return standard normal noise, drawn on the image's device; devices differ in the values they draw."""
        if image.device.type == "cpu":
            return torch.randn(image.shape)
        seed = int(torch.randint(0, 2**31, (1,)).item())
        generator = torch.Generator(image.device).manual_seed(seed)
        return torch.randn(image.shape, generator=generator, device=image.device)


class BlurChannels(ChannelTransform):
    """Gaussian blur with a sigma drawn for each axis, mirrored at the borders."""

    def __init__(self, blur: Blur) -> None:
        super().__init__(blur.p, blur.p_channel)
        self.sigma = blur.sigma

    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the blurred channel; axes of size 1 are not blurred."""
        for axis, length in enumerate(channel_ZYX.shape):
            sigma = draw_uniform(*self.sigma)
            if length > 1:
                channel_ZYX = blur_axis(channel_ZYX, sigma, axis)
        return channel_ZYX


class ScaleBrightness(ChannelTransform):
    """Multiply each channel by a factor."""

    def __init__(self, brightness: Brightness) -> None:
        super().__init__(brightness.p)
        self.factor = brightness.factor

    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the channel times the factor."""
        return channel_ZYX * draw_around_one(self.factor)


class ScaleContrast(ChannelTransform):
    """Multiply each channel's distance from its mean by a factor and clamp the result to the channel's old range."""

    def __init__(self, contrast: Contrast) -> None:
        super().__init__(contrast.p)
        self.factor = contrast.factor

    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the channel with the new contrast."""
        lowest, highest = torch.aminmax(channel_ZYX)
        mean = channel_ZYX.mean()
        return (channel_ZYX - mean).mul_(draw_around_one(self.factor)).add_(mean).clamp_(lowest, highest)


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

    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the channel at the lower resolution, in its old size."""
        factor = draw_uniform(*self.factor)
        axes = 2 if self.in_plane else 3
        full = channel_ZYX.shape[-axes:]
        reduced = [max(1, round(length * factor)) for length in full]
        stacked = channel_ZYX.reshape(1, -1, *full)
        small = functional.interpolate(stacked, size=reduced, mode="nearest-exact")
        linear = "bilinear" if self.in_plane else "trilinear"
        return functional.interpolate(small, size=full, mode=linear, align_corners=False).reshape(channel_ZYX.shape)


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

    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the channel after the power law."""
        std, mean = std_and_mean(channel_ZYX)
        lowest, highest = torch.aminmax(channel_ZYX)
        zero, extent = lowest if self.sign > 0 else highest, (highest - lowest).clamp_min(EPSILON)
        curved = (channel_ZYX - zero).mul_(self.sign / extent).pow_(draw_around_one(self.exponent))
        new_std, new_mean = std_and_mean(curved)
        gain = self.sign * std / new_std.clamp_min(EPSILON)
        return curved.mul_(gain).add_(mean - gain * new_mean)


def std_and_mean(channel_ZYX: Tensor) -> tuple[Tensor, Tensor]:
    """Return the population standard deviation and the mean; torch.std_mean is many times slower on a CPU."""
    mean = channel_ZYX.mean()
    return torch.linalg.vector_norm(channel_ZYX - mean) / channel_ZYX.numel() ** 0.5, mean


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
        label.clamp_(min=0)  # -1 is the only negative label
        return subject
