"""Normalise the intensities of one channel by nnU-Net's schemes, which keep nnU-Net's names."""

import numpy as np

from umamba.io import UserError
from umamba.planning import Intensity
from umamba.planning.normalization import SCHEMES

_EPSILON = 1e-8


def normalize_channel(channel: np.ndarray, scheme: str, intensity: Intensity | None, mask: np.ndarray | None) -> None:
    """Normalise a float32 channel (Z, Y, X) in place.

    Args:
        channel: the voxels (Z, Y, X), float32.
        scheme: CTNormalization (clip to the dataset's percentiles 0.5 and 99.5, then subtract its mean and divide by
            its standard deviation), ZScoreNormalization (mean and standard deviation of this channel),
            RescaleTo01Normalization (range of this channel to 0..1), RGBTo01Normalization (divide by 255) or
            NoNormalization.
        intensity: the dataset's foreground intensities of this channel, which only CTNormalization needs.
        mask: (Z, Y, X) bool, only for ZScoreNormalization: voxels that give mean and standard deviation and are
            normalised; the others are not changed. None: all voxels.

    Raises:
        UserError: the scheme is unknown, CTNormalization has no intensities, or RGB values are outside 0..255.
    """
    match scheme:
        case "NoNormalization":
            return
        case "CTNormalization":
            if intensity is None:
                raise UserError(
                    "normalization: CTNormalization needs the dataset's intensities, but the plan has none. Make the "
                    "plan again, or choose another plan.normalization."
                )
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
                    "Choose another name of the channel in channel_names of dataset.json, or another "
                    "plan.normalization."
                )
            channel /= np.float32(255)
        case _:
            raise UserError(f"normalization: {scheme!r} is unknown. Choose one of {', '.join(SCHEMES)}.")


def _standardize(values: np.ndarray) -> None:
    """Subtract the mean and divide by the population standard deviation in place, both summed in float64."""
    if not values.size:
        return
    values -= np.float32(values.mean(dtype=np.float64))
    deviation = np.sqrt(np.square(values).mean(dtype=np.float64))
    values /= np.float32(max(deviation, _EPSILON))
