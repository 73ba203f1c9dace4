"""`build_network`: from an architecture's settings and the plan's configuration to a network."""

import typing
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from umamba.io import UserError
from umamba.networks.depth_two import protect_gradients
from umamba.networks.from_patch import choose_configuration
from umamba.planning import Configuration
from umamba.settings import ArchitectureSettings, CustomArchitectureSettings, Settings, read_architecture
from umamba.settings.own_code import own_function, own_options

Architecture = ArchitectureSettings | str | Mapping[str, Any]
Builder = Callable[[Any, Configuration, int, int], nn.Module]

# name -> module and function. The module is imported when it is chosen, so that only MONAI's networks need MONAI.
BUILDERS = {
    "umamba_bot": ("umamba.networks.umamba", "build_umamba_bot"),
    "umamba_enc": ("umamba.networks.umamba", "build_umamba_enc"),
    "unet": ("umamba.networks.unet", "build_unet"),
    "resenc_unet": ("umamba.networks.unet", "build_resenc_unet"),
    "segresnet": ("umamba.networks.monai_nets", "build_segresnet"),
    "unetr": ("umamba.networks.monai_nets", "build_unetr"),
    "swinunetr": ("umamba.networks.monai_nets", "build_swinunetr"),
}


def architecture_names() -> tuple[str, ...]:
    """Return the short names that `build_network` knows."""
    return tuple(BUILDERS)


def build_network(
    architecture: Architecture,
    configuration: Configuration | None = None,
    in_channels: int = 1,
    num_classes: int = 2,
    deep_supervision: bool = True,
    *,
    patch_size: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
) -> nn.Module:
    """Build a network. The result depends only on the arguments and torch's random state.

    Args:
        architecture: a settings record, a name out of `architecture_names()`, or plain values with a `name` as in
            configs/architecture/*.yaml. The name package.module:function, or an entry point of the group
            umamba.backbones, chooses a backbone of the user's own, whose module is imported. If the name comes from a
            file, `read_checkpoint` checks first that the user trusts it.
        configuration: the plan's configuration. Give either this or `patch_size`.
        in_channels: image channels.
        num_classes: channels of the logits.
        deep_supervision: start value of the network's settable attribute of that name.
        patch_size: (Z, Y, X) or (Y, X), voxels; strides, kernels, features and blocks follow from it by nnU-Net's rules
            (see `configuration_for_patch`).
        spacing: mm for each axis of `patch_size`; None: 1 mm on all axes.

    Returns:
        A module that maps images (B, C, *S), S = (Z, Y, X) or (Y, X), to logits (B, num_classes, *S). If
        `supports_deep_supervision` and `deep_supervision` are both True, it returns a list of logits, full resolution
        first. `fixed_patch_size` is the only S that fits the weights, or None.

    Raises:
        UserError: an unknown architecture or option, a configuration that the architecture cannot be built for, or a
            patch size that the strides do not divide.

    >>> import torch
    >>> from umamba.settings import UMambaEncSettings
    >>> network = build_network("umamba_bot", patch_size=(32, 32), num_classes=3, deep_supervision=False)
    >>> network(torch.zeros(1, 1, 32, 32)).shape
    torch.Size([1, 3, 32, 32])
    >>> network = build_network(UMambaEncSettings(d_state=4), patch_size=(8, 16, 16), in_channels=2)
    >>> [tuple(logits.shape) for logits in network(torch.zeros(1, 2, 8, 16, 16))]
    [(1, 2, 8, 16, 16), (1, 2, 4, 8, 8)]
    """
    settings = read_architecture(architecture)
    chosen = choose_configuration(
        configuration,
        patch_size,
        spacing,
        in_channels=in_channels,
        residual_encoder=settings.name == "resenc_unet",
    )
    builder = _builder(settings.name)
    options = custom_settings(settings) if isinstance(settings, CustomArchitectureSettings) else settings
    network: Any = builder(options, chosen, in_channels, num_classes)
    _check_contract(network, settings.name)
    # Layers of MONAI and of user modules are plain nn.Conv3d, whose bfloat16 gradients are wrong on some CPUs where a
    # feature map is two voxels deep; their class is changed here because their code is not ours (see depth_two.py).
    protect_gradients(network)
    network.deep_supervision = deep_supervision and network.supports_deep_supervision
    return typing.cast(nn.Module, network)


def custom_settings(settings: CustomArchitectureSettings) -> Settings:
    """Check the options of a user's backbone against the record in its module, without building the network.

    The record is the annotation of the function's first parameter: a frozen dataclass that inherits
    `umamba.settings.Settings` (or `ArchitectureSettings`, which adds the name).

    Args:
        settings: the name package.module:function and the options as plain values.

    Returns:
        The options as the module's record.

    Raises:
        UserError: no such module or function, or a function without a settings record.
        InvalidSettings: an unknown option or a wrong value.
    """
    builder = own_function(settings.name, "architecture.name")
    return own_options(builder, settings.name, settings.options, "architecture", "docs/own-architecture.md")


def _builder(name: str) -> Builder:
    """Import the function that builds an architecture."""
    if name not in BUILDERS:
        return own_function(name, "architecture.name")
    module, function = BUILDERS[name]
    try:
        return typing.cast(Builder, getattr(import_module(module), function))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "monai":
            raise
        raise UserError(f"architecture.name={name}: needs MONAI, which is not installed: pip install monai") from error


def _check_contract(network: Any, name: str) -> None:
    """Refuse a network without the attributes that training and prediction read."""
    missing = [each for each in ("supports_deep_supervision", "fixed_patch_size") if not hasattr(network, each)]
    if not isinstance(network, nn.Module) or missing:
        lacks = f"has no {' and no '.join(missing)}" if isinstance(network, nn.Module) else "is no torch.nn.Module"
        raise UserError(f"architecture.name={name}: what it builds {lacks}. See docs/own-architecture.md.")
