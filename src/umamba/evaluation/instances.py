"""F1 of cells in microscopy images (the NeurIPS 2022 cell segmentation challenge's script, as the paper uses it).

The prediction has classes: 1 is the interior of cells, which are its 8-connected parts. Large images are scored in
tiles.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from skimage.measure import label as connected_components
from skimage.segmentation import relabel_sequential

from umamba.evaluation.objects import match_objects
from umamba.evaluation.overlap import dice

INTERIOR = 1
_RIM = 2
_LARGE = 25_000_000
_TILE = 2000


@dataclass(frozen=True)
class CellScores:
    """Counts of cells, and what follows from them.

    Attributes:
        true, predicted: cells in the reference and the prediction.
        hits, misses, wrong: cells found, not found, and predicted where there is none.
        dsc: of the interior against all cells of the reference, before cells at the edge are left out.
    """

    true: int
    predicted: int
    hits: int
    misses: int
    wrong: int
    dsc: float

    @property
    def precision(self) -> float:
        """Share of predicted cells that are right; 0 without any."""
        return self.hits / (self.hits + self.wrong) if self.hits + self.wrong else 0.0

    @property
    def recall(self) -> float:
        """Share of true cells that are found; 0 without any counted."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 without a hit."""
        return 2 * self.hits / (2 * self.hits + self.misses + self.wrong) if self.hits else 0.0

    def to_metrics(self) -> dict[str, float]:
        """Return the scores and counts under the names of a table's columns."""
        return {
            "f1": self.f1,
            "precision": self.precision,
            "recall": self.recall,
            "dsc": self.dsc,
            "true_cells": self.true,
            "predicted_cells": self.predicted,
            "found_cells": self.hits,
            "missed_cells": self.misses,
            "wrong_cells": self.wrong,
        }


def score_cells(
    prediction: np.ndarray,
    truth: np.ndarray,
    iou_threshold: float = 0.5,
    count_edge_cells: bool = False,
    strict_official: bool = False,
) -> CellScores:
    """Score a class image (Y, X) against a reference (Y, X) of numbered cells.

    Cells that touch the two outermost pixels are left out of either image, unless `count_edge_cells`. Images from
    25 million pixels on are scored in tiles of 2000 pixels, at whose edges cells are left out too; for them
    `count_edge_cells` raises ValueError, where the script fails. Without a predicted cell all true cells are missed;
    the script counts no misses there, as does `strict_official`.
    """
    interior = prediction == INTERIOR
    dsc = dice(interior, truth > 0)
    found = connected_components(interior, connectivity=2)
    if truth.size >= _LARGE and count_edge_cells:
        raise ValueError("cells at the edge cannot be counted in images of 25 million pixels or more")
    counts = np.zeros(5, dtype=np.int64)
    for tile_truth, tile_found in _tiles(truth, found) if truth.size >= _LARGE else [(truth, found)]:
        number = _numbered if count_edge_cells else _inner_cells
        counts += _count(number(tile_truth), number(tile_found), iou_threshold, strict_official)
    true, predicted, hits, misses, wrong = counts.tolist()
    return CellScores(true, predicted, hits, misses, wrong, 0.0 if np.isnan(dsc) else dsc)


def _tiles(*images: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the tiles of images padded with zeros to whole tiles."""
    padding = [(0, -length % _TILE) for length in images[0].shape]
    padded = [np.pad(image, padding) for image in images]
    for y, x in itertools.product(*(range(0, length, _TILE) for length in padded[0].shape)):
        yield tuple(image[y : y + _TILE, x : x + _TILE] for image in padded)


def _numbered(cells: np.ndarray) -> np.ndarray:
    """Number the cells from 1 on without gaps."""
    return relabel_sequential(cells)[0]


def _inner_cells(cells: np.ndarray) -> np.ndarray:
    """Number the cells anew that do not touch the two outermost pixels."""
    rim = np.ones(cells.shape, dtype=bool)
    rim[_RIM:-_RIM, _RIM:-_RIM] = False
    return _numbered(np.where(np.isin(cells, np.unique(cells[rim])), 0, cells))


def _count(
    truth: np.ndarray, found: np.ndarray, iou_threshold: float, strict_official: bool
) -> tuple[int, int, int, int, int]:
    """Return cells in truth and prediction, and hits, misses and wrong ones under the best assignment."""
    if strict_official and not found.any():
        return int(truth.max()), 0, 0, 0, 0
    true, predicted, hits = match_objects(truth, found, iou_threshold)
    return true, predicted, hits, true - hits, predicted - hits
