"""The LightningDataModule that feeds training and validation patches.

An epoch has 250 training and 50 validation batches by default, as in nnU-Net. Every patch depends on (seed, epoch,
index) alone, so a run that is resumed at the start of an epoch gets the patches that the uninterrupted run would have
had, with any number of workers and ranks.
"""

import logging
import time
from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import lightning
import torch
import torchio as tio

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.labels.annotated import Annotated, annotated_mask
from umamba.patches.augmentation import read_margin, read_size, training_transforms, validation_transforms
from umamba.patches.cutmix import refuse_mixing
from umamba.patches.dataset import PatchDataset, PatchSampler, keep_batch
from umamba.patches.sampling import as_3d
from umamba.patches.seeding import seed_of
from umamba.settings import AugmentationSettings, DataSettings, RecipeSettings

if TYPE_CHECKING:
    from umamba.planning import Configuration
    from umamba.preprocessing import CaseStore

log = logging.getLogger(__name__)

_COMPONENTS = "the components of labels (recipe.loss.component_weight) are found"
_PREVIOUS = "the labels of the previous stage are augmented"
_PARTNERS = "the patches of other cases (augmentation.cutmix) are read"
_MOST_LISTED = 10  # missing cases that a message names
WAITING = 0.1  # above this share of a step, waiting for data is the bottleneck


class PatchDataModule(lightning.LightningDataModule):
    """Feeds batches {"image": float32 (B, C, *patch), "label": int64 (B, 1, *patch), "case_id": list of str}.

    If some of the cases are partly labelled, batches also have "annotated": bool (B, labels without background) on the
    CPU, which says what the label map of each patch carries.
    The loaders yield int16 labels because these are transferred faster; they become int64 on the network's device.

    Args:
        store: the preprocessed cases.
        configuration: the plan's configuration; patch size, spacing, batch size and masked channels are
            read.
        labels: the label set.
        train_cases: names of the cases that training patches are drawn from.
        val_cases: names of the cases that validation patches are drawn from.
        seed: seed of the patches and their augmentation.
        augmentation: kinds, probabilities and ranges of the training augmentation.
        iterations: training batches of an epoch.
        val_iterations: validation batches of an epoch; 0: none.
        batch_size: patches of a batch over all ranks; None: the configuration's.
        num_workers: processes that make training patches; half as many make validation patches. 0: none.
        oversample_foreground: share of a batch that must contain foreground, 0 to 1.
        prefetch_factor: batches that each of these processes makes ahead.
        annotated: labels of the partly labelled cases; None: all cases carry all labels.
        component_regions: batches also hold "components" int32 (B, K, *patch), see `umamba.labels.component_regions`;
            augmentation.device=auto is then cpu.

    Raises:
        UserError: a list of cases is empty or names a case that the store does not have, or mirroring is asked for
            along an axis that the patch does not have, or the patches of a cascade shall be augmented on a GPU, or
            partly labelled cases shall be mixed.
    """

    def __init__(
        self,
        store: "CaseStore",
        configuration: "Configuration",
        labels: LabelSet,
        train_cases: Sequence[str],
        val_cases: Sequence[str],
        *,
        seed: int,
        augmentation: AugmentationSettings,
        iterations: int = DataSettings.iterations_per_epoch,
        val_iterations: int = DataSettings.val_iterations,
        batch_size: int | None = None,
        num_workers: int = 0,
        oversample_foreground: float = RecipeSettings.oversample_foreground,
        prefetch_factor: int = DataSettings.prefetch_factor,
        annotated: Annotated | None = None,
        component_regions: bool = False,
    ) -> None:
        super().__init__()
        _check_cases(store, "training", train_cases, iterations)
        _check_cases(store, "validation", val_cases, val_iterations)
        used = {*train_cases, *val_cases}
        self.labels = labels
        self.annotated = {case_id: names for case_id, names in (annotated or {}).items() if case_id in used}
        patch_size, spacing = tuple(configuration.patch_size), configuration.spacing
        cascade = None if configuration.previous_stage is None else labels
        if cascade is not None and augmentation.device == "gpu":
            raise UserError(
                f"augmentation.device=gpu: the labels of the previous stage ({configuration.previous_stage}) are "
                "augmented on the CPU. Give cpu."
            )
        if self.annotated:
            refuse_mixing(augmentation)
        dataset = partial(
            PatchDataset,
            store,
            labels=labels,
            patch_size=as_3d(patch_size),
            dim=len(patch_size),
            batch_size=configuration.batch_size if batch_size is None else batch_size,
            oversample_foreground=oversample_foreground,
            seed=seed,
            added_channels=0 if cascade is None else len(cascade.foreground),
            annotated=self.annotated,
            component_spacing=(1.0,) * (3 - len(patch_size)) + tuple(spacing) if component_regions else None,
        )
        self.train_patches = dataset(
            case_ids=train_cases,
            transforms=training_transforms(augmentation, patch_size, configuration.use_mask_for_norm, spacing, cascade),
            read_size=read_size(augmentation, patch_size),
            margin=read_margin(augmentation, patch_size, spacing),
            iterations=iterations,
            stream="train",
            deferred=augmentation.device == "gpu",
        )
        self.val_patches = dataset(
            case_ids=val_cases,
            transforms=validation_transforms(cascade),
            read_size=as_3d(patch_size),
            iterations=val_iterations,
            stream="val",
        )
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.transfer_s = 0.0
        self.synchronize_transfer = True
        self.automatic = (
            augmentation.device == "auto"
            and not augmentation.extra
            and not augmentation.cutmix.p
            and not component_regions
            and cascade is None
        )
        self.chosen: str | None = None  # by augmentation.device=auto
        self.deferred_from: int | None = None  # the epoch from which on the network's device augments, if it was chosen
        if augmentation.device == "auto" and not self.automatic:
            reason = _COMPONENTS if component_regions else _PARTNERS if augmentation.cutmix.p else _PREVIOUS
            reason = "TorchIO's transforms (augmentation.extra) run" if augmentation.extra else reason
            log.info("augmentation.device=auto: cpu, because %s there.", reason)

    def train_dataloader(self) -> tio.SubjectsLoader:
        """Return the loader of this rank's training patches; `sampler.set_epoch` chooses the epoch."""
        return self._loader(self.train_patches, self.num_workers)

    def val_dataloader(self) -> tio.SubjectsLoader | list[Any]:
        """Return the loader of this rank's validation patches; an empty list with val_iterations=0."""
        if not self.val_patches.iterations:
            return []
        return self._loader(self.val_patches, (self.num_workers + 1) // 2)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device and measure the time in `transfer_s`.

        On a GPU the time is exact only with `synchronize_transfer`, because transfers are asynchronous.
        """
        start = time.perf_counter()
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        self.transfer_s = self._seconds_since(start, device)
        return moved

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert the labels to int64, say what they carry, and augment here if augmentation.device=gpu.

        The time counts as transfer.
        """
        start = time.perf_counter()
        patches = self.train_patches.transform_batch(batch) if "drawn" in batch else batch
        patches["label"] = patches["label"].long()
        if self.annotated:
            carried = annotated_mask(self.labels, self.annotated, patches["case_id"])
            patches["annotated"] = torch.from_numpy(carried)
        self.transfer_s += self._seconds_since(start, patches["image"].device)
        return patches

    @property
    def undecided(self) -> bool:
        """Whether augmentation.device=auto still has to choose."""
        return self.automatic and self.chosen is None

    def choose_device(self, waiting: float, epoch: int) -> str:
        """Choose where patches are augmented after this epoch (augmentation.device=auto); the choice stays.

        Args:
            waiting: share of a step that the network waited for patches.
            epoch: the current one, whose patches stay as they are.

        Returns:
            A sentence that names the choice and its reason.
        """
        self.chosen = "gpu" if waiting > WAITING else "cpu"
        if self.chosen == "gpu":
            self.deferred_from = epoch + 1
            self.train_patches.defer_from(epoch + 1)
        named = "gpu, from the next epoch on" if self.chosen == "gpu" else "cpu"
        return (
            f"augmentation.device=auto: {named}, because the network waits for patches in {waiting:.0%} of a step "
            f"(more than {WAITING:.0%} makes it gpu)."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what augmentation.device=auto has chosen, so that a run that continues makes the same patches."""
        if not self.automatic or self.chosen is None:
            return {}
        return {"augmentation_device": self.chosen, "deferred_from": self.deferred_from}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the choice of the run that is continued, unless the device is named now."""
        if self.automatic and state_dict.get("augmentation_device") in ("cpu", "gpu"):
            self.chosen, self.deferred_from = state_dict["augmentation_device"], state_dict["deferred_from"]

    def case_in_work(self, pid: int) -> str | None:
        """Return the case from which a worker process makes a patch, or made one when it died.

        Args:
            pid: process ID of the worker.

        Returns:
            The case's name; None if the process is not one of the workers.
        """
        return self.train_patches.case_in_work(pid) or self.val_patches.case_in_work(pid)

    def _seconds_since(self, start: float, device: torch.device) -> float:
        if self.synchronize_transfer and device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    def _prepare_choice(self, on_gpu: bool) -> None:
        """Make room for regions if a GPU may augment them, and follow a choice that was made before."""
        if not on_gpu and self.undecided:
            self.chosen = "cpu"
            log.info("augmentation.device=auto: cpu, because the network is not on a GPU.")
        self.train_patches.may_defer = on_gpu and self.chosen != "cpu"
        if on_gpu and self.deferred_from is not None:
            self.train_patches.defer_from(self.deferred_from)

    def _loader(self, patches: PatchDataset, num_workers: int) -> tio.SubjectsLoader:
        rank, world_size, epoch, on_gpu = 0, 1, 0, False
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            # Not current_epoch: when a resumed run makes its loader, that is still the previous epoch.
            epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            on_gpu = self.trainer.strategy.root_device.type == "cuda"
        if world_size > patches.batch_size:
            raise UserError(
                f"plan.batch_size={patches.batch_size} is smaller than the number of processes that share a batch, "
                f"{world_size} (trainer.devices x trainer.num_nodes). Use fewer processes or a larger batch."
            )
        if patches is self.train_patches and self.automatic:
            self._prepare_choice(on_gpu)
        sampler = PatchSampler(patches, rank, world_size)
        patches.share_memory(num_workers, len(sampler.positions), self.prefetch_factor)
        # Lightning sets the epoch too, but in a resumed run only after the workers have started on their batches.
        sampler.set_epoch(epoch)
        return tio.SubjectsLoader(
            copy(patches),  # a later loader of the same patches allocates its own shared memory
            collate_fn=keep_batch,
            batch_size=len(sampler.positions),
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            prefetch_factor=self.prefetch_factor if num_workers else None,
            pin_memory=on_gpu,
            # The loader draws the base seed of its workers. Patches do not use the global generator, so the loader
            # must not change its state.
            generator=torch.Generator().manual_seed(seed_of(patches.seed, patches.stream, "loader")),
        )


def _check_cases(store: "CaseStore", kind: str, case_ids: Sequence[str], iterations: int) -> None:
    if iterations and not case_ids:
        raise UserError(f"fold: it has no {kind} cases. Choose another fold, or check splits_final.json.")
    missing = sorted(set(case_ids) - set(store.case_ids))
    if missing:
        listed = ", ".join(missing[:_MOST_LISTED]) + (", ..." if len(missing) > _MOST_LISTED else "")
        raise UserError(
            f"fold: {len(missing)} {kind} cases are not among the prepared cases: {listed}. Check splits_final.json."
        )
