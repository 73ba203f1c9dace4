"""Conversion between state dicts of the official networks (nnU-Net, U-Mamba, its MONAI trainers) and this project's.

The official networks register many tensors under two names. Without the second name, and without the prefix that
distributed training or torch.compile adds, their names equal ours.
"""

from collections.abc import Mapping

from torch import Tensor

PREFIXES = ("_orig_mod.", "module.")


def official_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert an official state dict for `load_state_dict(..., strict=True)` of this project's network.

    It drops the second names, `decoder.encoder.*` (the encoder) and `*.all_modules.*` (conv and norm), and UNETR's
    `*.norm_cross_attn.*`, which newer MONAI versions store and never use.

    Args:
        state: `network_weights` of an official checkpoint.
    """
    kept = {}
    for key, tensor in state.items():
        name = key
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        unused = name.startswith("decoder.encoder.") or ".all_modules." in name or ".norm_cross_attn." in name
        if not unused:
            kept[name] = tensor
    return kept


# Beginnings of names that tell the networks apart; the first one that is found decides.
_FIRST_KEYS = (
    ("encoder.mamba_layers.", "umamba_enc"),
    ("mamba_layer.", "umamba_bot"),
    ("swinViT.", "swinunetr"),
    ("vit.", "unetr"),
    ("convInit.", "segresnet"),
    ("encoder.stages.0.blocks.", "resenc_unet"),
    ("encoder.stages.0.0.convs.", "unet"),
)


def official_architecture(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the architecture that weights belong to, by their names; None if there is none.

    Args:
        state: result of `official_state_dict`.
    """
    return next((name for start, name in _FIRST_KEYS if any(key.startswith(start) for key in state)), None)


def to_official_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the weights of `unet` or `resenc_unet` to nnU-Net's state dict; the reverse of `official_state_dict`.

    It adds nnU-Net's second names, `all_modules.0` and `.1` for conv and norm of each block and `decoder.encoder.*` for
    the encoder. The order of the entries is not nnU-Net's.

    Args:
        state: state dict of this project's network.
    """
    named = dict(state)
    for key, tensor in state.items():
        block, _, rest = key.rpartition(".conv.")
        index = 0
        if not block:
            block, _, rest = key.rpartition(".norm.")
            index = 1
        if block:
            named[f"{block}.all_modules.{index}.{rest}"] = tensor
    return named | {f"decoder.{key}": tensor for key, tensor in named.items() if key.startswith("encoder.")}
