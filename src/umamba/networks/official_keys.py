"""State dicts of the official networks (nnU-Net, U-Mamba and its MONAI trainers) under this project's names.

The official networks register many tensors twice; without the second names, and without the prefix that distributed
training adds, their names are ours.
"""

from collections.abc import Mapping

from torch import Tensor

PREFIXES = ("_orig_mod.", "module.")


def official_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official state dict (`network_weights` of a checkpoint) for `load_state_dict(..., strict=True)`.

    Dropped are the aliases: `decoder.encoder.*` (the encoder again) and `*.all_modules.*` (conv and norm again), and
    UNETR's `*.norm_cross_attn.*` that newer MONAI versions store and never use.
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


# Parts of names that only one of the networks has; the first that is found decides.
_TELLING = (
    ("encoder.mamba_layers.", "umamba_enc"),
    ("mamba_layer.", "umamba_bot"),
    ("swinViT.", "swinunetr"),
    ("vit.", "unetr"),
    ("convInit.", "segresnet"),
    ("encoder.stages.0.blocks.", "resenc_unet"),
    ("encoder.stages.0.0.convs.", "unet"),
)


def official_architecture(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the architecture whose weights these are, from their names alone; None if it is none of ours.

    Args:
        state: what `official_state_dict` returned.
    """
    return next((name for start, name in _TELLING if any(key.startswith(start) for key in state)), None)


def to_official_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of `unet` or `resenc_unet` with nnU-Net's second names added, in no particular order.

    The reverse of `official_state_dict`: each conv and norm of a block again as `all_modules.0` and `.1`, and the
    encoder again inside the decoder.
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
