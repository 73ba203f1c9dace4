"""Overlap and surface scores of segmentations, their tables, and overlays."""

from umamba.evaluation.overlap import dice
from umamba.evaluation.overlay import overlay_figure
from umamba.evaluation.score import (
    Rules,
    score_arrays,
    score_case,
    score_files,
    score_folder,
    score_pairs,
    score_table,
    worst_median_best,
)
from umamba.evaluation.surface import surface_dice

__all__ = [
    "Rules",
    "dice",
    "overlay_figure",
    "score_arrays",
    "score_case",
    "score_files",
    "score_folder",
    "score_pairs",
    "score_table",
    "surface_dice",
    "worst_median_best",
]
