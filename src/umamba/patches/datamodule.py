"""The LightningDataModule: streams of training and validation patches that depend on (seed, epoch, index) alone.

An epoch is 250 training and 50 validation batches, as in nnU-Net. A run resumed at the start of an epoch sees the
patches that the uninterrupted run would have seen, whatever the number of workers and ranks.
"""

import time
from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import lightning
import torch
import torchio as tio

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.patches.augmentation import read_size, training_transforms, validation_transforms
from umamba.patches.dataset import PatchDataset, PatchSampler, as_made
from umamba.patches.seeding import seed_of
from umamba.patches.settings import read_augmentation

if TYPE_CHECKING:
    from umamba.planning import Configuration
    from umamba.preprocessing import CaseStore


class PatchDataModule(lightning.LightningDataModule):
    """Feeds batches {"image": float32 (B, C, *patch), "label": int64 (B, 1, *patch), "case_id": list of str}.

    The loaders' labels are int16, which travels faster; they become int64 where the network is.

    Args:
        store: the preprocessed cases.
        configuration: the plan's configuration: patch size, batch size, channels with masked normalisation.
        labels: the label set.
        train_cases: cases that training patches are drawn from.
        val_cases: the same for validation patches.
        seed: seed of the patches and their augmentation.
        iterations: training batches an epoch.
        val_iterations: validation batches an epoch; 0: none.
        batch_size: patches of a batch over all ranks; None: the configuration's.
        augmentation: the `augmentation` group; None or empty: none.
        num_workers: processes that make training patches (half as many make validation patches); 0: none.
        oversample_foreground: share of a batch that must contain foreground.
        prefetch_factor: batches that each process makes ahead.

    Raises:
        UserError: a value that cannot be used, or a case that the store does not have; the key is named.
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
        iterations: int = 250,
        val_iterations: int = 50,
        batch_size: int | None = None,
        augmentation: Mapping[str, Any] | None = None,
        num_workers: int = 0,
        oversample_foreground: float = 0.33,
        prefetch_factor: int = 2,
    ) -> None:
        super().__init__()
        batch_size = configuration.batch_size if batch_size is None else batch_size
        _check_at_least("plan.batch_size", batch_size, 1)
        _check_at_least("data.iterations_per_epoch", iterations, 1)
        _check_at_least("data.val_iterations", val_iterations, 0)
        _check_at_least("data.num_workers", num_workers, 0)
        _check_at_least("data.prefetch_factor", prefetch_factor, 1)
        if not 0 <= oversample_foreground <= 1:
            raise UserError(f"recipe.oversample_foreground={oversample_foreground}: must be a share from 0 to 1.")
        _check_cases(store, "training", train_cases, iterations)
        _check_cases(store, "validation", val_cases, val_iterations)

        patch_size = tuple(configuration.patch_size)
        whole_patch = (1,) * (3 - len(patch_size)) + patch_size
        settings = read_augmentation(augmentation, len(patch_size))
        masked = tuple(channel for channel, used in enumerate(configuration.use_mask_for_norm) if used)
        dataset = partial(
            PatchDataset,
            store,
            labels=labels,
            patch_size=whole_patch,
            dim=len(patch_size),
            batch_size=batch_size,
            oversample_foreground=oversample_foreground,
            seed=seed,
        )
        self.train_patches = dataset(
            case_ids=train_cases,
            transforms=training_transforms(settings, patch_size, masked),
            read_size=read_size(settings, patch_size),
            iterations=iterations,
            stream="train",
            deferred=settings.device == "gpu",
        )
        self.val_patches = dataset(
            case_ids=val_cases,
            transforms=validation_transforms(),
            read_size=whole_patch,
            iterations=val_iterations,
            stream="val",
        )
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.transfer_s = 0.0
        self.synchronize_transfer = True

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device; `transfer_s` is how long it took, exact while `synchronize_transfer` is set."""
        start = time.perf_counter()
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        self.transfer_s = self._seconds_since(start, device)
        return moved

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the labels int64, and with augmentation.device=gpu augment a training batch; that counts as transfer."""
        start = time.perf_counter()
        patches = self.train_patches.transform_batch(batch) if "number" in batch else batch
        patches["label"] = patches["label"].long()
        self.transfer_s += self._seconds_since(start, patches["image"].device)
        return patches

    def _seconds_since(self, start: float, device: torch.device) -> float:
        if self.synchronize_transfer and device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    def train_dataloader(self) -> tio.SubjectsLoader:
        """Return the loader of this rank's training patches; its sampler's `set_epoch` says which epoch's."""
        return self._loader(self.train_patches, self.num_workers)

    def val_dataloader(self) -> tio.SubjectsLoader | list[Any]:
        """Return the loader of this rank's validation patches, or nothing with val_iterations=0."""
        if not self.val_patches.iterations:
            return []
        return self._loader(self.val_patches, (self.num_workers + 1) // 2)

    def case_in_work(self, pid: int) -> str | None:
        """Return the case whose patch a worker process makes, or was making when it died; None if unknown."""
        return self.train_patches.case_in_work(pid) or self.val_patches.case_in_work(pid)

    def _loader(self, patches: PatchDataset, num_workers: int) -> tio.SubjectsLoader:
        rank, world_size, epoch, on_gpu = 0, 1, 0, False
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            # Not current_epoch: in a resumed run that still is the epoch before when the loader is made.
            epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            on_gpu = self.trainer.strategy.root_device.type == "cuda"
        if world_size > patches.batch_size:
            raise UserError(
                f"plan.batch_size={patches.batch_size} is less than the {world_size} processes (trainer.devices x "
                "trainer.num_nodes) that share a batch. Use fewer, or a larger batch."
            )
        sampler = PatchSampler(patches, rank, world_size)
        patches.share_work(num_workers, len(sampler.positions), self.prefetch_factor)
        # Lightning sets the epoch too, but in a resumed run only after workers have begun with the first batches.
        sampler.set_epoch(epoch)
        return tio.SubjectsLoader(
            copy(patches),  # with the memory of its own workers, whatever loaders are made later
            collate_fn=as_made,
            batch_size=len(sampler.positions),
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            prefetch_factor=self.prefetch_factor if num_workers else None,
            pin_memory=on_gpu,
            # The loader draws a number for its workers: not from the global generator, which patches leave alone.
            generator=torch.Generator().manual_seed(seed_of(patches.seed, patches.stream, "loader")),
        )


def _check_at_least(key: str, value: int, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise UserError(f"{key}={value!r}: must be a whole number from {lowest} on.")


def _check_cases(store: "CaseStore", kind: str, case_ids: Sequence[str], iterations: int) -> None:
    if iterations and not case_ids:
        raise UserError(f"fold: there are no {kind} cases. Choose another fold, or check splits_final.json.")
    missing = sorted(set(case_ids) - set(store.case_ids))
    if missing:
        listed = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise UserError(
            f"fold: {len(missing)} {kind} cases are not among the prepared ones: {listed}. Check splits_final.json."
        )
