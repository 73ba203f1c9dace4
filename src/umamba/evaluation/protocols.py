"""The rules of the paper's benchmarks where they differ from the generic ones (U-Mamba repository, evaluation scripts).

Abdomen CT and MR: 13 organs, each with its own tolerance; an organ in neither map scores 1; tubes are scored only where
the reference follows them. Endoscopy: the mean over the classes of either image, at two pixels.
"""

import math
from collections.abc import Sequence

import numpy as np

from umamba.evaluation.overlap import dice
from umamba.evaluation.surface import surface_dice

# Name and tolerance in mm of labels 1 to 13.
ABDOMEN_ORGANS = (
    ("Liver", 5.0),
    ("RK", 3.0),
    ("Spleen", 3.0),
    ("Pancreas", 5.0),
    ("Aorta", 2.0),
    ("IVC", 2.0),
    ("RAG", 2.0),
    ("LAG", 2.0),
    ("Gallbladder", 2.0),
    ("Esophagus", 3.0),
    ("Stomach", 5.0),
    ("Duodenum", 7.0),
    ("LK", 3.0),
)
_TUBES = ("Aorta", "IVC", "Esophagus")
ENDOSCOPY_TOLERANCE_PX = 2.0


def score_abdomen(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> dict[str, dict[str, float]]:
    """Score a label map (Z, Y, X) of the 13 abdominal organs as the official scripts do, without their rounding.

    An organ in neither map scores 1, in one of them 0. Aorta, inferior vena cava and esophagus are compared from the
    first slice of the reference up to, and without, its last one; with a single slice there is no score (NaN).

    Args:
        prediction: integers; Z is the third axis of the NIfTI file.
        truth: integers of the same shape.
        spacing: (Z, Y, X) in mm.
    """
    scores = {}
    for label, (name, tolerance) in enumerate(ABDOMEN_ORGANS, start=1):
        predicted, true = prediction == label, truth == label
        if not predicted.any() or not true.any():
            score = float(not predicted.any() and not true.any())
            scores[name] = {"dsc": score, "nsd": score}
            continue
        if name in _TUBES:
            slices = np.flatnonzero(true.any(axis=(1, 2)))
            followed = slice(int(slices[0]), int(slices[-1]))
            predicted, true = predicted[followed], true[followed]
        scores[name] = {"dsc": dice(predicted, true), "nsd": surface_dice(predicted, true, spacing, tolerance)}
    return scores


def score_endoscopy(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Score a label image (Y, X) of surgical instruments: {"dsc": ..., "nsd": ...}, means over its classes.

    The classes are the values of either image without the smallest of each, which the script takes to be background:
    in an image without background a class is lost unless the other image has it too. NaN if no class is left.
    """
    classes = sorted({*np.unique(truth)[1:].tolist(), *np.unique(prediction)[1:].tolist()})
    if not classes:
        return {"dsc": math.nan, "nsd": math.nan}
    pairs = [(prediction[None] == value, truth[None] == value) for value in classes]
    return {
        "dsc": float(np.mean([dice(*pair) for pair in pairs])),
        "nsd": float(np.mean([surface_dice(*pair, (1, 1, 1), ENDOSCOPY_TOLERANCE_PX) for pair in pairs])),
    }
