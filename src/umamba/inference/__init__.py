"""From images to segmentations in their own space: tiling, ensembles, post-processing, the predictor."""

from umamba.inference.canvas import logits_to_segmentation
from umamba.inference.decision import decide_labels
from umamba.inference.forward import tile_forward, tile_window
from umamba.inference.model import Model, choose_device
from umamba.inference.nnunet_export import export_to_nnunet
from umamba.inference.postprocessing import PostProcessing
from umamba.inference.precision import autocast, choose_precision, cpu_has_bfloat16
from umamba.inference.predictor import Predictor
from umamba.inference.tiling import whole_logits

__all__ = [
    "Model",
    "PostProcessing",
    "Predictor",
    "autocast",
    "choose_device",
    "choose_precision",
    "cpu_has_bfloat16",
    "decide_labels",
    "export_to_nnunet",
    "logits_to_segmentation",
    "tile_forward",
    "tile_window",
    "whole_logits",
]
