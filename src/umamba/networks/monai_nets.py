"""SegResNet, UNETR and SwinUNETR from MONAI, as U-Mamba's trainers build them (paper section 3.2).

Inputs are zero-padded evenly on both sides up to the sizes a network can take, and its logits cropped back, so that the
plan's patch stays what it is. Parameter names are MONAI's. Defaults are those of the official trainers.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.networks.nets import UNETR, SegResNet, SwinUNETR
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor, nn

from umamba.io import UserError
from umamba.networks.options import parse_options
from umamba.planning import Configuration

Corner = tuple[int, int, int]
# Where in a cube of 2x2x2 voxels each of the eight sub-grids starts. MONAI 1.3 repeats two and leaves two out.
CORNERS_13: tuple[Corner, ...] = (
    (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1),
)  # fmt: skip
CORNERS_16: tuple[Corner, ...] = (
    (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1),
)  # fmt: skip


class _Padded(nn.Module):
    """Mixed into a MONAI network: pad, run, crop.

    Attributes:
        multiple: what each axis of the network's input must be a multiple of.
        fixed_patch_size: the only input size that fits the weights, or None.
    """

    supports_deep_supervision = False
    deep_supervision = False
    multiple: int
    fixed_patch_size: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, *S) to logits (B, num_classes, *S).

        Raises:
            UserError: S does not fit the weights.
        """
        size = tuple(x.shape[2:])
        if self.fixed_patch_size is not None and size != self.fixed_patch_size:
            raise UserError(
                f"input size {size}: the weights of this network are tied to the plan's patch size "
                f"{self.fixed_patch_size} (position embedding); use tiles of that size"
            )
        missing = [inner - axis for inner, axis in zip(round_up(size, self.multiple), size, strict=True)]
        padding = [side for total in reversed(missing) for side in (total // 2, total - total // 2)]
        logits = super().forward(F.pad(x, padding))
        crop = tuple(slice(total // 2, total // 2 + axis) for total, axis in zip(missing, size, strict=True))
        return logits[(..., *crop)]


def round_up(size: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Return the size with each axis rounded up to a multiple."""
    return tuple(math.ceil(axis / multiple) * multiple for axis in size)


class PaddedSegResNet(_Padded, SegResNet):
    """SegResNet of any input size."""


class PaddedUNETR(_Padded, UNETR):
    """UNETR for one patch size of any extent."""


class PaddedSwinUNETR(_Padded, SwinUNETR):
    """SwinUNETR of any input size."""


@dataclass(frozen=True)
class SegResNetOptions:
    """Options of SegResNet; the YAML says what each one does."""

    init_filters: int = 32
    blocks_down: tuple[int, ...] = (1, 2, 2, 4)
    blocks_up: tuple[int, ...] = (1, 1, 1)


def build_segresnet(
    options: Mapping[str, Any], configuration: Configuration, in_channels: int, num_classes: int
) -> nn.Module:
    """Build SegResNet (Myronenko, 2018)."""
    chosen = parse_options(SegResNetOptions, options, "segresnet")
    if len(chosen.blocks_up) != len(chosen.blocks_down) - 1:
        raise UserError("architecture.blocks_up: give one number less than in architecture.blocks_down")
    if chosen.init_filters % 8:
        raise UserError(f"architecture.init_filters: {chosen.init_filters} is not a multiple of 8 (group norm)")
    network = PaddedSegResNet(
        spatial_dims=configuration.dim,
        init_filters=chosen.init_filters,
        in_channels=in_channels,
        out_channels=num_classes,
        blocks_down=chosen.blocks_down,
        blocks_up=chosen.blocks_up,
    )
    network.multiple = 2 ** len(chosen.blocks_up)
    return network


@dataclass(frozen=True)
class UNETROptions:
    """Options of UNETR; the YAML says what each one does."""

    feature_size: int = 16
    hidden_size: int = 768
    mlp_dim: int = 3072
    num_heads: int = 12


def build_unetr(
    options: Mapping[str, Any], configuration: Configuration, in_channels: int, num_classes: int
) -> nn.Module:
    """Build UNETR (Hatamizadeh et al., 2022); its position embedding ties it to the plan's patch size."""
    chosen = parse_options(UNETROptions, options, "unetr")
    if chosen.hidden_size % chosen.num_heads:
        raise UserError(f"architecture.hidden_size: {chosen.hidden_size} is not a multiple of num_heads")
    network = PaddedUNETR(
        in_channels=in_channels,
        out_channels=num_classes,
        img_size=round_up(configuration.patch_size, 16),
        feature_size=chosen.feature_size,
        hidden_size=chosen.hidden_size,
        mlp_dim=chosen.mlp_dim,
        num_heads=chosen.num_heads,
        proj_type="conv",
        norm_name="instance",
        res_block=True,
        dropout_rate=0.0,
        spatial_dims=configuration.dim,
        qkv_bias=False,
    )
    network.multiple = 16
    network.fixed_patch_size = tuple(configuration.patch_size)
    for block in network.vit.blocks:
        if hasattr(block, "norm_cross_attn"):  # MONAI > 1.3 makes weights for cross-attention that UNETR never runs
            block.norm_cross_attn = nn.Identity()
    return network


@dataclass(frozen=True)
class SwinUNETROptions:
    """Options of SwinUNETR; the YAML says what each one does."""

    feature_size: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    monai_compat: Literal["1.3", "1.6"] = "1.3"


class PatchMerging(PatchMergingV2):
    """Halve each axis: the sub-grids at `corners` become channels, then norm and a linear map (3D; 2D is MONAI's)."""

    corners: tuple[Corner, ...]

    def forward(self, x: Tensor) -> Tensor:
        """Map channels-last features (B, Z, Y, X, C) to (B, Z/2, Y/2, X/2, 2C), odd axes padded at their end."""
        if x.ndim == 4:
            return super().forward(x)
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        merged = torch.cat([x[:, z::2, y::2, w::2] for z, y, w in self.corners], dim=-1)
        return self.reduction(self.norm(merged))


class PatchMerging13(PatchMerging):
    """As MONAI 1.3, which the paper used."""

    corners = CORNERS_13


class PatchMerging16(PatchMerging):
    """As MONAI 1.6: all eight sub-grids."""

    corners = CORNERS_16


def build_swinunetr(
    options: Mapping[str, Any], configuration: Configuration, in_channels: int, num_classes: int
) -> nn.Module:
    """Build SwinUNETR (Hatamizadeh et al., 2022)."""
    chosen = parse_options(SwinUNETROptions, options, "swinunetr")
    for key, values in (("depths", chosen.depths), ("num_heads", chosen.num_heads)):
        if len(values) != 4 or 0 in values:
            raise UserError(f"architecture.{key}: give four positive numbers, one a stage")
    if chosen.feature_size % 12 or any(chosen.feature_size * 2**s % n for s, n in enumerate(chosen.num_heads)):
        raise UserError(f"architecture.feature_size: {chosen.feature_size} is not a multiple of 12 and of num_heads")
    inner = round_up(configuration.patch_size, 32)
    if math.prod(inner) == 32**configuration.dim:
        raise UserError(
            f"configuration {configuration.name}: patch size {tuple(configuration.patch_size)} leaves one voxel in "
            "SwinUNETR's last stage, which InstanceNorm refuses; one axis must be larger than 32"
        )
    settings: dict[str, Any] = {"downsample": PatchMerging13 if chosen.monai_compat == "1.3" else PatchMerging16}
    if "img_size" in inspect.signature(SwinUNETR).parameters:  # MONAI 1.3 asks for it; later versions refuse it
        settings["img_size"] = inner
    network = PaddedSwinUNETR(
        in_channels=in_channels,
        out_channels=num_classes,
        feature_size=chosen.feature_size,
        depths=chosen.depths,
        num_heads=chosen.num_heads,
        norm_name="instance",
        spatial_dims=configuration.dim,
        **settings,
    )
    network.multiple = 32
    return network
