"""The LightningModule: one network, one recipe, and the record that makes its checkpoints usable alone."""

from dataclasses import replace
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from umamba.networks import build_network
from umamba.records import CheckpointRecord
from umamba.records.checkpoint import store_record, stored_patch_dice
from umamba.settings import RecipeSettings
from umamba.training.added_class import Teacher
from umamba.training.component_loss import component_loss
from umamba.training.losses import DeepSupervisionLoss, build_loss
from umamba.training.patch_dice import PatchDice
from umamba.training.schedules import build_optimizer, learning_rate_factor

_VALIDATED = ("val/", "seen/")  # prefixes of the metrics of validation


class SegmentationModule(lightning.LightningModule):
    """Trains any backbone on patches (paper section 3.2; nnU-Net's training loop).

    Args:
        record: the content of each checkpoint beside the weights: architecture, plan, labels, recipe.
        held_out: whether the validation patches come from cases that are not trained on. If so, the names of their
            metrics begin with `val/`, otherwise with `seen/`.
        teacher: the frozen network of a run that adds labels to it; None: there is none.
    """

    def __init__(self, record: CheckpointRecord, held_out: bool = True, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.teacher = teacher
        self.recipe = record.recipe or RecipeSettings()
        self.labels = record.labels
        self.network = build_network(
            record.architecture,
            record.configuration,
            record.num_channels,
            record.labels.num_classes,
            deep_supervision=self.recipe.deep_supervision,
        )
        self.learning_rate = self.recipe.optimizer.lr
        self.record = record
        self.loss = DeepSupervisionLoss(build_loss(record.labels, record.configuration.batch_dice, self.recipe.loss))
        self.component_loss = component_loss(record.labels, self.recipe.loss)
        self.checked = "val" if held_out else "seen"  # one of _VALIDATED
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.patch_dice = PatchDice(record.labels)
        self.ema_patch_dice: float | None = None
        self.gradient_norm: Tensor | None = None  # of the step's gradients, set by SkipNonFinite
        self.share_done: float | None = None  # of a time budget, set by BudgetSchedule; None: the epochs count

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return the network's output for patches (B, C, *S): logits, or a list of them, full resolution first."""
        return self.network(image)

    def configure_optimizers(self) -> Optimizer:
        """Build the recipe's optimiser; the learning rate is set at each epoch's start."""
        return build_optimizer(self.parameters(), self.recipe.optimizer, self.fused)

    @property
    def fused(self) -> bool:
        """Whether the optimiser is fused: on CUDA, with two exceptions.

        The loss scaling of float16 must unscale the gradients before they are clipped, and SGD with dampening has a
        rule of its own for the first step of its momentum, which a skipped step would break.
        """
        if self._trainer is None or self._trainer.precision == "16-mixed" or self.recipe.optimizer.dampening:
            return False
        return self._trainer.strategy.root_device.type == "cuda"

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as Lightning does, by the norm that the search for non-finite gradients has computed."""
        if gradient_clip_val is None or gradient_clip_val <= 0:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif self.gradient_norm is None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, self.gradient_norm)

    def on_train_epoch_start(self) -> None:
        """Forget the last validation, and compute the learning rate from the epoch's number alone.

        Lightning keeps the values of a validation until the next one, so that an epoch without validation would get
        them again. The learning rate needs no state in a resumed run; during a search for it, Lightning's tuner sets
        it instead.
        """
        values = self.trainer.callback_metrics
        for name in [name for name in values if name.startswith(_VALIDATED)]:
            del values[name]
        if self.trainer.lr_scheduler_configs:
            return
        self.log("lr", self.set_learning_rate())

    def set_learning_rate(self) -> float:
        """Set the learning rate that the schedule has now, and return it.

        It follows from the number of complete epochs or, under a time budget, from the share of it that is used.
        """
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise RuntimeError("the schedule needs trainer.max_epochs")
        now = self.current_epoch if self.share_done is None else self.share_done * epochs
        rate = self.learning_rate * learning_rate_factor(self.recipe.schedule, epochs)(now)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def on_fit_start(self) -> None:
        """Move the frozen network to the device; Lightning does not know it."""
        if self.teacher is not None:
            self.teacher.network.to(self.device)

    def reference_loss(self, outputs: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        """Return the loss against the reference: that of whole patches, and that of single components if wanted.

        Args:
            outputs: of the network.
            batch: "label" (B, 1, *S), "annotated" if cases are partly labelled, "components" for the component loss.
        """
        loss: Tensor = self.loss(outputs, batch["label"], batch.get("annotated"))
        return loss if self.component_loss is None else loss + self.component_loss(outputs, batch)

    def loss_of(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss that a training step minimises: against the reference, and against a teacher if there is one.

        Args:
            batch: "image" (B, C, *S), and as in `reference_loss`.
        """
        outputs = self(batch["image"])
        loss = self.reference_loss(outputs, batch)
        if self.teacher is None:
            return loss
        return loss + self.recipe.loss.distillation_weight * self.teacher.loss(
            batch["image"], outputs, batch["label"], batch.get("annotated")
        )

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Return the loss of a batch of patches."""
        loss = self.loss_of(batch)
        finite = torch.isfinite(loss.detach())  # a step with a non-finite loss does not count
        self.train_loss.update(torch.where(finite, loss.detach(), 0.0), len(batch["image"]) * finite)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Add a batch of validation patches to the loss and the patch Dice."""
        outputs = self(batch["image"])
        loss = self.reference_loss(outputs, batch)
        self.log(f"{self.checked}/loss", loss, batch_size=len(batch["image"]), sync_dist=True)
        finest = outputs if isinstance(outputs, Tensor) else outputs[0]
        self.patch_dice.update(finest, batch["label"], batch.get("annotated"))

    def on_validation_epoch_end(self) -> None:
        """Log the patch Dice per class, its mean, and the smoothed mean that picks the best checkpoint."""
        per_class = self.patch_dice.compute().reshape(-1)  # torchmetrics returns a scalar for a single class
        self.patch_dice.reset()
        if self.trainer.sanity_checking:
            return
        mean = per_class.nanmean().item()
        if mean == mean:  # NaN when no class occurred in any patch
            momentum = self.recipe.ema_momentum
            previous = self.ema_patch_dice
            self.ema_patch_dice = mean if previous is None else momentum * previous + (1 - momentum) * mean
        self.log(f"{self.checked}/patch_dice", mean, prog_bar=True)
        if self.ema_patch_dice is not None:
            self.log(f"{self.checked}/ema_patch_dice", self.ema_patch_dice)
        for name, value in zip(self.labels.names, per_class.tolist(), strict=True):
            self.log(f"{self.checked}/patch_dice/{name}", value)

    def forget_epoch(self) -> None:
        """Empty the metrics after steps that do not belong to the run."""
        self.train_loss.reset()
        self.patch_dice.reset()
        self.ema_patch_dice = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record, which makes the file self-sufficient."""
        store_record(checkpoint, replace(self.record, ema_patch_dice=self.ema_patch_dice))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the smoothed patch Dice; let the optimiser be fused as on this device, not as it was saved."""
        self.ema_patch_dice = stored_patch_dice(checkpoint)
        fused = self.fused or None
        for state in checkpoint.get("optimizer_states", ()):
            for group in state["param_groups"]:
                group["fused"] = fused
