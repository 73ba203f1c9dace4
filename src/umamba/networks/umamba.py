"""U-Mamba_Bot and U-Mamba_Enc in 2D and 3D (Ma, Li and Wang, U-Mamba, 2024; section 2 and Figure 1).

Where the paper and its released code differ, or the released 2D and 3D code, the choice is a named option whose default
is what was released. Parameter names are the official ones without their aliases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from umamba.io import UserError
from umamba.networks.blocks import (
    NearestUpsample,
    ProjectionBlock,
    initialise_convolutions,
    ones,
    residual_stack,
    transposed_upsample,
)
from umamba.networks.mamba import MambaLayer
from umamba.networks.options import parse_options
from umamba.networks.unet import Decoder, Encoder, UNet, build_decoder, stage_sizes
from umamba.planning import Configuration


@dataclass(frozen=True)
class UMambaOptions:
    """Options that Bot and Enc share; the YAML says what each one does."""

    blocks: Literal["official", "paper"] = "official"
    full_resolution_skip: Literal["official", "always"] = "official"
    decoder_upsampling: Literal["nearest", "transposed"] = "nearest"
    mamba: Literal[True, "identity"] = True
    residual: bool = False
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    scan_backend: str = "auto"
    scan_directions: Literal["forward", "bidirectional", "axes"] = "forward"


@dataclass(frozen=True)
class UMambaEncOptions(UMambaOptions):
    """Options of Enc."""

    mamba_stages: Literal["official", "all"] | tuple[int, ...] = "official"


class UMambaBot(UNet):
    """U-Mamba_Bot: one Mamba layer on the bottleneck."""

    def __init__(
        self, encoder: Encoder, decoder: Decoder, configuration: Configuration, mamba_layer: nn.Module
    ) -> None:
        super().__init__(encoder, decoder, configuration, fixed_size=False)
        self.mamba_layer = mamba_layer

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of all stages, the last one passed through the Mamba layer."""
        *features, bottleneck = self.encoder(x)
        return [*features, self.mamba_layer(bottleneck)]


def build_umamba_bot(
    options: Mapping[str, Any], configuration: Configuration, in_channels: int, num_classes: int
) -> UMambaBot:
    """Build U-Mamba_Bot."""
    chosen = parse_options(UMambaOptions, options, "umamba_bot")
    stage_sizes(configuration)
    layer = _mamba_layer(chosen, configuration, configuration.features_per_stage[-1])
    encoder = _build_encoder(chosen, configuration, in_channels, layers=None)
    network = UMambaBot(encoder, _build_decoder(chosen, configuration, num_classes), configuration, layer)
    initialise_convolutions(network)
    return network


def build_umamba_enc(
    options: Mapping[str, Any], configuration: Configuration, in_channels: int, num_classes: int
) -> UNet:
    """Build U-Mamba_Enc: a Mamba layer after the encoder stages that `mamba_stages` names.

    In a stage whose map has at most as many voxels as channels, channels are the tokens and voxels the model width; the
    network then takes the plan's patch size only.
    """
    chosen = parse_options(UMambaEncOptions, options, "umamba_enc")
    sizes = stage_sizes(configuration)
    with_mamba = mamba_stages(chosen.mamba_stages, configuration) if chosen.mamba is True else ()
    layers: list[nn.Module] = []
    fixed_size = False
    for s, (size, features) in enumerate(zip(sizes, configuration.features_per_stage, strict=True)):
        voxels = math.prod(size)
        channel_token = voxels <= features
        if s in with_mamba:
            fixed_size |= channel_token
            layers.append(_mamba_layer(chosen, configuration, voxels if channel_token else features, channel_token))
        else:
            layers.append(nn.Identity())
    encoder = _build_encoder(chosen, configuration, in_channels, layers)
    decoder = _build_decoder(chosen, configuration, num_classes)
    network = UNet(encoder, decoder, configuration, fixed_size=fixed_size)
    initialise_convolutions(network)
    return network


def mamba_stages(choice: str | tuple[int, ...], configuration: Configuration) -> tuple[int, ...]:
    """Return the encoder stages that carry a Mamba layer in U-Mamba_Enc.

    Official: every stage in 3D; in 2D every second one, counted so that the last has one.

    Raises:
        UserError: a listed stage does not exist.
    """
    stages = range(configuration.num_stages)
    if isinstance(choice, tuple):
        absent = sorted(set(choice) - set(stages))
        if absent:
            raise UserError(f"architecture.mamba_stages: {absent} not among the plan's stages 0 to {stages[-1]}")
        return choice
    if choice == "official" and configuration.dim == 2:
        return tuple(s for s in stages if (stages[-1] - s) % 2 == 0)
    return tuple(stages)


def block_counts(blocks: str, configuration: Configuration) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the residual blocks of each encoder stage and of each decoder stage (from the bottleneck up).

    Official: the plan's numbers, but one block in the deeper half of the encoder and in the decoder stages nearest to
    full resolution. Paper: two everywhere.
    """
    n = configuration.num_stages
    if blocks == "paper":
        return (2,) * n, (2,) * (n - 1)
    encoder = tuple(1 if s >= math.ceil(n / 2) else count for s, count in enumerate(configuration.encoder_blocks))
    decoder = tuple(1 if s >= math.ceil(n / 2) else count for s, count in enumerate(configuration.decoder_blocks))
    return encoder, decoder


def _mamba_layer(
    options: UMambaOptions, configuration: Configuration, dim: int, channel_token: bool = False
) -> nn.Module:
    if options.mamba == "identity":
        return nn.Identity()
    return MambaLayer(
        dim,
        channel_token=channel_token,
        d_state=options.d_state,
        d_conv=options.d_conv,
        expand=options.expand,
        residual=options.residual,
        scan_backend=options.scan_backend,
        scan_directions=options.scan_directions,
        num_axes=configuration.dim,
    )


def _build_encoder(
    options: UMambaOptions, configuration: Configuration, in_channels: int, layers: list[nn.Module] | None
) -> Encoder:
    counts, _ = block_counts(options.blocks, configuration)
    kernels, strides = configuration.kernel_sizes, configuration.strides
    features = configuration.features_per_stage
    entry = ProjectionBlock(in_channels, features[0], kernels[0], ones(configuration.dim))
    stem = nn.Sequential(*residual_stack(entry, counts[0], features[0], kernels[0]))
    inputs = (features[0], *features)
    stages = [
        nn.Sequential(
            *residual_stack(
                ProjectionBlock(inputs[s], features[s], kernels[s], strides[s]), count, features[s], kernels[s]
            )
        )
        for s, count in enumerate(counts)
    ]
    return Encoder(stages, stem, layers)


def _build_decoder(options: UMambaOptions, configuration: Configuration, num_classes: int) -> Decoder:
    _, counts = block_counts(options.blocks, configuration)

    def stage(count: int, inputs: int, outputs: int, kernel: Sequence[int]) -> nn.Module:
        return nn.Sequential(
            *residual_stack(ProjectionBlock(inputs, outputs, kernel, ones(len(kernel))), count, outputs, kernel)
        )

    return build_decoder(
        configuration,
        num_classes,
        blocks=counts,
        stage=stage,
        upsampling=NearestUpsample if options.decoder_upsampling == "nearest" else transposed_upsample,
        upsampling_name="upsample_layers",
        full_resolution_skip=options.full_resolution_skip == "always" or configuration.dim == 3,
    )
