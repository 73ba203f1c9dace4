"""Estimate the memory of a U-Net in feature map values (nnU-Net: dynamic_network_architectures).

The estimate counts the outputs of the convolutions for one patch. Input channels and deep supervision do not count.
"""

import math
from collections.abc import Sequence


def feature_map_values(
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int]],
    features: Sequence[int],
    encoder_blocks: Sequence[int],
    decoder_blocks: Sequence[int],
    num_label_entries: int,
    residual_encoder: bool,
) -> int:
    """Estimate the number of values in all feature maps for a batch of one patch.

    Args:
        patch_size: voxels along each axis.
        strides: strides of each encoder stage, one entry per axis.
        features: feature maps of each encoder stage.
        encoder_blocks: number of convolutions, or of residual blocks with two convolutions, of each encoder stage.
        decoder_blocks: number of convolutions of each decoder stage, starting at the bottleneck.
        num_label_entries: entries of `labels` in dataset.json, including background and ignore label.
        residual_encoder: whether the encoder has a stem and residual blocks.

    Example:
        >>> feature_map_values((8, 8), [(1, 1), (2, 2)], [4, 8], [1, 1], [1], 2, False)
        1024
    """
    voxels = _stage_voxels(patch_size, strides)
    total = features[0] * math.prod(patch_size) if residual_encoder else 0
    before = features[0]
    for stage, (width, blocks) in enumerate(zip(features, encoder_blocks, strict=True)):
        convolutions = blocks
        if residual_encoder:
            projected = width != before or math.prod(strides[stage]) > 1
            convolutions = 2 * blocks + (1 if projected else 0)
        total += convolutions * width * voxels[stage]
        before = width
    for width, count, blocks in zip(features[-2::-1], voxels[-2::-1], decoder_blocks, strict=True):
        total += (blocks + 1) * width * count  # + 1 for the transposed convolution
    return total + (num_label_entries * voxels[0] if len(strides) > 1 else 0)


def _stage_voxels(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    size = list(patch_size)
    counts = []
    for stride in strides:
        size = [edge // step for edge, step in zip(size, stride, strict=True)]
        counts.append(math.prod(size))
    return counts
