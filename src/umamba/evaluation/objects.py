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


class ObjectPairs(NamedTuple):
    """All pairs of an object of the reference and one of the prediction that share voxels.

    Attributes:
        true: objects in the reference.
        predicted: objects in the prediction.
        rows: (n,) index of the reference's object, from 0 on in ascending order of the numbers in the image.
        columns: (n,) index of the prediction's object.
        common: (n,) voxels that they share.
        iou: (n,) intersection over union.
        true_sizes: (true,) voxels of each object of the reference.
        predicted_sizes: (predicted,) voxels of each object of the prediction.
    """

    true: int
    predicted: int
    rows: np.ndarray
    columns: np.ndarray
    common: np.ndarray
    iou: np.ndarray
    true_sizes: np.ndarray
    predicted_sizes: np.ndarray


def overlapping_pairs(truth: np.ndarray, found: np.ndarray) -> ObjectPairs:
    """Return the pairs of objects that share voxels.

    Args:
        truth: objects of the reference, integers, 0 elsewhere; numbers may be missing.
        found: objects of the prediction in the same shape.

    >>> pairs = overlapping_pairs(np.array([7, 7, 0, 2]), np.array([1, 1, 1, 0]))
    >>> pairs.rows.tolist(), pairs.columns.tolist(), pairs.iou.round(3).tolist()
    ([1], [0], [0.667])
    """
    numbers, sizes = zip(*(np.unique(objects[objects > 0], return_counts=True) for objects in (truth, found)),
                         strict=True)  # fmt: skip
    both = (truth > 0) & (found > 0)
    rows, columns = (np.searchsorted(own, objects[both]) for own, objects in zip(numbers, (truth, found), strict=True))
    codes, common = np.unique(rows.astype(np.int64) * max(1, len(numbers[1])) + columns, return_counts=True)
    rows, columns = np.divmod(codes, max(1, len(numbers[1])))
    iou = common / (sizes[0][rows] + sizes[1][columns] - common)
    return ObjectPairs(len(numbers[0]), len(numbers[1]), rows, columns, common, iou, *sizes)


def match_objects(truth: np.ndarray, found: np.ndarray, iou_threshold: float) -> ObjectCounts:
    """Match as many pairs of objects as possible whose intersection over union (IoU) reaches the threshold.

    Args:
        truth: objects of the reference, integers, 0 elsewhere.
        found: objects of the prediction in the same shape.
        iou_threshold: above 0; above 0.5 each object has at most one possible partner.

    >>> match_objects(np.array([1, 1, 0, 2]), np.array([1, 1, 0, 0]), 0.5)
    ObjectCounts(true=2, predicted=1, hits=1)
    """
    pairs = overlapping_pairs(truth, found)
    return ObjectCounts(pairs.true, pairs.predicted, int((partners(pairs, iou_threshold) >= 0).sum()))


def partners(pairs: ObjectPairs, iou_threshold: float) -> np.ndarray:
    """Return the partner of each object of the reference in a matching of as many pairs as possible.

    Args:
        pairs: see `overlapping_pairs`.
        iou_threshold: two objects match from this IoU on.

    Returns:
        (true,) index of the prediction's object; -1: none.
    """
    if not pairs.true or not pairs.predicted:
        return np.full(pairs.true, -1)
    near = pairs.iou >= iou_threshold
    graph = sparse.csr_array(
        (np.ones(int(near.sum()), dtype=np.uint8), (pairs.rows[near], pairs.columns[near])),
        shape=(pairs.true, pairs.predicted),
    )
    return np.asarray(maximum_bipartite_matching(graph, perm_type="column"))


def match_parts(prediction: np.ndarray, truth: np.ndarray, iou_threshold: float) -> ObjectCounts:
    """Match the connected parts of two boolean masks of one shape; parts that touch at a corner are connected."""
    found, true = (connected_components(mask, connectivity=mask.ndim) for mask in (prediction, truth))
    return match_objects(true, found, iou_threshold)
