"""The encoder, the decoder, and nnU-Net's plain U-Net and residual-encoder U-Net that are made of them.

Source: Isensee et al., nnU-Net (2021), and nnU-Net Revisited (2024), which added the residual encoder. Parameter names
are those of the official networks without their aliases. Lists of feature maps begin at full resolution.
"""

import math
from collections.abc import Callable, Iterable, Sequence

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
from umamba.networks.cpu_layers import arranged, on_fast_path, upsampled
from umamba.planning import Configuration
from umamba.settings import ResEncUNetSettings, UNetSettings


class Encoder(nn.Module):
    """A stem and stages; each stage may be followed by a layer, whose output is then also the skip (U-Mamba Enc).

    Args:
        stages: one module for each stage.
        stem: module in front of the first stage; None: none.
        layers: one module to run after each stage; None: none.
    """

    def __init__(
        self, stages: Iterable[nn.Module], stem: nn.Module | None = None, layers: Iterable[nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.stem = stem or nn.Identity()
        self.stages = nn.ModuleList(stages)
        self.mamba_layers = nn.ModuleList(layers if layers is not None else (nn.Identity() for _ in self.stages))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images (B, C, *S) to the feature maps of all stages, full resolution first."""
        x = self.stem(arranged(x) if on_fast_path(x) else x)
        features = []
        for stage, layer in zip(self.stages, self.mamba_layers, strict=True):
            x = layer(stage(x))
            features.append(x)
        return features


class Decoder(nn.Module):
    """Upsample, concatenate the skip, run the stage and its segmentation head, from the bottleneck up.

    Args:
        upsampling: one layer for each decoder stage.
        stages: one module for each decoder stage.
        heads: one segmentation head, a 1x1 convolution, for each decoder stage.
        skips: for each decoder stage, whether it has a skip.
        upsampling_name: name of the attribute that holds `upsampling`; the official networks differ in it.
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
        """Map the encoder's feature maps to logits.

        Args:
            features: feature maps of the encoder stages, full resolution first.
            every_stage: compute the logits of all decoder stages instead of those at full resolution only.

        Returns:
            The logits, full resolution first.
        """
        x, *below = reversed(features)
        upsampling = self.get_submodule(self.upsampling_name)
        assert isinstance(upsampling, nn.ModuleList)
        logits = []
        for index, (up, stage, head) in enumerate(zip(upsampling, self.stages, self.seg_layers, strict=True)):
            x = stage(upsampled(up, x, below[index] if self.skips[index] else None))
            if every_stage or index == len(self.stages) - 1:
                logits.append(saturated(head(x)))
        return logits[::-1]


class UNet(nn.Module):
    """An encoder and a decoder, with deep supervision.

    Args:
        encoder: the encoder.
        decoder: the decoder.
        configuration: the plan's configuration.
        fixed_size: whether the weights depend on the patch size.

    Attributes:
        deep_supervision: settable. True: return the logits of all decoder stages. False: return one tensor.
        supports_deep_supervision: always True.
        fixed_patch_size: the only size of the spatial axes that fits the weights; None: every divisible size does.
        bottleneck_channels: channels of `bottleneck`.
    """

    supports_deep_supervision = True

    def __init__(self, encoder: Encoder, decoder: Decoder, configuration: Configuration, *, fixed_size: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.divisor = tuple(math.prod(axis) for axis in zip(*configuration.strides, strict=True))
        self.fixed_patch_size = tuple(configuration.patch_size) if fixed_size else None
        self.bottleneck_channels = configuration.features_per_stage[-1]
        self.deep_supervision = True

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of all stages."""
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map images (B, C, *S) to logits (B, num_classes, *S), or to a list of logits with `deep_supervision`.

        Raises:
            UserError: S does not fit the strides or the weights.
        """
        self.check_size(tuple(x.shape[2:]))
        logits = self.decoder(self.encode(x), self.deep_supervision)
        return logits if self.deep_supervision else logits[0]

    def bottleneck(self, x: Tensor) -> Tensor:
        """Map images (B, C, *S) to the feature map of the last encoder stage; errors as `forward`."""
        self.check_size(tuple(x.shape[2:]))
        return self.encode(x)[-1]

    def segment_with_bottleneck(self, x: Tensor) -> tuple[Tensor | list[Tensor], Tensor]:
        """Return what `forward` returns, and the feature map of the last encoder stage; errors as `forward`."""
        self.check_size(tuple(x.shape[2:]))
        features = self.encode(x)
        logits = self.decoder(features, self.deep_supervision)
        return (logits if self.deep_supervision else logits[0]), features[-1]

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raise UserError if the network cannot take images of this size (spatial axes, voxels)."""
        if len(size) != len(self.divisor) or any(axis % step for axis, step in zip(size, self.divisor, strict=True)):
            raise UserError(f"input size {size}: must be divisible by {self.divisor}, the product of all strides.")
        if self.fixed_patch_size is not None and size != self.fixed_patch_size:
            raise UserError(
                f"input size {size}: the weights of this network fit the plan's patch size {self.fixed_patch_size} "
                "only, because it has channel tokens. Use tiles of that size."
            )


def stage_sizes(configuration: Configuration) -> list[tuple[int, ...]]:
    """Return the size in voxels of each encoder stage's feature map for the plan's patch.

    Raises:
        UserError: the configuration makes no U-shaped network.
    """
    where = f"configuration {configuration.name}: patch size {tuple(configuration.patch_size)}"
    if configuration.num_stages < 2:
        raise UserError(f"{where}: has only one stage, and a U-shaped network needs two. Use a larger patch.")
    sizes = []
    size = tuple(configuration.patch_size)
    for stride in configuration.strides:
        if any(axis % step for axis, step in zip(size, stride, strict=True)):
            raise UserError(f"{where}: not divisible by the product of its strides {configuration.strides}.")
        size = tuple(axis // step for axis, step in zip(size, stride, strict=True))
        sizes.append(size)
    if math.prod(sizes[-1]) == 1:
        raise UserError(
            f"{where}: a single voxel is left in the last stage, which InstanceNorm refuses. Use a larger one."
        )
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
    """Build the decoder that belongs to a configuration's encoder stages.

    Args:
        configuration: the plan's configuration.
        num_classes: channels of the logits.
        blocks: number of blocks in each decoder stage, from the bottleneck up.
        stage: makes a decoder stage from (blocks, inputs, outputs, kernel).
        upsampling: makes an upsampling layer from (inputs, outputs, stride).
        upsampling_name: see `Decoder`.
        full_resolution_skip: whether the decoder stage at full resolution has a skip.
    """
    features = configuration.features_per_stage
    unit = ones(configuration.dim)
    count = configuration.num_stages - 1
    levels = range(count - 1, -1, -1)  # the encoder stage of equal resolution, for each decoder stage
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


def _build_plain_decoder(configuration: Configuration, num_classes: int) -> Decoder:
    return build_decoder(
        configuration,
        num_classes,
        blocks=configuration.decoder_blocks,
        stage=lambda count, inputs, outputs, kernel: ConvStack(count, inputs, outputs, kernel, ones(len(kernel))),
        upsampling=transposed_upsample,
        upsampling_name="transpconvs",
    )


def build_unet(settings: UNetSettings, configuration: Configuration, in_channels: int, num_classes: int) -> UNet:
    """Build nnU-Net's plain convolutional U-Net (PlainConvUNet).

    Args:
        settings: has no options, because the configuration determines this network.
        configuration: the plan's configuration.
        in_channels: image channels.
        num_classes: channels of the logits.

    Raises:
        UserError: the configuration makes no U-shaped network.
    """
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
    """A stage of the residual encoder; it holds its blocks under the official name.

    Args:
        blocks: run one after the other.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *S) to the stage's feature map."""
        return self.blocks(x)


def build_resenc_unet(
    settings: ResEncUNetSettings, configuration: Configuration, in_channels: int, num_classes: int
) -> UNet:
    """Build nnU-Net's residual-encoder U-Net; the last norm of each residual block starts at zero.

    The arguments and errors are those of `build_unet`.
    """
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
