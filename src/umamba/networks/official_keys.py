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
