"""How well a confidence ranks segmentations: the risk-coverage curve and the area under it (AURC).

Whoever looks at the least confident segmentations first is left with the most confident ones. Their mean risk, such as
1 - DSC, over the share of segmentations that are left is the risk-coverage curve (Geifman and El-Yaniv, 2017; for
segmentation Zenk et al., arXiv 2406.03323). A lower area is better. A random order has the mean risk as its area.
"""

import numpy as np


def risk_coverage(confidence: np.ndarray, risk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean risk of the most confident segmentations, for each number of them.

    Segmentations of equal confidence count in the mean over their orders, so that the order of the arrays is no matter.

    Args:
        confidence: (n,) any numbers, larger where a segmentation is trusted more; infinite ones are allowed.
        risk: (n,) such as 1 - DSC.

    Returns:
        Coverage (n,), 1/n to 1, and the mean risk (n,) at each.

    Raises:
        ValueError: the shapes differ, there are no segmentations, or a value is NaN.

    >>> coverage, risk = risk_coverage(np.array([0.9, 0.5, 0.7]), np.array([0.1, 0.6, 0.2]))
    >>> print(coverage.round(2), risk.round(2))
    [0.33 0.67 1.  ] [0.1  0.15 0.3 ]
    """
    confidence, risk = np.asarray(confidence, dtype=np.float64), np.asarray(risk, dtype=np.float64)
    if confidence.shape != risk.shape or confidence.ndim != 1 or not confidence.size:
        raise ValueError(f"confidence {confidence.shape} and risk {risk.shape} must be lists of one length, not empty")
    if np.isnan(confidence).any() or np.isnan(risk).any():
        raise ValueError("confidence and risk must not hold NaN")
    _, group = np.unique(-confidence, return_inverse=True)
    counts = np.bincount(group)
    means = np.bincount(group, weights=risk) / counts
    number = np.arange(1, len(risk) + 1)
    return number / len(risk), np.cumsum(np.repeat(means, counts)) / number


def trust(expected: np.ndarray, disagreement: np.ndarray) -> np.ndarray:
    """Return the confidence by which segmentations are reviewed: their expected DSC.

    Those without one are trusted less than all others, and the less the more their networks disagree.

    Args:
        expected: (n,) DSC, NaN where nothing can be said.
        disagreement: (n,) 0 to 1; NaN, where nothing could be measured, is trusted least.

    >>> trust(np.array([0.8, np.nan, np.nan]), np.array([0.3, 0.2, np.nan]))
    array([ 0.8, -1.2, -inf])
    """
    return np.where(np.isnan(expected), -1 - np.nan_to_num(disagreement, nan=np.inf), expected)


def area(confidence: np.ndarray, risk: np.ndarray) -> float:
    """Return the area under the risk-coverage curve (AURC), the mean of its risks.

    Args:
        confidence: as in `risk_coverage`.
        risk: as in `risk_coverage`.

    >>> round(area(np.array([0.9, 0.5, 0.7]), np.array([0.1, 0.6, 0.2])), 4)
    0.1833
    """
    return float(risk_coverage(confidence, risk)[1].mean())
