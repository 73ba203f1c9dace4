"""How well objects (lesions) are found: recall, precision, lesion-wise DSC, and the FROC of probability maps.

An object is found if a predicted one overlaps it by an IoU of `DETECTED`, one to one. The lesion-wise DSC gives each
object of the reference the DSC with all predicted objects that touch it, and each predicted object that touches none a
zero (the BraTS challenges' way, https://arxiv.org/abs/2305.17033, without their dilation). FROC: Bunch et al. 1977; the
seven rates are those of LUNA16 (https://arxiv.org/abs/1612.08012).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.measure import label as connected_components

from umamba.evaluation.empty_cases import empty_score
from umamba.evaluation.objects import ObjectPairs, overlapping_pairs, partners

DETECTED = 0.1  # an object is found from this IoU on
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false objects in a case, of the mean FROC
LOWEST = 0.1  # probability from which on voxels belong to a candidate


def detection_scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Score how well objects are found. `empty_cases` says what a case without objects or matches gets.

    Args:
        truth: objects of the reference, integers, 0 elsewhere; numbers may be missing.
        found: objects of the prediction in the same shape.

    Returns:
        object_recall, object_precision, object_f1 and object_dsc (lesion-wise DSC).

    >>> detection_scores(np.array([1, 1, 0, 2, 0, 0]), np.array([1, 1, 0, 0, 0, 2]))["object_dsc"].__round__(3)
    0.333
    """
    pairs = overlapping_pairs(truth, found)
    hits = int((partners(pairs, DETECTED) >= 0).sum())
    values = {
        "object_recall": hits / max(1, pairs.true),
        "object_precision": hits / max(1, pairs.predicted),
        "object_f1": 2 * hits / max(1, pairs.true + pairs.predicted),
    }
    scores = {}
    for metric, value in values.items():
        empty = empty_score(metric, pairs.true, pairs.predicted, hits)
        scores[metric] = value if empty is None else empty
    touched = len(np.unique(pairs.rows))
    empty = empty_score("object_dsc", pairs.true, pairs.predicted, touched)
    return {**scores, "object_dsc": _mean_dice(pairs) if empty is None else empty}


def _mean_dice(pairs: ObjectPairs) -> float:
    """Return the lesion-wise DSC of maps with at least one overlap."""
    common, predicted = np.zeros(pairs.true), np.zeros(pairs.true)
    np.add.at(common, pairs.rows, pairs.common)
    np.add.at(predicted, pairs.rows, pairs.predicted_sizes[pairs.columns])
    wrong = pairs.predicted - len(np.unique(pairs.columns))
    return float((2 * common / (pairs.true_sizes + predicted)).sum() / (pairs.true + wrong))


@dataclass(frozen=True)
class Candidates:
    """The objects that a probability map proposes in a case.

    Attributes:
        scores: (n,) the highest probability in each candidate.
        found: (n,) index of the reference's object that a candidate overlaps most, from an IoU of `DETECTED` on; -1:
            none, a false object.
        true: objects in the reference.
    """

    scores: np.ndarray
    found: np.ndarray
    true: int


def candidates(probability: np.ndarray, truth: np.ndarray, lowest: float = LOWEST) -> Candidates:
    """Return the candidates of a case: the connected parts whose probability reaches the lowest one.

    Args:
        probability: of one label, floats of 0 to 1, in any number of axes.
        truth: objects of the reference in the same shape, integers, 0 elsewhere.
        lowest: candidates end where the probability is below this one.
    """
    parts = connected_components(probability >= lowest, connectivity=probability.ndim)
    numbers = np.arange(1, int(parts.max(initial=0)) + 1)
    scores = np.asarray(ndimage.maximum(probability, parts, numbers), dtype=np.float64).reshape(-1)
    pairs = overlapping_pairs(truth, parts)
    found = np.full(len(numbers), -1)
    for place in np.argsort(pairs.iou, kind="stable"):  # the largest overlap is written last
        if pairs.iou[place] >= DETECTED:
            found[pairs.columns[place]] = pairs.rows[place]
    return Candidates(scores, found, pairs.true)


@dataclass(frozen=True)
class Froc:
    """Sensitivity against false objects for each case, over all thresholds of the probability.

    Attributes:
        thresholds: (n,) descending; candidates from this score on count.
        false_per_case: (n,) false objects for each case.
        sensitivity: (n,) share of all objects that are found.
        cases: number of cases.
        objects: objects in all references.
    """

    thresholds: np.ndarray
    false_per_case: np.ndarray
    sensitivity: np.ndarray
    cases: int
    objects: int

    def at(self, rate: float) -> float:
        """Return the highest sensitivity with at most so many false objects for each case; NaN without objects."""
        if not self.objects:
            return math.nan
        return float(self.sensitivity[self.false_per_case <= rate].max(initial=0.0))

    @property
    def mean(self) -> float:
        """The mean sensitivity at `RATES`."""
        return sum(self.at(rate) for rate in RATES) / len(RATES)


def froc(cases: Sequence[Candidates]) -> Froc:
    """Return the FROC of a set of cases.

    A second candidate on an object is neither a hit nor false.

    Args:
        cases: the candidates of each case, those without any included.

    >>> one = Candidates(np.array([0.9, 0.8, 0.7]), np.array([0, -1, 1]), true=2)
    >>> curve = froc([one])
    >>> curve.sensitivity.tolist(), curve.false_per_case.tolist(), curve.at(0.5), curve.at(1.0)
    ([0.5, 0.5, 1.0], [0.0, 1.0, 1.0], 0.5, 1.0)
    """
    objects = sum(case.true for case in cases)
    hits, wrong = [], []  # scores
    for case in cases:
        wrong.append(case.scores[case.found < 0])
        own = np.full(case.true, -np.inf)
        np.maximum.at(own, case.found[case.found >= 0], case.scores[case.found >= 0])
        hits.append(own[np.isfinite(own)])
    found, false = (np.sort(np.concatenate([np.zeros(0), *scores])) for scores in (hits, wrong))
    thresholds = np.unique(np.concatenate([found, false]))[::-1]
    above = [len(scores) - np.searchsorted(scores, thresholds) for scores in (found, false)]
    return Froc(thresholds, above[1] / max(1, len(cases)), above[0] / max(1, objects), len(cases), objects)
