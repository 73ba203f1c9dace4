"""Encoder, decoder and the U shape they make; nnU-Net's plain U-Net and its residual-encoder U-Net.

Source: Isensee et al., nnU-Net (2021), and nnU-Net Revisited (2024), which added the residual encoder. Parameter names
are those of the official networks without their aliases. `features` lists feature maps by stage, full resolution first.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from umamba.io import UserError
from umamba.networks.blocks import (
    ConvStack,
    ResidualBlock,
    convolution,
    initialise_convolutions,
    ones,
    residual_stack,
    saturated,
    transposed_upsample,
)
from umamba.networks.options import parse_options
from umamba.planning import Configuration


class Encoder(nn.Module):
    """Stem and stages; each stage may be followed by a layer (U-Mamba_Enc's) whose output is also what is skipped."""

    def __init__(
        self, stages: Iterable[nn.Module], stem: nn.Module | None = None, layers: Iterable[nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.stem = stem or nn.Identity()
        self.stages = nn.ModuleList(stages)
        self.mamba_layers = nn.ModuleList(layers if layers is not None else (nn.Identity() for _ in self.stages))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (B, C, *S) to one feature map a stage."""
        x = self.stem(x)
        features = []
        for stage, layer in zip(self.stages, self.mamba_layers, strict=True):
            x = layer(stage(x))
            features.append(x)
        return features


class Decoder(nn.Module):
    """Upsampling, concatenation of the skip, stage, head; from the bottleneck up.

    Args:
        upsampling: one layer a decoder stage.
        stages: one module a decoder stage.
        heads: a 1x1 convolution to class logits a decoder stage.
        skips: whether each decoder stage takes the encoder's feature map.
        upsampling_name: the attribute that holds `upsampling`; the official networks differ in it.
    """

    def __init__(
        self,
        upsampling: Iterable[nn.Module],
        stages: Iterable[nn.Module],
        heads: Iterable[nn.Module],
        skips: Sequence[bool],
        upsampling_name: str,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.upsampling_name = upsampling_name
        self.add_module(upsampling_name, nn.ModuleList(upsampling))
        self.seg_layers = nn.ModuleList(heads)
        self.skips = tuple(skips)

    def forward(self, features: Sequence[Tensor], every_stage: bool) -> list[Tensor]:
        """Return the logits of every decoder stage, or of the last alone, full resolution first."""
        x, *below = reversed(features)
        upsampling = self.get_submodule(self.upsampling_name)
        assert isinstance(upsampling, nn.ModuleList)
        logits = []
        for index, (up, stage, head) in enumerate(zip(upsampling, self.stages, self.seg_layers, strict=True)):
            x = saturated(up(x))
            x = stage(torch.cat((x, below[index]), dim=1) if self.skips[index] else x)
            if every_stage or index == len(self.stages) - 1:
                logits.append(saturated(head(x)))
        return logits[::-1]


class UNet(nn.Module):
    """A network of encoder and decoder with deep supervision.

    Attributes:
        deep_supervision: settable; True: the logits of every decoder stage, full resolution first; False: one tensor.
        supports_deep_supervision: always True.
        fixed_patch_size: the only input size (spatial axes) that fits the weights, or None if any divisible one does.
    """

    supports_deep_supervision = True

    def __init__(self, encoder: Encoder, decoder: Decoder, configuration: Configuration, *, fixed_size: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.divisor = tuple(math.prod(axis) for axis in zip(*configuration.strides, strict=True))
        self.fixed_patch_size = tuple(configuration.patch_size) if fixed_size else None
        self.deep_supervision = True

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of all stages."""
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map images (B, C, *S) to logits (B, num_classes, *S), or a list of them (see `deep_supervision`).

        Raises:
            UserError: S does not fit the strides, or the weights.
        """
        self.check_size(tuple(x.shape[2:]))
        logits = self.decoder(self.encode(x), self.deep_supervision)
        return logits if self.deep_supervision else logits[0]

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raise UserError for an input size that the network cannot take."""
        if len(size) != len(self.divisor) or any(axis % step for axis, step in zip(size, self.divisor, strict=True)):
            raise UserError(f"input size {size} must be divisible by {self.divisor}, the product of the plan's strides")
        if self.fixed_patch_size is not None and size != self.fixed_patch_size:
            raise UserError(
                f"input size {size}: the weights of this network are tied to the plan's patch size "
                f"{self.fixed_patch_size} (channel tokens); use tiles of that size"
            )


def stage_sizes(configuration: Configuration) -> list[tuple[int, ...]]:
    """Return the size of the feature map of each stage for the plan's patch.

    Raises:
        UserError: the configuration cannot make a U-shaped network.
    """
    where = f"configuration {configuration.name}: patch size {tuple(configuration.patch_size)}"
    if configuration.num_stages < 2:
        raise UserError(f"{where} is planned with one stage; a U-shaped network needs two: use larger patches")
    sizes = []
    size = tuple(configuration.patch_size)
    for stride in configuration.strides:
        if any(axis % step for axis, step in zip(size, stride, strict=True)):
            raise UserError(f"{where} is not divisible by the product of its strides {configuration.strides}")
        size = tuple(axis // step for axis, step in zip(size, stride, strict=True))
        sizes.append(size)
    if math.prod(sizes[-1]) == 1:
        raise UserError(f"{where} leaves a single voxel in the last stage, which InstanceNorm refuses")
    return sizes


Upsampling = Callable[[int, int, Sequence[int]], nn.Module]
DecoderStage = Callable[[int, int, int, Sequence[int]], nn.Module]


def build_decoder(
    configuration: Configuration,
    num_classes: int,
    *,
    blocks: Sequence[int],
    stage: DecoderStage,
    upsampling: Upsampling,
    upsampling_name: str,
    full_resolution_skip: bool = True,
) -> Decoder:
    """Build the decoder that mirrors a configuration's stages.

    Args:
        configuration: the plan's configuration.
        num_classes: channels of the logits.
        blocks: blocks of each decoder stage, from the bottleneck up.
        stage: makes a decoder stage from (blocks, inputs, outputs, kernel).
        upsampling: makes an upsampling layer from (inputs, outputs, stride).
        upsampling_name: see `Decoder`.
        full_resolution_skip: whether the last decoder stage takes its skip.
    """
    features = configuration.features_per_stage
    unit = ones(configuration.dim)
    count = configuration.num_stages - 1
    levels = range(count - 1, -1, -1)  # encoder stages of equal resolution, from the bottleneck up
    skips = [full_resolution_skip or level > 0 for level in levels]
    return Decoder(
        upsampling=[
            upsampling(features[level + 1], features[level], configuration.strides[level + 1]) for level in levels
        ],
        stages=[
            stage(number, (1 + skip) * features[level], features[level], configuration.kernel_sizes[level])
            for number, skip, level in zip(blocks, skips, levels, strict=True)
        ],
        heads=[convolution(features[level], num_classes, unit, unit) for level in levels],
        skips=skips,
        upsampling_name=upsampling_name,
    )


@dataclass(frozen=True)
class NoOptions:
    """The plan determines these networks; there is nothing to choose."""


def _build_plain_decoder(configuration: Configuration, num_classes: int) -> Decoder:
    return build_decoder(
        configuration,
        num_classes,
        blocks=configuration.decoder_blocks,
        stage=lambda count, inputs, outputs, kernel: ConvStack(count, inputs, outputs, kernel, ones(len(kernel))),
        upsampling=transposed_upsample,
        upsampling_name="transpconvs",
    )


def build_unet(options: Mapping[str, Any], configuration: Configuration, in_channels: int, num_classes: int) -> UNet:
    """Build nnU-Net's plain convolutional U-Net (PlainConvUNet)."""
    parse_options(NoOptions, options, "unet")
    stage_sizes(configuration)
    inputs = (in_channels, *configuration.features_per_stage)
    stages = [
        nn.Sequential(
            ConvStack(count, inputs[s], inputs[s + 1], configuration.kernel_sizes[s], configuration.strides[s])
        )
        for s, count in enumerate(configuration.encoder_blocks)
    ]
    network = UNet(Encoder(stages), _build_plain_decoder(configuration, num_classes), configuration, fixed_size=False)
    initialise_convolutions(network)
    return network


class ResidualStage(nn.Module):
    """A stage of the residual encoder: its blocks under the official name."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *S) to the stage's feature map."""
        return self.blocks(x)


def build_resenc_unet(
    options: Mapping[str, Any], configuration: Configuration, in_channels: int, num_classes: int
) -> UNet:
    """Build nnU-Net's residual-encoder U-Net; the last norm of each residual block starts at zero."""
    parse_options(NoOptions, options, "resenc_unet")
    stage_sizes(configuration)
    kernels, strides = configuration.kernel_sizes, configuration.strides
    features = configuration.features_per_stage
    stem = ConvStack(1, in_channels, features[0], kernels[0], ones(configuration.dim))
    inputs = (features[0], *features)
    stages = [
        ResidualStage(
            residual_stack(
                ResidualBlock(inputs[s], features[s], kernels[s], strides[s]), count, features[s], kernels[s]
            )
        )
        for s, count in enumerate(configuration.encoder_blocks)
    ]
    encoder = Encoder(stages, stem)
    network = UNet(encoder, _build_plain_decoder(configuration, num_classes), configuration, fixed_size=False)
    initialise_convolutions(network)
    for name, parameter in network.encoder.named_parameters():
        if name.endswith(("conv2.norm.weight", "conv2.norm.bias")):
            nn.init.zeros_(parameter)
    return network
