"""U-Mamba Bot and U-Mamba Enc in 2D and 3D (Ma, Li and Wang, U-Mamba, 2024; section 2 and Figure 1).

Where the paper and the released code differ, or the released 2D and 3D code, the choice is an option in the settings;
its default is what was released. Parameter names are the official ones without their aliases. The Mamba layers can be
replaced by the controls of `umamba.networks.mixers`.
"""

import math
from collections.abc import Sequence

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
from umamba.networks.from_patch import choose_configuration
from umamba.networks.mixers import UMambaSettings, mixer_layer
from umamba.networks.unet import Decoder, Encoder, UNet, build_decoder, stage_sizes
from umamba.planning import Configuration
from umamba.settings import UMambaBotSettings, UMambaEncSettings


class UMambaBot(UNet):
    """U-Mamba Bot: a U-Net of residual blocks with one Mamba layer on the bottleneck.

    Args:
        in_channels: image channels.
        num_classes: channels of the logits.
        settings: the options; None: the defaults.
        configuration: the plan's configuration. Give either this or `patch_size`.
        patch_size: (Z, Y, X) or (Y, X), voxels; see `configuration_for_patch`.
        spacing: mm for each axis of `patch_size`; None: 1 mm on all axes.
        deep_supervision: start value of the attribute of that name.

    Raises:
        UserError: the configuration makes no U-shaped network, or the patch size cannot be used.

    >>> import torch
    >>> network = UMambaBot(in_channels=1, num_classes=3, patch_size=(16, 16), deep_supervision=False)
    >>> network(torch.zeros(1, 1, 16, 16)).shape
    torch.Size([1, 3, 16, 16])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        settings: UMambaBotSettings | None = None,
        *,
        configuration: Configuration | None = None,
        patch_size: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        deep_supervision: bool = True,
    ) -> None:
        options = settings or UMambaBotSettings()
        plan = choose_configuration(configuration, patch_size, spacing, in_channels=in_channels)
        stage_sizes(plan)
        layer = mixer_layer(options, plan.dim, plan.features_per_stage[-1])
        encoder = _build_encoder(options, plan, in_channels, layers=None)
        super().__init__(encoder, _build_decoder(options, plan, num_classes), plan, fixed_size=False)
        self.mamba_layer = layer
        self.deep_supervision = deep_supervision
        initialise_convolutions(self)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of all stages; the Mamba layer is applied to the last one."""
        *features, bottleneck = self.encoder(x)
        return [*features, self.mamba_layer(bottleneck)]


class UMambaEnc(UNet):
    """U-Mamba Enc: a U-Net of residual blocks with a Mamba layer after the encoder stages in `settings.mamba_stages`.

    If a stage's feature map has no more voxels than channels, its Mamba layer takes the channels as tokens, and the
    model width is the number of voxels. The network then accepts images of the configuration's patch size only, unless
    the mixer is a convolution, which has no tokens.

    Args:
        in_channels: image channels.
        num_classes: channels of the logits.
        settings: the options; None: the defaults.
        configuration: the plan's configuration. Give either this or `patch_size`.
        patch_size: (Z, Y, X) or (Y, X), voxels; see `configuration_for_patch`.
        spacing: mm for each axis of `patch_size`; None: 1 mm on all axes.
        deep_supervision: start value of the attribute of that name.

    Raises:
        UserError: the configuration makes no U-shaped network, a stage in `mamba_stages` does not exist, or the patch
            size cannot be used.

    >>> import torch
    >>> network = UMambaEnc(in_channels=2, num_classes=3, patch_size=(8, 16, 16))
    >>> [tuple(logits.shape) for logits in network(torch.zeros(1, 2, 8, 16, 16))]
    [(1, 3, 8, 16, 16), (1, 3, 4, 8, 8)]
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        settings: UMambaEncSettings | None = None,
        *,
        configuration: Configuration | None = None,
        patch_size: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        deep_supervision: bool = True,
    ) -> None:
        options = settings or UMambaEncSettings()
        plan = choose_configuration(configuration, patch_size, spacing, in_channels=in_channels)
        sizes = stage_sizes(plan)
        with_mixer = mamba_stages(options.mamba_stages, plan) if options.mixer != "identity" else ()
        layers: list[nn.Module] = []
        fixed_size = False
        for s, (size, features) in enumerate(zip(sizes, plan.features_per_stage, strict=True)):
            voxels = math.prod(size)
            channel_token = voxels <= features
            if s in with_mixer:
                fixed_size |= channel_token and options.mixer != "convolution"
                layers.append(mixer_layer(options, plan.dim, features, voxels if channel_token else None))
            else:
                layers.append(nn.Identity())
        encoder = _build_encoder(options, plan, in_channels, layers)
        super().__init__(encoder, _build_decoder(options, plan, num_classes), plan, fixed_size=fixed_size)
        self.deep_supervision = deep_supervision
        initialise_convolutions(self)


def build_umamba_bot(
    settings: UMambaBotSettings, configuration: Configuration, in_channels: int, num_classes: int
) -> UMambaBot:
    """Build U-Mamba Bot; see `UMambaBot`."""
    return UMambaBot(in_channels, num_classes, settings, configuration=configuration)


def build_umamba_enc(
    settings: UMambaEncSettings, configuration: Configuration, in_channels: int, num_classes: int
) -> UMambaEnc:
    """Build U-Mamba Enc; see `UMambaEnc`."""
    return UMambaEnc(in_channels, num_classes, settings, configuration=configuration)


def mamba_stages(choice: str | tuple[int, ...], configuration: Configuration) -> tuple[int, ...]:
    """Return the encoder stages of U-Mamba Enc that have a Mamba layer.

    Args:
        choice: `mamba_stages` of the settings. official: every stage in 3D; in 2D every second one, counted so that the
            last stage has one.
        configuration: the plan's configuration.

    Raises:
        UserError: a listed stage does not exist.
    """
    stages = range(configuration.num_stages)
    if isinstance(choice, tuple):
        absent = sorted(set(choice) - set(stages))
        if absent:
            raise UserError(
                f"architecture.mamba_stages={list(choice)}: {', '.join(map(str, absent))} does not exist. The plan's "
                f"stages are 0 to {stages[-1]}."
            )
        return choice
    if choice == "official" and configuration.dim == 2:
        return tuple(s for s in stages if (stages[-1] - s) % 2 == 0)
    return tuple(stages)


def block_counts(blocks: str, configuration: Configuration) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the number of residual blocks in each encoder stage and in each decoder stage (from the bottleneck up).

    Args:
        blocks: `blocks` of the settings. official: the plan's numbers, but one block in the deeper half of the encoder
            and in the decoder stages nearest to full resolution. paper: two everywhere.
        configuration: the plan's configuration.
    """
    n = configuration.num_stages
    if blocks == "paper":
        return (2,) * n, (2,) * (n - 1)
    encoder = tuple(1 if s >= math.ceil(n / 2) else count for s, count in enumerate(configuration.encoder_blocks))
    decoder = tuple(1 if s >= math.ceil(n / 2) else count for s, count in enumerate(configuration.decoder_blocks))
    return encoder, decoder


def has_full_resolution_skip(options: UMambaSettings, configuration: Configuration) -> bool:
    """Return whether the decoder stage at full resolution has a skip, which the released 2D code leaves out."""
    return options.full_resolution_skip == "always" or configuration.dim == 3


def _build_encoder(
    options: UMambaSettings, configuration: Configuration, in_channels: int, layers: list[nn.Module] | None
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


def _build_decoder(options: UMambaSettings, configuration: Configuration, num_classes: int) -> Decoder:
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
        full_resolution_skip=has_full_resolution_skip(options, configuration),
    )
