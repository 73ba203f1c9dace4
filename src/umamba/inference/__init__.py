"""From images to segmentations in their own space: tiling, export, checkpoints, the predictor."""

from umamba.inference.checkpoint import load_checkpoint
from umamba.inference.export import decide_labels, logits_to_segmentation
from umamba.inference.official import find_checkpoint
from umamba.inference.precision import choose_precision
from umamba.inference.predictor import Predictor
from umamba.inference.tiling import predict_logits

__all__ = [
    "Predictor",
    "choose_precision",
    "decide_labels",
    "find_checkpoint",
    "load_checkpoint",
    "logits_to_segmentation",
    "predict_logits",
]
