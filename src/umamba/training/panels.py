"""Draw validation patches as overlays during training, as files in the run folder and panels in W&B."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from umamba.evaluation.overlap import dice
from umamba.evaluation.overlay import overlay_figure, write_overlay
from umamba.inference import decide_labels
from umamba.labels import LabelSet
from umamba.training.loggers import log_pictures

log = logging.getLogger(__name__)


class ValidationPanels(Callback):
    """Draws one sample of the first validation batch (image, truth and prediction) every few epochs.

    Args:
        folder: folder of the PNG files, one for each epoch that is drawn.
        labels: the label set.
        spacing: spacing of the patches in mm, in the plan's axis order; two entries for 2D.
        every: epochs between drawings; the last epoch is always drawn.
        letters: gives the anatomical directions of a case's stored axes (`CaseStore.letters`).
        channels: channels of an image, without those of a cascade's previous stage; None: all of the patch.
    """

    def __init__(
        self,
        folder: Path,
        labels: LabelSet,
        spacing: tuple[float, ...],
        every: int,
        letters: Callable[[str], tuple[str, str, str] | None],
        channels: int | None = None,
    ) -> None:
        self.folder = folder
        self.labels = labels
        self.spacing = spacing if len(spacing) == 3 else (999.0, *spacing)
        self.every = every
        self.letters = letters
        self.channels = channels

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the last sample of the first batch, if this epoch is to be drawn."""
        epoch = trainer.current_epoch
        last = epoch + 1 == trainer.max_epochs
        due = self.every > 0 and ((epoch + 1) % self.every == 0 or last)
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or not due:
            return
        with torch.no_grad():
            output = pl_module(batch["image"][-1:])
        logits = output[0] if isinstance(output, list) else output
        image, truth = batch["image"][-1, : self.channels].float(), batch["label"][-1, 0]
        heads = logits[0].float().cpu()
        prediction = decide_labels(len(heads), heads.__getitem__, self.labels).numpy()
        if image.ndim == 3:
            image, truth, prediction = image.unsqueeze(1), truth.unsqueeze(0), prediction[None]
        case_id = str(batch["case_id"][-1])
        carried = batch["annotated"][-1].tolist() if "annotated" in batch else [True] * len(self.labels.names)
        path = self.folder / f"epoch_{epoch + 1:04d}.png"
        try:
            figure = overlay_figure(
                image.cpu().numpy(),
                truth.cpu().numpy(),
                prediction,
                self.spacing,
                self.labels,
                letters=self.letters(case_id),
                title=f"patch of {case_id}, epoch {epoch + 1}",
                score=_score(prediction, truth.cpu().numpy(), self.labels, carried),
            )
            write_overlay(figure, path)
        except OSError as error:
            log.warning("%s could not be written: %s", path, error.strerror or error)
            return
        log_pictures(trainer.loggers, "panels", {"patch": path})


def _score(prediction: np.ndarray, truth: np.ndarray, labels: LabelSet, carried: Sequence[bool]) -> str:
    """Return the mean Dice of the carried labels that the patch or its prediction contains, in words."""
    counted = truth != labels.ignore if labels.ignore is not None else np.ones_like(truth, dtype=bool)
    scores = [
        dice(np.isin(prediction, values) & counted, np.isin(truth, values) & counted)
        for values, carries in zip(labels.values, carried, strict=True)
        if carries
    ]
    known = [score for score in scores if score == score]
    return f"Dice of this patch {np.mean(known):.3f}" if known else "no label in this patch"
