"""The receptive field of a U-shaped network's convolutions, by arithmetic on its plan.

Interval arithmetic from one output voxel back to the image, through decoder, skips and encoder. Norms are left out:
InstanceNorm makes every voxel depend a little on the mean and variance of the whole map.
"""

import math
from collections.abc import Sequence

from umamba.networks.build import Architecture
from umamba.networks.umamba import block_counts, has_full_resolution_skip, mamba_stages
from umamba.planning import Configuration
from umamba.settings import (
    ArchitectureSettings,
    ResEncUNetSettings,
    UMambaBotSettings,
    UMambaEncSettings,
    UNetSettings,
    read_architecture,
)

Interval = tuple[int, int]  # first and last voxel along one axis, both included


def convolutional_reach(architecture: Architecture, configuration: Configuration) -> tuple[int, ...] | None:
    """Return how many voxels away, along each axis, convolutions can carry information to an output voxel.

    Args:
        architecture: see `build_network`. What a sequence layer (mamba, mamba2, mlstm) carries does not count: this is
            the reach of the network without it. mixer=convolution counts.
        configuration: the plan's configuration.

    Returns:
        The largest distance of an image voxel that has an influence, over all output voxels; None: not known for this
        architecture.

    >>> from umamba.networks import configuration_for_patch
    >>> convolutional_reach("unet", configuration_for_patch((32, 32)))
    (44, 44)
    """
    settings = read_architecture(architecture)
    convolutions = _convolutions(settings, configuration)
    if convolutions is None:
        return None
    return tuple(_reach(axis, *convolutions, settings, configuration) for axis in range(configuration.dim))


def _convolutions(
    settings: ArchitectureSettings, configuration: Configuration
) -> tuple[int, Sequence[int], Sequence[int]] | None:
    """Return the numbers of convolutions: in the stem, in each encoder stage, in each decoder stage from the bottom."""
    encoder, decoder = configuration.encoder_blocks, configuration.decoder_blocks
    if isinstance(settings, UNetSettings):
        return 0, encoder, decoder
    if isinstance(settings, ResEncUNetSettings):
        return 1, [2 * count for count in encoder], decoder
    if isinstance(settings, UMambaBotSettings | UMambaEncSettings):
        encoder, decoder = block_counts(settings.blocks, configuration)
        return 2 * encoder[0], [2 * count for count in encoder], [2 * count for count in decoder]
    return None


def _reach(
    axis: int,
    stem: int,
    encoder: Sequence[int],
    decoder: Sequence[int],
    settings: ArchitectureSettings,
    configuration: Configuration,
) -> int:
    strides = [stride[axis] for stride in configuration.strides]
    radii = [kernel[axis] // 2 for kernel in configuration.kernel_sizes]
    mixers = _mixer_radii(settings, configuration)
    deepest = configuration.num_stages - 1
    pooled = isinstance(settings, ResEncUNetSettings)  # its skips are averages over a stride
    with_first_skip = not isinstance(settings, UMambaBotSettings | UMambaEncSettings) or has_full_resolution_skip(
        settings, configuration
    )
    farthest = 0
    for voxel in range(math.prod(strides)):
        needed: list[Interval | None] = []  # at the output of each encoder stage, from full resolution
        x: Interval = (voxel // strides[0], voxel // strides[0])
        for stage in range(deepest):
            x = _widened(x, decoder[deepest - 1 - stage] * radii[stage])
            needed.append(x if stage or with_first_skip else None)
            step = strides[stage + 1]
            x = (x[0] // step, x[1] // step)
        for stage in range(deepest, -1, -1):
            skip = needed[stage] if stage < deepest else None
            x = x if skip is None else (min(x[0], skip[0]), max(x[1], skip[1]))
            x = _widened(x, mixers[stage] + (encoder[stage] - 1) * radii[stage])
            after = max(radii[stage], strides[stage] - 1 if pooled else 0)
            x = (x[0] * strides[stage] - radii[stage], x[1] * strides[stage] + after)
        x = _widened(x, stem * radii[0])
        farthest = max(farthest, voxel - x[0], x[1] - voxel)
    return farthest


def _widened(x: Interval, radius: int) -> Interval:
    return x[0] - radius, x[1] + radius


def _mixer_radii(settings: ArchitectureSettings, configuration: Configuration) -> list[int]:
    """Return for each encoder stage the radius of the convolution that takes the Mamba layer's place."""
    radii = [0] * configuration.num_stages
    if not isinstance(settings, UMambaBotSettings | UMambaEncSettings) or settings.mixer != "convolution":
        return radii
    with_mixer: Sequence[int] = (configuration.num_stages - 1,)
    if isinstance(settings, UMambaEncSettings):
        with_mixer = mamba_stages(settings.mamba_stages, configuration)
    for stage in with_mixer:
        radii[stage] = settings.mixer_kernel // 2
    return radii
