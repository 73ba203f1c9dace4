"""Changes of the intensities, channel by channel, as nnU-Net draws them; TorchIO has none of them with these rules.

TorchIO's RandomNoise would do, but it reseeds torch globally, CUDA included. All draw from torch's global CPU
generator, as TorchIO's own do, and change the subject's image (C, Z, Y, X) in place, on whatever device it lies.
"""

from abc import abstractmethod

import torch
import torchio as tio
from torch import Tensor
from torch.nn import functional
from torchio.transforms.augmentation import RandomTransform

from umamba.patches.blur import blur_axis
from umamba.patches.sampling import OUTSIDE
from umamba.patches.settings import Blur, Factor, GammaCurve, LowResolution, Noise, Range

TINY = 1e-7


def draw_around_one(limits: Range) -> float:
    """Draw half the time below 1 and half the time above, uniformly in each part; uniformly if 1 is not inside."""
    low, high = limits
    if low < 1 < high:
        low, high = (low, 1.0) if torch.rand(1).item() < 0.5 else (1.0, high)
    return RandomTransform.sample_uniform(low, high)


class ChannelTransform(RandomTransform):
    """Changes channels of `image` one by one, each with a probability of its own.

    Args:
        p: probability that a patch is changed at all.
        p_channel: probability of each channel then.
    """

    def __init__(self, p: float, p_channel: float = 1.0) -> None:
        super().__init__(p=p, copy=False)
        self.p_channel = p_channel

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Change the drawn channels."""
        for channel in subject.get_image("image").data:
            if self.p_channel >= 1 or torch.rand(1).item() < self.p_channel:
                channel.copy_(self.change(channel))
        return subject

    @abstractmethod
    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the changed channel (Z, Y, X)."""


class AddNoise(RandomTransform):
    """Add Gaussian noise of one drawn standard deviation to all channels."""

    def __init__(self, noise: Noise) -> None:
        super().__init__(p=noise.p, copy=False)
        self.std = noise.std

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Add the noise."""
        image = subject.get_image("image").data
        image.add_(self.noise_like(image), alpha=self.sample_uniform(*self.std))
        return subject

    def noise_like(self, image: Tensor) -> Tensor:
        """Return standard normal noise, drawn where the image lies."""
        if image.device.type == "cpu":
            return torch.randn(image.shape)
        generator = torch.Generator(image.device).manual_seed(self._get_random_seed())
        return torch.randn(image.shape, generator=generator, device=image.device)


class BlurChannels(ChannelTransform):
    """Gaussian blur with a sigma drawn per axis, mirrored at the borders."""

    def __init__(self, blur: Blur) -> None:
        super().__init__(blur.p, blur.p_channel)
        self.sigma = blur.sigma

    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the blurred channel; axes of size 1 stay as they are."""
        for axis, length in enumerate(channel_ZYX.shape):
            sigma = self.sample_uniform(*self.sigma)
            if length > 1:
                channel_ZYX = blur_axis(channel_ZYX, sigma, axis)
        return channel_ZYX


class ScaleBrightness(ChannelTransform):
    """Multiply each channel by a factor."""

    def __init__(self, brightness: Factor) -> None:
        super().__init__(brightness.p)
        self.factor = brightness.factor

    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the channel times the factor."""
        return channel_ZYX * draw_around_one(self.factor)


class ScaleContrast(ChannelTransform):
    """Multiply each channel's distance from its mean by a factor, within its old range."""

    def __init__(self, contrast: Factor) -> None:
        super().__init__(contrast.p)
        self.factor = contrast.factor

    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the channel with another contrast."""
        lowest, highest = torch.aminmax(channel_ZYX)
        mean = channel_ZYX.mean()
        return (channel_ZYX - mean).mul_(draw_around_one(self.factor)).add_(mean).clamp_(lowest, highest)


class LowerResolution(ChannelTransform):
    """Reduce by nearest neighbour and enlarge linearly, by one factor for all axes.

    Args:
        low_resolution: probabilities and factors.
        in_plane: leave the first axis as it is.
    """

    def __init__(self, low_resolution: LowResolution, in_plane: bool) -> None:
        super().__init__(low_resolution.p, low_resolution.p_channel)
        self.factor = low_resolution.factor
        self.in_plane = in_plane

    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the coarser channel."""
        factor = self.sample_uniform(*self.factor)
        axes = 2 if self.in_plane else 3
        full = channel_ZYX.shape[-axes:]
        reduced = [max(1, round(length * factor)) for length in full]
        stacked = channel_ZYX.reshape(1, -1, *full)
        small = functional.interpolate(stacked, size=reduced, mode="nearest-exact")
        linear = "bilinear" if self.in_plane else "trilinear"
        return functional.interpolate(small, size=full, mode=linear, align_corners=False).reshape(channel_ZYX.shape)


class ApplyGamma(ChannelTransform):
    """Raise each channel, scaled to 0..1, to a power; its mean and standard deviation are restored.

    Args:
        gamma: probability and exponents.
        negated: work on the negated channel and negate back.
    """

    def __init__(self, gamma: GammaCurve, negated: bool) -> None:
        super().__init__(gamma.p)
        self.exponent = gamma.exponent
        self.sign = -1.0 if negated else 1.0

    def change(self, channel_ZYX: Tensor) -> Tensor:
        """Return the channel with another gamma."""
        std, mean = std_and_mean(channel_ZYX)
        lowest, highest = torch.aminmax(channel_ZYX)
        zero, extent = lowest if self.sign > 0 else highest, (highest - lowest).clamp_min(TINY)
        curved = (channel_ZYX - zero).mul_(self.sign / extent).pow_(draw_around_one(self.exponent))
        new_std, new_mean = std_and_mean(curved)
        gain = self.sign * std / new_std.clamp_min(TINY)
        return curved.mul_(gain).add_(mean - gain * new_mean)


def std_and_mean(channel_ZYX: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (population) standard deviation and the mean; torch.std_mean takes many times as long on a CPU."""
    mean = channel_ZYX.mean()
    return torch.linalg.vector_norm(channel_ZYX - mean) / channel_ZYX.numel() ** 0.5, mean


class ClearOutside(tio.Transform):
    """Replace label -1 by background, after setting channels with masked normalisation to zero there.

    Args:
        channels: these channels; none for validation patches (as in nnU-Net).
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__(copy=False)
        self.channels = channels

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Clear image and label."""
        label = subject.get_image("label").data
        if self.channels:
            outside = label[0] == OUTSIDE
            for channel in self.channels:
                subject.get_image("image").data[channel].masked_fill_(outside, 0.0)
        label.clamp_(min=0)  # nothing else is below zero
        return subject
