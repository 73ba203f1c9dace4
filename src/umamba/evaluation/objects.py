"""One-to-one matching of numbered objects by their overlap: cells, lesions, connected parts of a label."""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching
from skimage.measure import label as connected_components


class ObjectCounts(NamedTuple):
    """Numbers of objects in the reference and in the prediction, and of matched pairs.

    Attributes:
        true: objects in the reference.
        predicted: objects in the prediction.
        hits: matched pairs.
    """

    true: int
    predicted: int
    hits: int

    @property
    def f1(self) -> float:
        """F1, 2 hits / (true + predicted); NaN without any object."""
        objects = self.true + self.predicted
        return 2 * self.hits / objects if objects else float("nan")


def match_objects(truth: np.ndarray, found: np.ndarray, iou_threshold: float) -> ObjectCounts:
    """Match as many pairs of objects as possible whose intersection over union (IoU) reaches the threshold.

    Args:
        truth: objects of the reference, numbered from 1 without gaps, 0 elsewhere.
        found: objects of the prediction, numbered in the same way, same shape.
        iou_threshold: above 0; above 0.5 each object has at most one possible partner.

    >>> match_objects(np.array([1, 1, 0, 2]), np.array([1, 1, 0, 0]), 0.5)
    ObjectCounts(true=2, predicted=1, hits=1)
    """
    true, predicted = int(truth.max(initial=0)), int(found.max(initial=0))
    if not true or not predicted:
        return ObjectCounts(true, predicted, 0)
    both = (truth > 0) & (found > 0)
    sizes = [np.bincount(objects[objects > 0], minlength=number + 1) for objects, number in
             ((truth, true), (found, predicted))]  # fmt: skip
    pairs = np.stack([truth[both], found[both]]).astype(np.int64)
    (rows, columns), common = np.unique(pairs, axis=1, return_counts=True)
    iou = common / (sizes[0][rows] + sizes[1][columns] - common)
    near = iou >= iou_threshold
    graph = sparse.csr_array(
        (np.ones(int(near.sum()), dtype=np.uint8), (rows[near] - 1, columns[near] - 1)), shape=(true, predicted)
    )
    return ObjectCounts(true, predicted, int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum()))


def match_parts(prediction: np.ndarray, truth: np.ndarray, iou_threshold: float) -> ObjectCounts:
    """Match the connected parts of two boolean masks of one shape; parts that touch at a corner are connected."""
    found, true = (connected_components(mask, connectivity=mask.ndim) for mask in (prediction, truth))
    return match_objects(true, found, iou_threshold)
