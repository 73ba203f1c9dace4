"""Which precision a network runs in when the configuration leaves it open; training and prediction choose alike."""

import torch


def choose_precision(device: torch.device) -> str:
    """Return Lightning's name of the precision that a device computes fast.

    CUDA: bfloat16 autocast, float16 autocast on cards before Ampere. CPU: bfloat16 autocast where the processor has
    instructions for it. Anything else: float32.
    """
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if device.type == "cpu" and cpu_has_bfloat16() else "32-true"


def cpu_has_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
