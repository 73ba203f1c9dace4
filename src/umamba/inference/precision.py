"""Which precision a network runs in where the settings leave it open; training and prediction choose alike."""

from contextlib import AbstractContextManager, nullcontext

import torch

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose_precision(device: torch.device) -> str:
    """Return the precision that a device computes fast.

    CUDA: bfloat16 autocast, or float16 autocast on cards before Ampere. CPU: bfloat16 autocast where the processor has
    instructions for it. Everything else: float32.

    Args:
        device: where the network runs.

    Returns:
        Lightning's name: bf16-mixed, 16-mixed or 32-true.

    >>> choose_precision(torch.device("meta"))
    '32-true'
    """
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if device.type == "cpu" and cpu_has_bfloat16() else "32-true"


def cpu_has_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context in which a network runs.

    Args:
        device: where the network runs.
        precision: Lightning's name of the precision; other names than bf16-mixed and 16-mixed change nothing.
    """
    if precision in _AUTOCAST:
        return torch.autocast(device.type, _AUTOCAST[precision])
    return nullcontext()
