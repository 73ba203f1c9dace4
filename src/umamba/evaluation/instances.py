"""F1 of cells in microscopy images, as the script of the NeurIPS 2022 cell segmentation challenge computes it.

The paper scores with this script. A prediction is an image of classes: the cells are the 8-connected parts of class 1,
the cells' interior. Large images are scored in tiles.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from skimage.segmentation import relabel_sequential

from umamba.evaluation.objects import match_objects
from umamba.evaluation.overlap import dice
from umamba.labels import LabelSet
from umamba.labels.instance_maps import COMPONENTS, grouped_instances

_RIM = 2  # pixels; cells that touch the rim of this width are not counted
_LARGE = 25_000_000  # pixels; images from this size on are scored in tiles
_TILE = 2000  # pixels along each edge


@dataclass(frozen=True)
class CellScores:
    """Counts of cells, and the scores computed from them.

    Attributes:
        true: cells in the reference.
        predicted: cells in the prediction.
        hits: true cells that match a predicted cell.
        misses: true cells that match none.
        wrong: predicted cells that match none.
        dsc: DSC of all predicted and all true cells, including cells at the edge; of interiors, if these are the cells.
    """

    true: int
    predicted: int
    hits: int
    misses: int
    wrong: int
    dsc: float

    @property
    def precision(self) -> float:
        """Share of the predicted cells that match a true cell; 0 without predicted cells."""
        return self.hits / (self.hits + self.wrong) if self.hits + self.wrong else 0.0

    @property
    def recall(self) -> float:
        """Share of the true cells that match a predicted cell; 0 without counted cells."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 without a match."""
        return 2 * self.hits / (2 * self.hits + self.misses + self.wrong) if self.hits else 0.0

    def to_metrics(self) -> dict[str, float]:
        """Return scores and counts under the column names of scores.csv."""
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
    labels: LabelSet | None = None,
    grouping: str = COMPONENTS,
) -> CellScores:
    """Score an image of classes against a reference of numbered cells.

    Images from 25 million pixels on are scored in tiles of 2000 x 2000 pixels, and cells at the edges of the tiles are
    not counted.

    Args:
        prediction: classes (Y, X).
        truth: numbered cells (Y, X), 0 elsewhere.
        iou_threshold: two cells match from this IoU on.
        count_edge_cells: also count cells that touch the two outermost pixels of the image.
        strict_official: like the script, count no misses if no cell was predicted; otherwise all true cells count as
            missed.
        labels: of the classes; None: interior and boundary.
        grouping: how the classes become cells, see `grouped_instances`; the script sees components.

    Raises:
        ValueError: count_edge_cells for an image that is scored in tiles; the script fails there, too.
    """
    found = grouped_instances(prediction, labels, grouping)
    dsc = dice(found > 0, truth > 0)
    if truth.size >= _LARGE and count_edge_cells:
        raise ValueError(
            "cells at the edge cannot be counted in images with 25 million pixels or more, which are scored in tiles; "
            "score these with count_edge_cells=false"
        )
    counts = np.zeros(5, dtype=np.int64)
    for tile_truth, tile_found in _tiles(truth, found) if truth.size >= _LARGE else [(truth, found)]:
        number = _numbered if count_edge_cells else _inner_cells
        counts += _count(number(tile_truth), number(tile_found), iou_threshold, strict_official)
    true, predicted, hits, misses, wrong = counts.tolist()
    return CellScores(true, predicted, hits, misses, wrong, 0.0 if np.isnan(dsc) else dsc)


def _tiles(*images: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Pad images with zeros to whole tiles and yield the tiles."""
    padding = [(0, -length % _TILE) for length in images[0].shape]
    padded = [np.pad(image, padding) for image in images]
    for y, x in itertools.product(*(range(0, length, _TILE) for length in padded[0].shape)):
        yield tuple(image[y : y + _TILE, x : x + _TILE] for image in padded)


def _numbered(cells: np.ndarray) -> np.ndarray:
    """Number the cells from 1 on without gaps."""
    return relabel_sequential(cells)[0]


def _inner_cells(cells: np.ndarray) -> np.ndarray:
    """Remove cells that touch the two outermost pixels and number the others without gaps."""
    rim = np.ones(cells.shape, dtype=bool)
    rim[_RIM:-_RIM, _RIM:-_RIM] = False
    return _numbered(np.where(np.isin(cells, np.unique(cells[rim])), 0, cells))


def _count(
    truth: np.ndarray, found: np.ndarray, iou_threshold: float, strict_official: bool
) -> tuple[int, int, int, int, int]:
    """Return the numbers of true and predicted cells, and of hits, misses and wrong cells."""
    if strict_official and not found.any():
        return int(truth.max()), 0, 0, 0, 0
    true, predicted, hits = match_objects(truth, found, iou_threshold)
    return true, predicted, hits, true - hits, predicted - hits
