"""`build_network`: from an architecture's settings and the plan's configuration to a network."""

import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from inspect import signature
from typing import Any

from torch import nn

from umamba.io import UserError
from umamba.networks.depth_two import protect_gradients
from umamba.networks.from_patch import choose_configuration
from umamba.planning import Configuration
from umamba.settings import ArchitectureSettings, CustomArchitectureSettings, Settings, parse, read_architecture

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

_CUSTOM_NAME = re.compile(r"umamba\.networks\.[a-z][a-z0-9_]*:[a-z][a-z0-9_]*")


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
            configs/architecture/*.yaml. The name umamba.networks.MODULE:FUNCTION chooses a backbone that a user added
            there; modules elsewhere are refused because a checkpoint holds this name and must not run any code.
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
    options = _custom_options(settings, builder) if isinstance(settings, CustomArchitectureSettings) else settings
    network: Any = builder(options, chosen, in_channels, num_classes)
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
        settings: the name umamba.networks.MODULE:FUNCTION and the options as plain values.

    Returns:
        The options as the module's record.

    Raises:
        UserError: no such module or function, or a function without a settings record.
        InvalidSettings: an unknown option or a wrong value.
    """
    return _custom_options(settings, _builder(settings.name))


def _custom_options(settings: CustomArchitectureSettings, builder: Builder) -> Settings:
    parameters = list(signature(builder).parameters)
    record = typing.get_type_hints(builder).get(parameters[0]) if parameters else None
    if not (isinstance(record, type) and issubclass(record, Settings)):
        raise UserError(
            f"architecture.name={settings.name}: the function's first parameter must be annotated with its settings, a "
            "frozen dataclass that inherits umamba.settings.ArchitectureSettings. See docs/own-architecture.md."
        )
    named = any(entry.name == "name" for entry in fields(record))
    values = {"name": settings.name, **settings.options} if named else settings.options
    return parse(record, values, "architecture")


def _builder(name: str) -> Builder:
    """Import the function that builds an architecture."""
    if name in BUILDERS:
        module, function = BUILDERS[name]
    elif _CUSTOM_NAME.fullmatch(name):
        module, function = name.split(":")
    else:
        raise UserError(
            f"architecture.name={name}: must be one of {', '.join(BUILDERS)}, or umamba.networks.MODULE:FUNCTION."
        )
    try:
        builder: Builder = getattr(import_module(module), function)
    except AttributeError as error:
        raise UserError(f"architecture.name={name}: the module {module} has no function {function}.") from error
    except ModuleNotFoundError as error:
        if name not in BUILDERS and error.name in (module, module.split(".")[0]):
            path = f"src/{module.replace('.', '/')}.py"
            raise UserError(f"architecture.name={name}: there is no module {module}. Write it as {path}.") from error
        if (error.name or "").split(".")[0] != "monai":
            raise
        raise UserError(f"architecture.name={name}: needs MONAI, which is not installed: pip install monai") from error
    return builder
