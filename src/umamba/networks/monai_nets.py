"""SegResNet, UNETR and SwinUNETR from MONAI, as U-Mamba's trainers build them (paper section 3.2).

These networks take only sizes that are multiples of a number. Images are therefore zero-padded evenly on both sides and
the logits are cropped back, so that the plan's patch size stays unchanged. Parameter names are MONAI's.
"""

import inspect
import math
import typing
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import UNETR, SegResNet, SwinUNETR
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor, nn

from umamba.io import UserError
from umamba.planning import Configuration
from umamba.settings import SegResNetSettings, SwinUNETRSettings, UNETRSettings

Corner = tuple[int, int, int]
# First voxel of each of the eight sub-grids within a cube of 2x2x2. MONAI 1.3 repeats two of them and omits two.
CORNERS_13: tuple[Corner, ...] = (
    (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1),
)  # fmt: skip
CORNERS_16: tuple[Corner, ...] = (
    (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1),
)  # fmt: skip


class _Padded(nn.Module):
    """Mixin for a MONAI network: pad the images, run the network, crop the logits.

    Attributes:
        multiple: each axis of MONAI's input must be a multiple of this.
        bottleneck_channels: channels of `bottleneck`.
        fixed_patch_size: the only size of the spatial axes that fits the weights; None: every size does.
    """

    supports_deep_supervision = False
    deep_supervision = False
    multiple: int
    bottleneck_channels: int
    fixed_patch_size: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, *S) to logits (B, num_classes, *S).

        Raises:
            UserError: S does not fit the weights.
        """
        padded, crop = self._pad(x)
        return super().forward(padded)[crop]

    def bottleneck(self, x: Tensor) -> Tensor:
        """Map images (B, C, *S) to the deepest features (B, C', *S'), or tokens (B, C', L); errors as `forward`."""
        return self._encoded(self._pad(x)[0])

    def segment_with_bottleneck(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` returns, and the deepest features of the same pass; errors as `forward`."""
        found: list[Any] = []
        hook = self._deepest().register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            logits = self(x)
        finally:
            hook.remove()
        return logits, self._features(found[-1])

    def _deepest(self) -> nn.Module:
        """Return the module whose output holds the deepest features."""
        raise NotImplementedError

    def _encoded(self, x: Tensor) -> Tensor:
        """Map padded images to the deepest features."""
        raise NotImplementedError

    def _features(self, output: Any) -> Tensor:
        """Return the deepest features in the output of `_deepest`."""
        return typing.cast(Tensor, output)

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Return images padded to MONAI's size, and the part of the logits that belongs to the images."""
        size = tuple(x.shape[2:])
        if self.fixed_patch_size is not None and size != self.fixed_patch_size:
            raise UserError(
                f"input size {size}: the weights of this network fit the plan's patch size {self.fixed_patch_size} "
                "only, because it has a position embedding. Use tiles of that size."
            )
        missing = [inner - axis for inner, axis in zip(round_up(size, self.multiple), size, strict=True)]
        padding = [side for total in reversed(missing) for side in (total // 2, total - total // 2)]
        crop = tuple(slice(total // 2, total // 2 + axis) for total, axis in zip(missing, size, strict=True))
        return F.pad(x, padding), (..., *crop)


def round_up(size: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Return the size (voxels) with each axis rounded up to a multiple of `multiple`."""
    return tuple(math.ceil(axis / multiple) * multiple for axis in size)


class PaddedSegResNet(_Padded, SegResNet):
    """SegResNet for images of any size."""

    def _deepest(self) -> nn.Module:
        return self.down_layers[-1]

    def _encoded(self, x: Tensor) -> Tensor:
        return self.encode(x)[0]


class PaddedUNETR(_Padded, UNETR):
    """UNETR for images of one size, which may be any."""

    def _deepest(self) -> nn.Module:
        return self.vit

    def _encoded(self, x: Tensor) -> Tensor:
        return self._features(self.vit(x))

    def _features(self, output: Any) -> Tensor:
        tokens_BLC: Tensor = output[0]
        return tokens_BLC.transpose(1, 2)


class PaddedSwinUNETR(_Padded, SwinUNETR):
    """SwinUNETR for images of any size."""

    def _deepest(self) -> nn.Module:
        return self.encoder10

    def _encoded(self, x: Tensor) -> Tensor:
        return typing.cast(Tensor, self.encoder10(self.swinViT(x, self.normalize)[-1]))


def build_segresnet(
    settings: SegResNetSettings, configuration: Configuration, in_channels: int, num_classes: int
) -> nn.Module:
    """Build SegResNet (Myronenko, 2018).

    Args:
        settings: the options.
        configuration: the plan's configuration; only the number of axes matters.
        in_channels: image channels.
        num_classes: channels of the logits.
    """
    network = PaddedSegResNet(
        spatial_dims=configuration.dim,
        init_filters=settings.init_filters,
        in_channels=in_channels,
        out_channels=num_classes,
        blocks_down=settings.blocks_down,
        blocks_up=settings.blocks_up,
    )
    network.multiple = 2 ** len(settings.blocks_up)
    network.bottleneck_channels = settings.init_filters * 2 ** (len(settings.blocks_down) - 1)
    return network


def build_unetr(settings: UNETRSettings, configuration: Configuration, in_channels: int, num_classes: int) -> nn.Module:
    """Build UNETR (Hatamizadeh et al., 2022); because of its position embedding it takes the plan's patch size only.

    Args:
        settings: the options.
        configuration: the plan's configuration; its patch size matters.
        in_channels: image channels.
        num_classes: channels of the logits.
    """
    network = PaddedUNETR(
        in_channels=in_channels,
        out_channels=num_classes,
        img_size=round_up(configuration.patch_size, 16),
        feature_size=settings.feature_size,
        hidden_size=settings.hidden_size,
        mlp_dim=settings.mlp_dim,
        num_heads=settings.num_heads,
        proj_type="conv",
        norm_name="instance",
        res_block=True,
        dropout_rate=0.0,
        spatial_dims=configuration.dim,
        qkv_bias=False,
    )
    network.multiple = 16
    network.bottleneck_channels = settings.hidden_size
    network.fixed_patch_size = tuple(configuration.patch_size)
    for block in network.vit.blocks:
        if hasattr(block, "norm_cross_attn"):  # MONAI > 1.3 has weights for cross-attention here; UNETR never uses them
            block.norm_cross_attn = nn.Identity()
    return network


class PatchMerging(PatchMergingV2):
    """Halve each axis in 3D: concatenate the sub-grids at `corners` as channels, norm, linear map. 2D is MONAI's own.

    Attributes:
        corners: first voxel of each sub-grid.
    """

    corners: tuple[Corner, ...]

    def forward(self, x: Tensor) -> Tensor:
        """Map channels-last features (B, Z, Y, X, C) to (B, Z/2, Y/2, X/2, 2C); odd axes are padded at their end."""
        if x.ndim == 4:
            return super().forward(x)
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        merged = torch.cat([x[:, z::2, y::2, w::2] for z, y, w in self.corners], dim=-1)
        return self.reduction(self.norm(merged))


class PatchMerging13(PatchMerging):
    """The sub-grids of MONAI 1.3, which the paper used."""

    corners = CORNERS_13


class PatchMerging16(PatchMerging):
    """The sub-grids of MONAI 1.6: all eight."""

    corners = CORNERS_16


def build_swinunetr(
    settings: SwinUNETRSettings, configuration: Configuration, in_channels: int, num_classes: int
) -> nn.Module:
    """Build SwinUNETR (Hatamizadeh et al., 2022).

    Args:
        settings: the options.
        configuration: the plan's configuration.
        in_channels: image channels.
        num_classes: channels of the logits.

    Raises:
        UserError: the patch leaves a single voxel in the last stage.
    """
    inner = round_up(configuration.patch_size, 32)
    if math.prod(inner) == 32**configuration.dim:
        raise UserError(
            f"configuration {configuration.name}: patch size {tuple(configuration.patch_size)}: leaves a single voxel "
            "in SwinUNETR's last stage, which InstanceNorm refuses. Use a patch with an axis above 32 voxels."
        )
    extra: dict[str, Any] = {"downsample": PatchMerging13 if settings.monai_compat == "1.3" else PatchMerging16}
    if "img_size" in inspect.signature(SwinUNETR).parameters:  # MONAI 1.3 requires it; later versions refuse it
        extra["img_size"] = inner
    network = PaddedSwinUNETR(
        in_channels=in_channels,
        out_channels=num_classes,
        feature_size=settings.feature_size,
        depths=settings.depths,
        num_heads=settings.num_heads,
        norm_name="instance",
        spatial_dims=configuration.dim,
        **extra,
    )
    network.multiple = 32
    network.bottleneck_channels = 16 * settings.feature_size
    return network
