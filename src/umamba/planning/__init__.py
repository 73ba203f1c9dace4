"""Derive the plan of a dataset from its statistics: fingerprint, planner, folds, nnU-Net's plans files.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from umamba.io.lazy import lazy_names
from umamba.planning.plan_table import plan_table

if TYPE_CHECKING:
    from umamba.planning.crop import nonzero_box, nonzero_extent
    from umamba.planning.fingerprint import Fingerprint, compute_fingerprint, inspect_dataset
    from umamba.planning.folds import fold_cases, held_out_cases, split_folds
    from umamba.planning.nnunet_files import foreign_settings, parse_nnunet_plans, read_nnunet_plans, to_nnunet_plans
    from umamba.planning.paper import PaperSetting, assumed_fingerprint, paper_setting, planned_configuration
    from umamba.planning.plan import Configuration, Intensity, Plan
    from umamba.planning.planner import plan_dataset

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "crop": ("nonzero_box", "nonzero_extent"),
        "fingerprint": (
            "Fingerprint",
            "compute_fingerprint",
            "inspect_dataset",
        ),
        "folds": (
            "fold_cases",
            "held_out_cases",
            "split_folds",
        ),
        "nnunet_files": (
            "foreign_settings",
            "parse_nnunet_plans",
            "read_nnunet_plans",
            "to_nnunet_plans",
        ),
        "paper": (
            "PaperSetting",
            "assumed_fingerprint",
            "paper_setting",
            "planned_configuration",
        ),
        "plan": (
            "Configuration",
            "Intensity",
            "Plan",
        ),
        "planner": ("plan_dataset",),
    },
)

__all__ = [
    "Configuration",
    "Fingerprint",
    "Intensity",
    "PaperSetting",
    "Plan",
    "assumed_fingerprint",
    "compute_fingerprint",
    "fold_cases",
    "foreign_settings",
    "held_out_cases",
    "inspect_dataset",
    "nonzero_box",
    "nonzero_extent",
    "paper_setting",
    "parse_nnunet_plans",
    "plan_dataset",
    "plan_table",
    "planned_configuration",
    "read_nnunet_plans",
    "split_folds",
    "to_nnunet_plans",
]
