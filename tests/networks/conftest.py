"""Small plan configurations for the tests of the networks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from umamba.planning import Configuration


@pytest.fixture
def make_configuration() -> Callable[..., Configuration]:
    """Return a function that makes a small configuration for 2 or 3 axes; keyword arguments replace its fields."""

    def make(dim: int, **changes: Any) -> Configuration:
        fields: dict[str, Any] = {
            "name": "2d" if dim == 2 else "3d_fullres",
            "spacing": (1.0,) * dim,
            "median_shape": (40.0,) * dim,
            "patch_size": (40, 24) if dim == 2 else (4, 40, 8),
            "batch_size": 2,
            "batch_dice": False,
            "normalization": ("ZScoreNormalization",),
            "use_mask_for_norm": (False,),
            "strides": ((1, 1), (2, 2), (2, 2)) if dim == 2 else ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
            "kernel_sizes": ((3,) * dim,) * 3 if dim == 2 else ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
            "features_per_stage": (4, 6, 8),
            "encoder_blocks": (2, 2, 2),
            "decoder_blocks": (2, 2),
            "residual_encoder": False,
        }
        return Configuration(**{**fields, **changes})

    return make


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)
