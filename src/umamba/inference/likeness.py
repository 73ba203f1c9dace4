"""Compares an image with the images that a network was trained on, as its plan describes them.

A network segments any image without complaint, but its training says nothing about images of other units, resolution or
extent. The plan holds the median spacing and size of the training images and their foreground's intensities.
"""

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np

from umamba.datasets import RawCase
from umamba.inference.model import Model
from umamba.inference.resize import VoxelBox
from umamba.io import Image, UserError
from umamba.planning import Configuration, Intensity, Plan

log = logging.getLogger(__name__)

_NAMED = 10  # images of which a warning is shown
# A spacing or extent that differs from the median by more than this factor is far: training's augmentation scales
# images by 0.7 to 1.4, and the images of one dataset seldom differ more.
_FACTOR = 3.0
# Share of the foreground's range (percentiles 0.5 to 99.5) that the image's own range must cover, and share of the
# image's voxels that must lie between the foreground's minimum and maximum.
_COVERED, _INSIDE = 0.5, 0.01
# Z-scores forget scale and offset, therefore only another order of magnitude counts, which means other units.
_WIDTH = 20.0
_SAMPLES = 50  # along each axis, at least, from which percentiles are computed; fewer where the image has fewer
_Z_SCORE, _CT = "ZScoreNormalization", "CTNormalization"


def refuse_flat_image(image: Image, models: Sequence[Model]) -> None:
    """Refuse a two-dimensional file where a network sees volumes.

    Its thickness is unknown. nnU-Net would take 999 times the pixel's width and fill a volume with copies of the slice.

    Args:
        image: the image.
        models: the networks.

    Raises:
        UserError: the file is two-dimensional, and a network is three-dimensional.
    """
    names = [model.configuration.name for model in models if model.configuration.dim == 3]
    if image.geometry.is_2d and names:
        raise UserError(
            f"the image is two-dimensional, and the network sees volumes ({names[0]}). Give the volume that it is a "
            "slice of, a file of one slice with its thickness, or a checkpoint of a 2d network."
        )


def unlike_training(image: Image, crop: VoxelBox, model: Model) -> list[str]:
    """Return how an image differs from the images that a network was trained on, with the numbers.

    Args:
        image: the image as read.
        crop: its part without the zeros around it, which preprocessing keeps.
        model: the network.

    Returns:
        A sentence for the spacing, the field of view and the intensities of each channel, where they are far from those
        of training; empty: nothing is.
    """
    return list(_differences(image, crop, model.plan, model.configuration))


def distances(image: Image, crop: VoxelBox, model: Model) -> dict[str, float]:
    """Return how far an image is from the images that a network was trained on, 0 where it is as their median.

    Args:
        image: the image as read.
        crop: its part without the zeros around it.
        model: the network.

    Returns:
        spacing and field_of_view: the largest absolute natural logarithm, over the axes that the network sees, of the
        image's over the median of training. intensities: the largest over the channels, of the width of the image's
        range (percentiles 0.5 to 99.5) over that of training's foreground; 0 where the plan does not know it.
    """
    found = {}
    for name, own, usual in _sizes_seen(image, crop, model.plan, model.configuration):
        ratios = [math.log(a / b) for a, b in zip(own, usual, strict=True) if a > 0 and b > 0]
        found[name] = max(map(abs, ratios), default=0.0)
    widths = [0.0]
    for channel, intensity in zip(image.array, model.plan.intensity, strict=False):
        sample = _sample(channel[crop])
        width = intensity.percentile_99_5 - intensity.percentile_00_5
        if sample.size and width > 0:
            low, high = np.percentile(sample, (0.5, 99.5))
            widths.append(abs(math.log(max(float(high - low), 1e-8) / width)))
    return {**found, "intensities": max(widths)}


class Unlike:
    """Warns of images that are unlike those of training: of the first ones at once, of the others by their number."""

    def __init__(self, cases: Sequence[RawCase]) -> None:
        """Begin without any.

        Args:
            cases: all cases that are segmented.
        """
        self._total, self._found = len(cases), 0

    def add(self, case_id: str, differences: Sequence[str]) -> None:
        """Warn of a case.

        Args:
            case_id: the case.
            differences: what `unlike_training` returned.
        """
        if not differences:
            return
        self._found += 1
        if self._found <= _NAMED:
            log.warning(
                "%s is unlike the training images: %s. Check its segmentation.", case_id, "; ".join(differences)
            )

    def summary(self) -> None:
        """Warn of the number of cases, where not all were named."""
        if self._found > _NAMED:
            log.warning("%d of %d images are unlike the training images.", self._found, self._total)


def _differences(image: Image, crop: VoxelBox, plan: Plan, configuration: Configuration) -> Iterator[str]:
    for name, own, usual in _sizes_seen(image, crop, plan, configuration):
        if _far(own, usual):
            words = name.replace("_", " ")
            yield f"{words} {_sizes(own)} mm, the median of training is {_sizes(usual)} mm"
    for number, (channel, scheme, intensity) in enumerate(
        zip(image.array, configuration.normalization, plan.intensity, strict=False)
    ):
        reason = _unlike_intensities(channel[crop], scheme, intensity)
        if reason:
            where = f"channel {number}: " if len(image.array) > 1 else ""
            yield f"{where}intensities {reason}"


def _sizes_seen(
    image: Image, crop: VoxelBox, plan: Plan, configuration: Configuration
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Yield spacing and field of view along the axes that the network sees, those of the image and of training, mm."""
    first = 3 - configuration.dim
    axes = plan.transpose_forward[first:]
    spacing, usual = [image.geometry.spacing[axis] for axis in axes], list(plan.median_spacing[first:])
    yield "spacing", spacing, usual
    extent = [(crop[axis].stop - crop[axis].start) * image.geometry.spacing[axis] for axis in axes]
    yield "field_of_view", extent, [n * width for n, width in zip(plan.median_shape[first:], usual, strict=True)]


def _sample(channel: np.ndarray) -> np.ndarray:
    """Return some intensities of a channel (Z, Y, X), without zeros (mostly background) unless all of them are 0."""
    z, y, x = (max(1, length // _SAMPLES) for length in channel.shape)
    sample = channel[::z, ::y, ::x].astype(np.float64)
    return sample[sample != 0] if channel.any() else sample.reshape(-1)


def _unlike_intensities(channel: np.ndarray, scheme: str, trained: Intensity) -> str | None:
    """Return how a channel's intensities (Z, Y, X) differ from the foreground of training; None: they do not."""
    sample = _sample(channel)
    if not sample.size:
        return None
    if not sample.any():
        return "are all 0: perhaps a blank image"
    low, high = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    first, last = float(channel.min()), float(channel.max())
    usual_low, usual_high = trained.percentile_00_5, trained.percentile_99_5
    width = max(usual_high - usual_low, 1e-8)
    found = f"{low:.4g} to {high:.4g} (percentiles 0.5 and 99.5), training's foreground {usual_low:.4g} to "
    found += f"{usual_high:.4g}"
    if scheme == _Z_SCORE:
        width_ratio, level = (high - low) / width, float(np.median(sample))
        # Where the training images themselves have several units, their range is that of the largest ones, and only the
        # median tells that most are smaller.
        level_ratio = level / trained.median if level > 0 and trained.median > 0 else width_ratio
        other = all(ratio > _WIDTH or ratio < 1 / _WIDTH for ratio in (width_ratio, level_ratio))
        return f"{found}: perhaps other units" if other else None
    if scheme == _CT and usual_low < 0 <= first:
        return f"{found}: no value is below 0, so these are probably not Hounsfield units"
    covered = max(0.0, min(last, usual_high) - max(first, usual_low)) / width
    inside = float(np.mean((sample >= trained.min) & (sample <= trained.max)))
    return f"{found}: perhaps other units" if covered < _COVERED or inside < _INSIDE else None


def _far(found: Sequence[float], usual: Sequence[float]) -> bool:
    return any(
        own > _FACTOR * median or median > _FACTOR * own
        for own, median in zip(found, usual, strict=True)
        if own > 0 and median > 0
    )


def _sizes(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
