"""Panoptic quality and average precision of numbered objects, in 2D and 3D.

PQ = SQ x RQ: the mean IoU of matched pairs, times the F1 of matching (Kirillov et al. 2019,
https://arxiv.org/abs/1801.00868). A pair matches above the threshold; above 0.5 an object has one possible partner at
most. AP at a threshold is hits / (hits + missed + wrong), as the 2018 Data Science Bowl and StarDist compute it: no
order of confidence enters.
"""

from dataclasses import dataclass

import numpy as np

from umamba.evaluation.empty_cases import empty_score
from umamba.evaluation.objects import ObjectPairs, overlapping_pairs

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the IoU; none is below 0.5, so that partners are unique


@dataclass(frozen=True)
class PanopticScores:
    """The scores of one image.

    Attributes:
        true: objects in the reference.
        predicted: objects in the prediction.
        hits: matched pairs, IoU above 0.5.
        pq: panoptic quality.
        sq: segmentation quality, the mean IoU of the matched pairs.
        rq: recognition quality, the F1 of matching.
        ap: average precision at each of `THRESHOLDS`.
    """

    true: int
    predicted: int
    hits: int
    pq: float
    sq: float
    rq: float
    ap: tuple[float, ...]

    def to_metrics(self) -> dict[str, float]:
        """Return the scores under the column names of scores.csv; ap_mean is the mean over the thresholds."""
        precisions = {f"ap_{round(100 * t)}": ap for t, ap in zip(THRESHOLDS, self.ap, strict=True)}
        mean = sum(self.ap) / len(self.ap)
        return {"pq": self.pq, "sq": self.sq, "rq": self.rq, **precisions, "ap_mean": mean}


def panoptic_scores(truth: np.ndarray, found: np.ndarray) -> PanopticScores:
    """Score numbered objects. `empty_cases` says what an image without objects or matches gets.

    Args:
        truth: objects of the reference, integers, 0 elsewhere; numbers may be missing.
        found: objects of the prediction in the same shape.

    >>> scores = panoptic_scores(np.array([1, 1, 1, 1, 0, 2]), np.array([1, 1, 1, 0, 0, 0]))
    >>> scores.pq, scores.sq, scores.ap
    (0.5, 0.75, (0.5, 0.5, 0.5, 0.0, 0.0))
    """
    pairs = overlapping_pairs(truth, found)
    matched = pairs.iou[pairs.iou > THRESHOLDS[0]]
    hits = len(matched)

    def score(metric: str, value: float) -> float:
        empty = empty_score(metric, pairs.true, pairs.predicted, hits)
        return value if empty is None else empty

    sq = score("sq", float(matched.mean()) if hits else 0.0)
    rq = score("rq", 2 * hits / max(1, pairs.true + pairs.predicted))
    pq = score("pq", sq * rq)
    return PanopticScores(
        pairs.true, pairs.predicted, hits, pq, sq, rq, tuple(_average_precision(pairs, t) for t in THRESHOLDS)
    )


def _average_precision(pairs: ObjectPairs, threshold: float) -> float:
    hits = int((pairs.iou > threshold).sum())
    empty = empty_score("ap", pairs.true, pairs.predicted, hits)
    return hits / (pairs.true + pairs.predicted - hits) if empty is None else empty
