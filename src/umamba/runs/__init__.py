"""Whole pieces of work as functions: prepare, train, predict, score, select, smoke test. The API of a notebook.

Nothing here knows Hydra or the command line, and nothing prints by itself (see `umamba.io.voice`). The names load on
first use, because training imports Lightning, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umamba.runs.calibration import Calibrated, calibrate
    from umamba.runs.label_audit import Audit, audit
    from umamba.runs.prediction import predict
    from umamba.runs.preparation import PlannedDataset, PreparedDataset, plan_of, prepare, preprocess
    from umamba.runs.pretraining import pretrain
    from umamba.runs.select import Selection, find_best
    from umamba.runs.smoke import smoke_test
    from umamba.runs.whole_run import RunResult, run, train

_MODULES = {
    "calibration": ("Calibrated", "calibrate"),
    "label_audit": ("Audit", "audit"),
    "prediction": ("predict",),
    "preparation": ("PlannedDataset", "PreparedDataset", "plan_of", "prepare", "preprocess"),
    "pretraining": ("pretrain",),
    "select": ("Selection", "find_best"),
    "smoke": ("smoke_test",),
    "whole_run": ("RunResult", "run", "train"),
}
__all__ = [
    "Audit",
    "Calibrated",
    "PlannedDataset",
    "PreparedDataset",
    "RunResult",
    "Selection",
    "audit",
    "calibrate",
    "find_best",
    "plan_of",
    "predict",
    "prepare",
    "preprocess",
    "pretrain",
    "run",
    "smoke_test",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import one of the public names when it is used first."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"umamba.runs.{module}"), name)
    raise AttributeError(f"module 'umamba.runs' has no attribute {name!r}")
