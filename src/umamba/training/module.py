"""The LightningModule: one network, one recipe, and the record that makes its checkpoints usable alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from umamba.networks import build_network
from umamba.networks.heads import CaseHead, build_case_head
from umamba.records import CheckpointRecord
from umamba.records.checkpoint import store_record, stored_patch_dice
from umamba.settings import RecipeSettings
from umamba.training.added_class import Teacher
from umamba.training.classification import CaseMetrics, case_loss, targets_of
from umamba.training.component_loss import component_loss
from umamba.training.finetuning import finetuning_factor, phases
from umamba.training.losses import DeepSupervisionLoss, build_loss
from umamba.training.patch_dice import PatchDice
from umamba.training.schedules import build_optimizer

_VALIDATED = ("val/", "seen/")  # prefixes of the metrics of validation


class SegmentationModule(lightning.LightningModule):
    """Trains any backbone on patches (paper section 3.2; nnU-Net's training loop).

    Args:
        record: the content of each checkpoint beside the weights: architecture, plan, labels, recipe.
        held_out: whether the validation patches come from cases that are not trained on. If so, the names of their
            metrics begin with `val/`, otherwise with `seen/`.
        teacher: the frozen network of a run that adds labels to it; None: there is none.
        classes: case -> its class in each task of the record's classification head; other cases have none.
        case_weight: weight of the head's loss.
    """

    def __init__(
        self,
        record: CheckpointRecord,
        held_out: bool = True,
        teacher: Teacher | None = None,
        classes: Mapping[str, tuple[int, ...]] | None = None,
        case_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.recipe = record.recipe or RecipeSettings()
        self.labels = record.labels
        self.network = build_network(
            record.architecture,
            record.configuration,
            record.input_channels,
            record.output_channels,
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
        self.case_head: CaseHead | None = None
        self.encoder: list[torch.nn.Parameter] = []  # what recipe.finetune.frozen freezes
        self.alone = record.heads is not None and record.heads.alone  # whether the decoder is not trained
        if record.heads is not None:
            self.case_head = build_case_head(self.network, record.architecture.name, record.heads.sizes)
            self.case_metrics = CaseMetrics([task.name for task in record.heads.tasks])
            self.case_classes, self.case_weight = dict(classes or {}), case_weight

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
        """Set the learning rate that the schedule has now, and return it; freeze the encoder, or let it learn.

        Both follow from the number of complete epochs or, under a time budget, from the share of it that is used.
        """
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise RuntimeError("the schedule needs trainer.max_epochs")
        now = self.current_epoch if self.share_done is None else self.share_done * epochs
        finetune = self.recipe.finetune
        for parameter in self.encoder:
            parameter.requires_grad_(now >= phases(finetune, epochs)[0])
        rate = self.learning_rate * finetuning_factor(finetune, self.recipe.schedule, epochs)(now)
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

    def taught_loss(self, outputs: Tensor | list[Tensor], batch: dict[str, Any]) -> Tensor:
        """Return the loss against the reference, and against a teacher if there is one.

        Args:
            outputs: of the network.
            batch: "image" (B, C, *S), and as in `reference_loss`.
        """
        loss = self.reference_loss(outputs, batch)
        if self.teacher is None:
            return loss
        return loss + self.recipe.loss.distillation_weight * self.teacher.loss(
            batch["image"], outputs, batch["label"], batch.get("annotated")
        )

    def loss_of(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss that a training step minimises.

        Args:
            batch: as in `taught_loss`; with a classification head also "case_id".
        """
        outputs, logits = self._outputs(batch["image"])
        classes = None if logits is None else case_loss(logits, self._targets(batch))
        return self._total(outputs, batch, classes, self.taught_loss)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Return the loss of a batch of patches."""
        outputs, logits = self._outputs(batch["image"])
        classes = None if logits is None else self._case_loss(batch, logits)
        loss = self._total(outputs, batch, classes, self.taught_loss)
        finite = torch.isfinite(loss.detach())  # a step with a non-finite loss does not count
        self.train_loss.update(torch.where(finite, loss.detach(), 0.0), len(batch["image"]) * finite)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Add a batch of validation patches to the loss and the patch Dice."""
        outputs, logits = self._outputs(batch["image"])
        classes = None
        if logits is not None:
            targets = self._targets(batch)
            classes = case_loss(logits, targets)
            self.case_metrics.update(logits, targets, classes)
        loss = self._total(outputs, batch, classes, self.reference_loss)
        self.log(f"{self.checked}/loss", loss, batch_size=len(batch["image"]), sync_dist=True)
        if outputs is None:
            return
        finest = outputs if isinstance(outputs, Tensor) else outputs[0]
        self.patch_dice.update(finest, batch["label"], batch.get("annotated"))

    def on_validation_epoch_end(self) -> None:
        """Log the patch Dice per class, its mean, and the smoothed mean that picks the best checkpoint."""
        if self.case_head is not None:
            self._log_classes()
        if self.alone:
            return
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
        if self.case_head is not None:
            self.case_metrics.reset()
        self.ema_patch_dice = None

    def _outputs(self, image: Tensor) -> tuple[Tensor | list[Tensor] | None, list[Tensor] | None]:
        """Return the network's output (None: the classes are trained alone) and the head's logits (None: no head)."""
        if self.case_head is None:
            return self(image), None
        network: Any = self.network
        if self.alone:
            return None, self.case_head(network.bottleneck(image))
        outputs, bottleneck = network.segment_with_bottleneck(image)
        return outputs, self.case_head(bottleneck)

    def _case_loss(self, batch: dict[str, Any], logits: list[Tensor]) -> Tensor:
        """Return the loss of the classes of training patches, and log it."""
        targets = self._targets(batch)
        classes = case_loss(logits, targets)
        finite = torch.isfinite(classes.detach())
        known = (targets >= 0).any(dim=1).sum()
        self.case_metrics.train_loss.update(torch.where(finite, classes.detach(), 0.0), known * finite)
        self.log("train/case_loss", self.case_metrics.train_loss, on_step=False, on_epoch=True)
        return classes

    def _total(
        self,
        outputs: Tensor | list[Tensor] | None,
        batch: dict[str, Any],
        classes: Tensor | None,
        segmentation_loss: Callable[[Tensor | list[Tensor], dict[str, Any]], Tensor],
    ) -> Tensor:
        """Return the sum of the losses of segmentation and classes that there are."""
        if outputs is None:
            assert classes is not None
            return classes
        loss = segmentation_loss(outputs, batch)
        return loss if classes is None else loss + self.case_weight * classes

    def _targets(self, batch: dict[str, Any]) -> Tensor:
        tasks = len(self.case_metrics.names)
        return targets_of(batch["case_id"], self.case_classes, tasks, batch["image"].device)

    def _log_classes(self) -> None:
        """Log the loss of the classes and the share of patches that are classified right."""
        metrics = self.case_metrics
        named = {f"{self.checked}/case_loss": metrics.loss}
        accuracies: Any = metrics.accuracy
        named |= {f"{self.checked}/case_accuracy/{name}": m for name, m in zip(metrics.names, accuracies, strict=True)}
        for name, metric in named.items():
            value = float(metric.compute())  # NaN when no patch had a class
            metric.reset()
            if not self.trainer.sanity_checking:
                self.log(name, value)

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
