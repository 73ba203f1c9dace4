"""The scoring rules of the paper's benchmarks that differ from the generic ones (U-Mamba's evaluation scripts).

Abdomen CT and MR: 13 organs, each with its own tolerance. An organ in neither map scores 1. Tubular organs are scored
only in the slices that the reference covers. Endoscopy: the mean over the classes that occur in either image, with a
tolerance of two pixels.
"""

from collections.abc import Sequence

import numpy as np

from umamba.evaluation.overlap import common_box, dice, label_boxes
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


def score_abdomen(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], strict_official: bool = False
) -> dict[str, dict[str, float]]:
    """Score the 13 abdominal organs as the official scripts do, without their rounding.

    An organ in neither map scores 1, an organ in one of them 0. Aorta, inferior vena cava and esophagus are compared
    from the first to the last slice of the reference.

    Args:
        prediction: integers (Z, Y, X); Z is the third axis of the NIfTI file.
        truth: integers (Z, Y, X) of the reference.
        spacing: (Z, Y, X) in mm.
        strict_official: like the scripts, leave out the last of these slices; a tubular organ in a single slice then
            has no score (NaN).

    Returns:
        {organ: {"dsc": ..., "nsd": ...}}.
    """
    scores = {}
    predicted_boxes, true_boxes = label_boxes(prediction), label_boxes(truth)
    for label, (name, tolerance) in enumerate(ABDOMEN_ORGANS, start=1):
        if label not in predicted_boxes or label not in true_boxes:
            score = float(label not in predicted_boxes and label not in true_boxes)
            scores[name] = {"dsc": score, "nsd": score}
            continue
        box = common_box([predicted_boxes[label], true_boxes[label]])
        if name in _TUBES:
            followed = true_boxes[label][0]
            box = (slice(followed.start, followed.stop - 1) if strict_official else followed, *box[1:])
        predicted, true = prediction[box] == label, truth[box] == label
        scores[name] = {"dsc": dice(predicted, true), "nsd": surface_dice(predicted, true, spacing, tolerance)}
    return scores


def endoscopy_classes(prediction: np.ndarray, truth: np.ndarray, strict_official: bool = False) -> list[int]:
    """Return the classes by which an image of surgical instruments is scored: those that occur in either image.

    Args:
        prediction: label image (Y, X).
        truth: label image (Y, X) of the reference.
        strict_official: like the script, treat the smallest value of each image as background; in an image without
            background its first class is then lost, unless the other image has it.

    >>> endoscopy_classes(np.array([[0, 2]]), np.array([[0, 1]]))
    [1, 2]
    """
    values = (np.unique(image).tolist() for image in (prediction, truth))
    return sorted({value for found in values for value in (found[1:] if strict_official else found) if value > 0})
