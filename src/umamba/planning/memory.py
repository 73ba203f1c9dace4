"""How much memory a U-Net takes, in feature map values (nnU-Net: dynamic_network_architectures' estimate).

Counts the outputs of the convolutions for one patch; neither input channels nor deep supervision matter.
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
    """Estimate the values of all feature maps for a batch of one.

    Args:
        patch_size: voxels of each axis.
        strides: of each encoder stage.
        features: of each encoder stage.
        encoder_blocks: convolutions, or residual blocks (two convolutions each), of each encoder stage.
        decoder_blocks: convolutions of each decoder stage, from the bottleneck up.
        num_label_entries: entries of `labels` in dataset.json, background and ignore label included.
        residual_encoder: whether the encoder has a stem and residual blocks.
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
        total += (blocks + 1) * width * count  # the transposed convolution is one more
    return total + (num_label_entries * voxels[0] if len(strides) > 1 else 0)


def _stage_voxels(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    size = list(patch_size)
    counts = []
    for stride in strides:
        size = [edge // step for edge, step in zip(size, stride, strict=True)]
        counts.append(math.prod(size))
    return counts
