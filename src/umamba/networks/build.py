"""From the plan's configuration and an architecture's options to a network."""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from umamba.io import UserError
from umamba.networks.depth_two import protect_gradients
from umamba.planning import Configuration

# name -> module and function; imported when chosen, so that MONAI is needed for its own networks only
BUILDERS = {
    "umamba_bot": ("umamba.networks.umamba", "build_umamba_bot"),
    "umamba_enc": ("umamba.networks.umamba", "build_umamba_enc"),
    "unet": ("umamba.networks.unet", "build_unet"),
    "resenc_unet": ("umamba.networks.unet", "build_resenc_unet"),
    "segresnet": ("umamba.networks.monai_nets", "build_segresnet"),
    "unetr": ("umamba.networks.monai_nets", "build_unetr"),
    "swinunetr": ("umamba.networks.monai_nets", "build_swinunetr"),
}


_OWN = re.compile(r"umamba\.networks\.[a-z][a-z0-9_]*:[a-z][a-z0-9_]*")


def architecture_names() -> tuple[str, ...]:
    """Return the names that `build_network` knows."""
    return tuple(BUILDERS)


def build_network(
    architecture: Mapping[str, Any],
    configuration: Configuration,
    in_channels: int,
    num_classes: int,
    deep_supervision: bool = True,
) -> nn.Module:
    """Build a network; a pure function of its arguments and torch's random state.

    Args:
        architecture: plain dict of `configs/architecture/*.yaml`: `name` (one of `architecture_names()`, or
            umamba.networks.MODULE:FUNCTION for one added there), and the options of that architecture. Modules
            elsewhere are refused: the name may come from a checkpoint, which must not choose what code runs.
        configuration: the plan's configuration (dimension, patch size, strides, kernels, features).
        in_channels: image channels.
        num_classes: channels of the logits.
        deep_supervision: start value of the network's settable attribute of that name.

    Returns:
        A module that maps images (B, C, *S), S = (Z, Y, X) or (Y, X), to logits (B, num_classes, *S), or, where
        `supports_deep_supervision` and `deep_supervision` are True, to a list of logits, full resolution first.
        `fixed_patch_size` is the only S that fits the weights, or None.

    Raises:
        UserError: unknown architecture or option, or a plan that the architecture cannot be built for.
    """
    options = dict(architecture)
    name = options.pop("name", None)
    if name in BUILDERS:
        module, function = BUILDERS[name]
    elif isinstance(name, str) and _OWN.fullmatch(name):
        module, function = name.split(":")
    else:
        known = ", ".join(BUILDERS)
        raise UserError(
            f"architecture.name: {name!r} is unknown; give one of {known}, or umamba.networks.MODULE:FUNCTION"
        )
    try:
        builder = getattr(import_module(module), function)
    except AttributeError as error:
        raise UserError(f"architecture.name: {name}: {module} has no function {function}") from error
    except ModuleNotFoundError as error:
        if name not in BUILDERS and error.name in (module, module.split(".")[0]):
            raise UserError(f"architecture.name: {name}: there is no module {module}; write it there") from error
        if (error.name or "").split(".")[0] != "monai":
            raise
        raise UserError(f"architecture.name: {name} needs MONAI, which is not installed: pip install monai") from error
    network = builder(options, configuration, in_channels, num_classes)
    protect_gradients(network)
    network.deep_supervision = deep_supervision and network.supports_deep_supervision
    return network
