"""Intensity normalisation of one channel by nnU-Net's schemes, under nnU-Net's names."""

import numpy as np

from umamba.io import UserError
from umamba.planning import Intensity

_EPSILON = 1e-8
SCHEMES = (
    "CTNormalization",
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)


def normalize_channel(channel: np.ndarray, scheme: str, intensity: Intensity | None, mask: np.ndarray | None) -> None:
    """Normalise a float32 channel (Z, Y, X) in place.

    Args:
        channel: the voxels.
        scheme: CTNormalization (clip to the dataset's percentiles 0.5 and 99.5, then its mean and deviation),
            ZScoreNormalization (mean and deviation of this channel), RescaleTo01Normalization (this channel's range),
            RGBTo01Normalization (divide by 255) or NoNormalization.
        intensity: the dataset's foreground intensities of this channel; only CT needs them.
        mask: for z-score, where mean and deviation are taken and applied; voxels outside stay as they are. None: all.

    Raises:
        UserError: the scheme is unknown, CT has no intensities, or RGB values lie outside 0..255.
    """
    match scheme:
        case "NoNormalization":
            return
        case "CTNormalization":
            if intensity is None:
                raise UserError("normalization: CTNormalization needs the dataset's intensities; the plan has none.")
            np.clip(channel, intensity.percentile_00_5, intensity.percentile_99_5, out=channel)
            channel -= np.float32(intensity.mean)
            channel /= np.float32(max(intensity.std, _EPSILON))
        case "ZScoreNormalization" if mask is None:
            _standardize(channel)
        case "ZScoreNormalization":
            inside = channel[mask]
            _standardize(inside)
            channel[mask] = inside
        case "RescaleTo01Normalization":
            channel -= channel.min()
            channel /= max(channel.max(), np.float32(_EPSILON))
        case "RGBTo01Normalization":
            low, high = channel.min(), channel.max()
            if low < 0 or high > 255:
                raise UserError(
                    f"normalization: RGBTo01Normalization expects values from 0 to 255, found {low:g} to {high:g}. "
                    "Name the channel otherwise in channel_names of dataset.json (for z-score), or plan.normalization."
                )
            channel /= np.float32(255)
        case _:
            raise UserError(f"normalization: {scheme!r} is unknown. Choose one of {', '.join(SCHEMES)}.")


def _standardize(values: np.ndarray) -> None:
    """Subtract the mean and divide by the population's deviation, both summed in float64."""
    if not values.size:
        return
    values -= np.float32(values.mean(dtype=np.float64))
    deviation = np.sqrt(np.square(values).mean(dtype=np.float64))
    values /= np.float32(max(deviation, _EPSILON))
