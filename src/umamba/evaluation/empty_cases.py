"""What the scores of objects are where a formula has no answer: one table, which docs/scores.md repeats.

NaN means no score; such a case does not enter the mean. A method gains nothing by predicting nothing, and a case
without objects says nothing of how well objects are found, but wrong objects in it count (after the edge cases of
panoptica, https://github.com/BrainLesion/panoptica).
"""

import math
from typing import NamedTuple


class EmptyScores(NamedTuple):
    """The score of a metric by what is missing.

    Attributes:
        neither: no object in the reference and none in the prediction.
        no_reference: objects in the prediction only.
        no_prediction: objects in the reference only.
        no_match: objects in both, and no pair of them matches.
    """

    neither: float
    no_reference: float
    no_prediction: float
    no_match: float


_WRONG = EmptyScores(math.nan, 0.0, 0.0, 0.0)
EMPTY_SCORES = {
    "pq": _WRONG,
    "rq": _WRONG,
    "sq": EmptyScores(math.nan, math.nan, math.nan, math.nan),  # a mean over matched pairs
    "ap": _WRONG,
    "object_recall": EmptyScores(math.nan, math.nan, 0.0, 0.0),
    "object_precision": EmptyScores(math.nan, 0.0, math.nan, 0.0),
    "object_f1": _WRONG,
    "object_dsc": _WRONG,
}


def empty_score(metric: str, true: int, predicted: int, hits: int) -> float | None:
    """Return the score of a case without a matched pair; None if there is one, so that the formula holds.

    Args:
        metric: a key of `EMPTY_SCORES`.
        true: objects in the reference.
        predicted: objects in the prediction.
        hits: matched pairs.

    >>> empty_score("pq", true=3, predicted=0, hits=0), empty_score("pq", true=3, predicted=2, hits=1)
    (0.0, None)
    """
    if hits:
        return None
    row = EMPTY_SCORES[metric]
    if true and predicted:
        return row.no_match
    return row.no_prediction if true else row.no_reference if predicted else row.neither
