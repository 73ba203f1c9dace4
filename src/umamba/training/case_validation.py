"""Predict whole validation cases during training, because the patch Dice is only an estimate of their Dice.

Cases are predicted with the sliding window of inference and scored on the plan's grid; only the resampling back to the
image's own space is left out. A run on all cases (fold=all) has no validation cases and no such score.
"""

from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from umamba.evaluation import dice
from umamba.inference import decide_labels, tile_forward, tile_window, whole_logits
from umamba.inference.memory import sums_device
from umamba.labels import LabelSet
from umamba.labels.annotated import Annotated, annotated_mask
from umamba.labels.masks import one_hot
from umamba.patches.on_device import precise_dtype
from umamba.planning import Configuration
from umamba.preprocessing import CaseStore
from umamba.settings import SlidingWindowSettings

# Fixed, because another number of tiles rounds differently and would change the scores of runs that continue.
_TILES_PER_PASS = 4


class CaseValidation(Callback):
    """Logs `val/case_dice`, the mean over cases of the mean Dice over labels, every few epochs."""

    def __init__(
        self,
        store: CaseStore,
        case_ids: Sequence[str],
        configuration: Configuration,
        labels: LabelSet,
        every: int,
        settings: SlidingWindowSettings,
        mirror_axes: Sequence[int] | None = None,
        annotated: Annotated | None = None,
        tile_scale: int = 1,
    ) -> None:
        """Store the cases and the settings of their prediction.

        Args:
            store: the preprocessed cases.
            case_ids: names of the cases, which are distributed over the ranks.
            configuration: the plan's configuration.
            labels: the label set.
            every: epochs from one validation to the next.
            settings: layout of the tiles and test-time augmentation.
            mirror_axes: patch axes that training mirrors, along which test-time augmentation flips; None: all.
            annotated: labels of the partly labelled cases, which are scored by these alone; None: there are none.
            tile_scale: edge of a tile in patches of training.
        """
        self.store = store
        self.case_ids = tuple(case_ids)
        self.configuration = configuration
        self.labels = labels
        self.every = every
        self.settings = settings
        self.annotated = annotated or {}
        self.tile_scale = tile_scale
        axes = range(configuration.dim) if mirror_axes is None else mirror_axes
        self.flipped_axes = tuple(axes) if settings.tta else ()

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Predict and score the cases in every `every`-th epoch."""
        if trainer.sanity_checking or not self.case_ids or (trainer.current_epoch + 1) % self.every:
            return
        network: Any = pl_module.network
        deep, network.deep_supervision = network.deep_supervision, False
        try:
            mine = self.case_ids[trainer.global_rank :: trainer.world_size]
            scores = [self.score(network, case_id, pl_module.device, str(trainer.precision)) for case_id in mine]
        finally:
            network.deep_supervision = deep
        known = [score for score in scores if not np.isnan(score)]
        device = pl_module.device
        total = torch.tensor([sum(known), len(known)], dtype=precise_dtype(device), device=device)
        total = trainer.strategy.reduce(total, reduce_op="sum")
        pl_module.log("val/case_dice", (total[0] / total[1]).float())

    def score(self, network: torch.nn.Module, case_id: str, device: torch.device, precision: str) -> float:
        """Predict a case and compare it with its label.

        Args:
            network: without deep supervision.
            case_id: the case.
            device: where the network is.
            precision: Lightning's name.

        Returns:
            The mean Dice over the labels that the case has and carries; NaN if it has none.
        """
        case = self.store.load(case_id)
        image = case.image[:]
        if case.previous is not None:
            image = np.concatenate([image, one_hot(case.previous[:][0], self.labels)])
        prediction = self.segment(network, torch.from_numpy(image), device, precision)
        truth = np.maximum(case.label[:][0], 0)  # -1 is outside the nonzero mask
        if self.labels.ignore is not None:
            counted = truth != self.labels.ignore
            prediction, truth = prediction * counted, truth * counted
        (carried,) = annotated_mask(self.labels, self.annotated, [case_id])
        dices = [
            dice(np.isin(prediction, values), np.isin(truth, values))
            for values, carries in zip(self.labels.values, carried, strict=True)
            if carries
        ]
        return float(np.nanmean(dices)) if not np.isnan(dices).all() else float("nan")

    def segment(
        self, network: torch.nn.Module, image: torch.Tensor, device: torch.device, precision: str
    ) -> np.ndarray:
        """Return the label map of an image on the plan's grid.

        Args:
            network: without deep supervision.
            image: (C, Z, Y, X) float32, with the channels of the previous stage in a cascade.
            device: where the network is.
            precision: Lightning's name.

        Returns:
            (Z, Y, X).
        """
        size = 4 * image[0].numel() * (self.labels.num_classes + len(image))
        logits = whole_logits(
            tile_forward(network, self.configuration, device, precision, flipped_axes=self.flipped_axes),
            image,
            tile_window(self.configuration, scale=self.tile_scale),
            self.labels.num_classes,
            tile_step_size=self.settings.tile_step_size,
            tiles_per_pass=_TILES_PER_PASS,
            device=device,
            sums_on=sums_device(device, size),
        )
        return decide_labels(len(logits), logits.__getitem__, self.labels).cpu().numpy()
