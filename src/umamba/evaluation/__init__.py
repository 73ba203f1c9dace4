"""Scores of segmentations: overlap, surface distance and objects, with tables, statistics and pictures."""

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
from umamba.evaluation.score_table import score_table
from umamba.evaluation.surface import surface_dice

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
