"""Scores of segmentations: overlap, surface distance and objects, with tables, statistics and pictures.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from umamba.io.lazy import lazy_names

if TYPE_CHECKING:
    from umamba.evaluation.overlap import dice
    from umamba.evaluation.rules import Rules, rules_sentence
    from umamba.evaluation.score import (
        score_arrays,
        score_case,
        score_files,
        score_folder,
        score_pairs,
        worst_median_best,
    )
    from umamba.evaluation.surface import surface_dice
    from umamba.evaluation.terminal_table import score_table

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "overlap": ("dice",),
        "rules": (
            "Rules",
            "rules_sentence",
        ),
        "score": (
            "score_arrays",
            "score_case",
            "score_files",
            "score_folder",
            "score_pairs",
            "worst_median_best",
        ),
        "terminal_table": ("score_table",),
        "surface": ("surface_dice",),
    },
)

__all__ = [
    "Rules",
    "dice",
    "rules_sentence",
    "score_arrays",
    "score_case",
    "score_files",
    "score_folder",
    "score_pairs",
    "score_table",
    "surface_dice",
    "worst_median_best",
]
