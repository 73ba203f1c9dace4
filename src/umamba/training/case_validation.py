"""Whole validation cases predicted while a run trains, so that the patch Dice stands beside a real one.

Cases are predicted with a sliding window as at inference, but scored on the plan's grid: what is left out is the way
back to the image's own space. A run on all cases (fold=all) has no validation cases and no such score.
"""

from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from umamba.evaluation import dice
from umamba.inference import decide_labels
from umamba.inference.model import autocast
from umamba.inference.tiling import whole_logits
from umamba.labels import LabelSet
from umamba.planning import Configuration
from umamba.preprocessing import CaseStore


class CaseValidation(Callback):
    """Logs `val/case_dice`, the mean over cases of the mean over labels, every few epochs.

    Args:
        store: the preprocessed cases.
        case_ids: the cases, shared out among the ranks.
        configuration: the plan's.
        labels: the label set.
        every: epochs from one time to the next.
    """

    def __init__(
        self, store: CaseStore, case_ids: Sequence[str], configuration: Configuration, labels: LabelSet, every: int
    ) -> None:
        self.store = store
        self.case_ids = tuple(case_ids)
        self.configuration = configuration
        self.labels = labels
        self.every = every

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Predict and score, if it is time."""
        trainer.callback_metrics.pop("val/case_dice", None)  # Lightning shows a value until the next one
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
        total = torch.tensor([sum(known), len(known)], dtype=torch.float64, device=pl_module.device)
        total = trainer.strategy.reduce(total, reduce_op="sum")
        pl_module.log("val/case_dice", (total[0] / total[1]).float())

    def score(self, network: torch.nn.Module, case_id: str, device: torch.device, precision: str) -> float:
        """Return the mean Dice over the labels of a case, NaN if it has none."""
        case = self.store.load(case_id)
        flat = self.configuration.dim == 2

        def forward(tiles: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), autocast(device, precision):
                logits = network((tiles.squeeze(2) if flat else tiles).to(device))
            return logits.unsqueeze(2) if flat else logits

        window = (1,) * flat + tuple(self.configuration.patch_size)
        image = torch.from_numpy(case.image[:])
        logits = whole_logits(forward, image, window, self.labels.num_classes, tiles_at_once=4)
        prediction = decide_labels(len(logits), logits.__getitem__, self.labels).numpy()
        truth = np.maximum(case.label[:][0], 0)  # -1 is outside the nonzero mask
        if self.labels.ignore is not None:
            counted = truth != self.labels.ignore
            prediction, truth = prediction * counted, truth * counted
        dices = [dice(np.isin(prediction, values), np.isin(truth, values)) for values in self.labels.values]
        return float(np.nanmean(dices)) if not np.isnan(dices).all() else float("nan")
