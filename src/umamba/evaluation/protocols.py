"""The rules of the paper's benchmarks where they differ from the generic ones (U-Mamba repository, evaluation scripts).

Abdomen CT and MR: 13 organs, each with its own tolerance; an organ in neither map scores 1; tubes are scored only where
the reference follows them. Endoscopy: the mean over the classes of either image, at two pixels.
"""

import math
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
    """Score a label map (Z, Y, X) of the 13 abdominal organs as the official scripts do, without their rounding.

    An organ in neither map scores 1, in one of them 0. Aorta, inferior vena cava and esophagus are compared from the
    first to the last slice of the reference; the scripts leave that last slice out, as does `strict_official`, which
    gives no score (NaN) to a single slice.

    Args:
        prediction: integers; Z is the third axis of the NIfTI file.
        truth: integers of the same shape.
        spacing: (Z, Y, X) in mm.
        strict_official: the scripts' rule for tubes to the letter.
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
    """Return the classes that an image (Y, X) of surgical instruments is scored by: those of either image.

    With `strict_official` the smallest value of each image is taken to be background, as the script does: in an image
    without background a class is lost unless the other image has it too.
    """
    values = (np.unique(image).tolist() for image in (prediction, truth))
    return sorted({value for found in values for value in (found[1:] if strict_official else found) if value > 0})


def score_endoscopy(prediction: np.ndarray, truth: np.ndarray, strict_official: bool = False) -> dict[str, float]:
    """Score a label image (Y, X) of surgical instruments: {"dsc": ..., "nsd": ...}, means over `endoscopy_classes`.

    NaN if there is no class.
    """
    classes = endoscopy_classes(prediction, truth, strict_official)
    if not classes:
        return {"dsc": math.nan, "nsd": math.nan}
    pairs = [(prediction[None] == value, truth[None] == value) for value in classes]
    return {
        "dsc": float(np.mean([dice(*pair) for pair in pairs])),
        "nsd": float(np.mean([surface_dice(*pair, (1, 1, 1), ENDOSCOPY_TOLERANCE_PX) for pair in pairs])),
    }
