"""U-Mamba and its peers for biomedical image segmentation: plan, train, predict, score, compare.

The names below load on first use, so that `import umamba` is quick:

>>> import umamba
>>> network = umamba.build_network("umamba_bot", patch_size=(32, 64, 64), in_channels=1, num_classes=3)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umamba.datasets import read_dataset
    from umamba.evaluation.evaluate import evaluate
    from umamba.inference import Predictor
    from umamba.networks import Mamba, UMambaBot, UMambaEnc, build_network, selective_scan
    from umamba.planning import plan_dataset
    from umamba.runs import train

__version__ = "0.2.0"

_DOORS = {
    "Mamba": "umamba.networks",
    "Predictor": "umamba.inference",
    "UMambaBot": "umamba.networks",
    "UMambaEnc": "umamba.networks",
    "build_network": "umamba.networks",
    "evaluate": "umamba.evaluation.evaluate",
    "plan_dataset": "umamba.planning",
    "read_dataset": "umamba.datasets",
    "selective_scan": "umamba.networks",
    "train": "umamba.runs",
}

__all__ = [
    "Mamba",
    "Predictor",
    "UMambaBot",
    "UMambaEnc",
    "build_network",
    "evaluate",
    "plan_dataset",
    "read_dataset",
    "selective_scan",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import one of the public names when it is used first."""
    if name not in _DOORS:
        raise AttributeError(f"module 'umamba' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
