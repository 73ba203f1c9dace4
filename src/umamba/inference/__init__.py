"""From images to segmentations in their own space: tiling, export, ensembles, checkpoints, the predictor."""

from umamba.inference.checkpoint import load_checkpoint
from umamba.inference.export import decide_labels, logits_to_segmentation
from umamba.inference.model import Model
from umamba.inference.official import find_checkpoint
from umamba.inference.postprocessing import PostProcessing
from umamba.inference.precision import choose_precision
from umamba.inference.predictor import Predictor

__all__ = [
    "Model",
    "PostProcessing",
    "Predictor",
    "choose_precision",
    "decide_labels",
    "find_checkpoint",
    "load_checkpoint",
    "logits_to_segmentation",
]
