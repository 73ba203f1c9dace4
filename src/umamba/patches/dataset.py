"""A dataset of numbered patches, and the sampler that numbers them through all epochs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchio as tio
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, get_worker_info

from umamba.labels import LabelSet
from umamba.labels.annotated import Annotated
from umamba.labels.component_regions import component_regions
from umamba.patches.case_cache import CaseCache
from umamba.patches.cutmix import Partner, PasteBox, draw_box
from umamba.patches.draws import draw_all
from umamba.patches.intensity import ClearOutside
from umamba.patches.on_device import transform_regions
from umamba.patches.patch import Patch, apply_all
from umamba.patches.previous_stage import AddPreviousStage
from umamba.patches.sampling import carriers, draw_start, draw_voxel, inside_of, is_forced, read_region
from umamba.patches.seeding import generator_of, kept_torch, seed_torch
from umamba.patches.slots import BatchLayout, SlotBatch, SlotPool, new_batch
from umamba.patches.spatial import IMAGES, RotateScaleCrop
from umamba.preprocessing.case import OUTSIDE

if TYPE_CHECKING:
    from umamba.preprocessing import CaseStore, StoredCase

_SLOTS_IN_USE = 2  # batches of a worker that the main process may hold beside those that are made ahead
_SMALL_BYTES = 2**22  # a small case takes no more memory than this,
_ALL_SMALL_BYTES = 2**29  # and small cases take no more than this in all worker processes of a loader
_NEVER = 2**62  # no patch has this number


class PatchDataset(Dataset[tio.Subject]):
    """A dataset of patches; number epoch * len(dataset) + index is patch `index` of that epoch.

    A patch is a function of (seed, stream, epoch, index). It is made in three steps: draw case and place
    (`region_of`); draw rotation and scaling; read the region that they need and apply the other transforms.

    Args:
        store: the preprocessed cases.
        case_ids: cases that patches are drawn from, with replacement and equal chance.
        labels: the label set.
        transforms: transforms of a patch; their result has `patch_size` and no label -1.
        dim: 3; or 2, whose batches have no first spatial axis.
        read_size: size (Z, Y, X) of the region that contains what any rotation and scaling needs, voxels.
        patch_size: size (Z, Y, X) of the result, voxels.
        batch_size: patches of a batch over all ranks.
        iterations: batches of an epoch.
        oversample_foreground: share of a batch that must contain foreground, 0 to 1.
        seed: seed of the run.
        stream: name that separates training patches from validation patches.
        deferred: draw for the transforms, but do not apply them, and read whole regions; `transform_batch` applies them
            later. `defer_from` can choose this later, too.
        margin: voxels (Z, Y, X) at each side beyond `read_size` that extra transforms may need.
        added_channels: channels that the transforms add to the image: those of the previous stage of a cascade.
        annotated: labels of the partly labelled cases. If there are any, a patch that must contain foreground draws a
            label first and then one of the cases that carry it, so that no label is rare because few cases carry it.
        component_spacing: (Z, Y, X) in mm; if given, a batch also holds the regions of the labels' components, for
            which the transforms must not be deferred. None: it does not.
    """

    def __init__(
        self,
        store: "CaseStore",
        case_ids: Sequence[str],
        labels: LabelSet,
        transforms: tio.Compose,
        *,
        dim: int,
        read_size: Sequence[int],
        patch_size: Sequence[int],
        batch_size: int,
        iterations: int,
        oversample_foreground: float,
        seed: int,
        stream: str,
        deferred: bool = False,
        margin: Sequence[int] = (0, 0, 0),
        added_channels: int = 0,
        annotated: Annotated | None = None,
        component_spacing: Sequence[float] | None = None,
    ) -> None:
        self.case_ids = tuple(case_ids)
        self.cases = CaseCache(store, small_bytes=self._small_bytes(1))
        self.labels = labels
        self.carriers = list(carriers(labels, annotated, case_ids).items()) if annotated else []
        self.transforms = transforms
        self.spatial = next((step for step in transforms.transforms if isinstance(step, RotateScaleCrop)), None)
        # Whether the patch depends on torch's generator.
        self.draws = any(
            not isinstance(step, ClearOutside) and not (isinstance(step, AddPreviousStage) and step.spoilt is None)
            for step in transforms.transforms
        )
        self.paste = next((step for step in transforms.transforms if isinstance(step, PasteBox)), None)
        # Whether rotation and scaling get the region as it was read: zero, and -1, outside the image.
        self.spatial_is_first = self.spatial is not None and transforms.transforms[0] is self.spatial
        self.read_size = tuple(read_size)
        self.largest_size = tuple(size + 2 * edge for size, edge in zip(read_size, margin, strict=True))
        self.patch_size = tuple(patch_size)
        self.dim = dim
        self.added_channels = added_channels
        self.batch_size = batch_size
        self.iterations = iterations
        self.oversample_foreground = oversample_foreground
        self.seed = seed
        self.stream = stream
        self.deferred_from = torch.tensor([0 if deferred else _NEVER])  # the workers see changes in shared memory
        self.may_defer = deferred  # whether slots of shared memory must have room for regions
        self.component_spacing = component_spacing
        self.current_numbers: Tensor | None = None
        self.slots: SlotPool | None = None

    def __len__(self) -> int:
        """Return the number of patches in an epoch, over all ranks."""
        return self.batch_size * self.iterations

    def __getitem__(self, number: int) -> tio.Subject:
        """Return a subject with `image` (C, Z, Y, X) float32, `label` (1, Z, Y, X) int16 and `case_id`."""
        with kept_torch():
            return self._make(number, None).subject()

    def __getitems__(self, numbers: Sequence[int]) -> SlotBatch:
        """Return a batch of patches; PyTorch's loader calls this instead of `__getitem__`.

        Patches are written into the batch as they are made, because stacking them afterwards would copy them once more.

        Args:
            numbers: numbers of the patches.

        Returns:
            "image" float32 (B, C, *patch), "label" int16 (B, 1, *patch) and "case_id". With `deferred` the regions of
            size `read_size` instead of patches, what was "drawn" for each, and the "noise" of those that have it. With
            `component_spacing` also "components" int32 (B, K, *patch), see `component_regions`, and "component_count",
            the highest number in them, which the loss would otherwise have to wait for.
        """
        worker = get_worker_info()
        layout = self.batch_layout(len(numbers), self.is_deferred(numbers[0]))
        batch = new_batch(layout) if worker is None or self.slots is None else self.slots.take(worker.id, layout)
        tensors = [batch[name] if self.dim == 3 else batch[name].unsqueeze(2) for name in IMAGES]
        patches = []
        with kept_torch():
            for position, number in enumerate(numbers):
                targets = [tensor[position] for tensor in tensors]
                patch = self._make(number, targets)
                for name, target in zip(IMAGES, targets, strict=True):
                    made = patch.get_image(name).data
                    if made.data_ptr() != target.data_ptr():
                        target.copy_(made)
                if self.component_spacing is not None:
                    batch["components"][position] = self._regions(patch)
                patches.append(patch)
        batch["case_id"] = [patch["case_id"] for patch in patches]
        if self.component_spacing is not None:
            batch["component_count"] = int(batch["components"].max())
        if "drawn" in patches[0]:
            batch["drawn"] = [patch["drawn"] for patch in patches]
            batch["noise"] = [noise for patch in patches for noise in patch["noise"]]
        return batch

    def is_deferred(self, number: int) -> bool:
        """Return whether the transforms of a patch are applied by `transform_batch`."""
        return number >= int(self.deferred_from.numpy()[0])

    def defer_from(self, epoch: int) -> None:
        """Let `transform_batch` apply the transforms of all patches from an epoch on.

        Args:
            epoch: one whose patches no worker makes yet.
        """
        self.deferred_from[0] = epoch * len(self)

    def region_of(self, number: int) -> tuple["StoredCase", tuple[int, ...]]:
        """Return the case of a patch and the first voxel (Z, Y, X) of its region of size `read_size`."""
        generator = generator_of(*self._key(number), "place")
        case_id, wanted = self._draw_case(generator, number)
        case = self.cases.load(case_id)
        voxel = draw_voxel(case.foreground, self.labels, self._is_forced(number), generator, wanted)
        return case, draw_start(case.image.shape[1:], self.read_size, self.patch_size, voxel, generator)

    def partner_of(self, number: int, paste: PasteBox) -> Partner | None:
        """Return the patch of which a box is pasted, with foreground and without rotation; None: nothing is pasted.

        Args:
            number: of the patch that gets the box.
            paste: the transform that pastes it.
        """
        generator = generator_of(*self._key(number), "partner")
        if generator.random() >= paste.cutmix.p:
            return None
        case = self.cases.load(self.case_ids[generator.integers(len(self.case_ids))])
        size = paste.size
        voxel = draw_voxel(case.foreground, self.labels, True, generator)
        start = draw_start(case.image.shape[1:], size, size, voxel, generator)
        image, label = self._region(case, start, size)
        return Partner(image, label, draw_box(size, paste.cutmix.edge, generator))

    def transform_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the transforms to a batch of regions (see `deferred`) on the device that the batch is on.

        Args:
            batch: what `__getitems__` returned, moved to the device.

        Returns:
            "image" (B, C, *patch), "label" (B, 1, *patch) and "case_id", as workers make them without `deferred`.
        """
        images, labels = batch["image"], batch["label"]
        if self.dim == 2:
            images, labels = images.unsqueeze(2), labels.unsqueeze(2)
        image, label = transform_regions(
            self.transforms.transforms, images, labels, batch["drawn"], batch["noise"], self.patch_size
        )
        if self.dim == 2:
            image, label = image.squeeze(2), label.squeeze(2)
        return {"image": image, "label": label, "case_id": batch["case_id"]}

    def share_memory(self, num_workers: int, batch_size: int, prefetch_factor: int) -> None:
        """Allocate the memory that the worker processes of one loader share with the main process.

        Workers write their batches into it, and the number of the patch that each of them makes.

        Args:
            num_workers: number of worker processes; 0: nothing is shared.
            batch_size: patches of a batch on this rank.
            prefetch_factor: batches that each worker makes ahead.

        Raises:
            UserError: the machine does not have enough shared memory.
        """
        self.current_numbers = self.slots = None
        self.cases.small_bytes = self._small_bytes(max(1, num_workers))
        if num_workers:
            self.current_numbers = torch.full((num_workers, 2), -1, dtype=torch.int64).share_memory_()
            self.deferred_from.share_memory_()
            kinds = {self.is_deferred(0), self.may_defer}
            layouts = [self.batch_layout(batch_size, deferred) for deferred in sorted(kinds)]
            self.slots = SlotPool(layouts, num_workers, prefetch_factor + _SLOTS_IN_USE)

    def batch_layout(self, batch_size: int, deferred: bool = False) -> BatchLayout:
        """Return shape and type of each tensor of a batch of patches, or of regions with `deferred`."""
        size = self.read_size if deferred else self.patch_size
        shape = size if self.dim == 3 else size[1:]
        channels = self.cases.load(self.case_ids[0]).image.shape[0] + self.added_channels
        layout = {
            "image": ((batch_size, channels, *shape), torch.float32),
            "label": ((batch_size, 1, *shape), torch.int16),
        }
        if self.component_spacing is not None:
            layout["components"] = ((batch_size, len(self.labels.names), *shape), torch.int32)
        return layout

    def case_in_work(self, pid: int) -> str | None:
        """Return the case from which a worker makes a patch, or made one when it died.

        Args:
            pid: process ID of the worker.

        Returns:
            The case's name; None if the process is not a worker of this dataset.
        """
        for worker_pid, number in [] if self.current_numbers is None else self.current_numbers.tolist():
            if worker_pid == pid:
                return self._draw_case(generator_of(*self._key(number), "place"), number)[0]
        return None

    def _key(self, number: int) -> tuple[int, str, int, int]:
        """Return what a patch is a function of."""
        epoch, index = divmod(number, len(self))
        return self.seed, self.stream, epoch, index

    def _is_forced(self, number: int) -> bool:
        return is_forced(number % len(self) % self.batch_size, self.batch_size, self.oversample_foreground)

    def _draw_case(self, generator: Any, number: int) -> tuple[str, int | None]:
        """Return the case of a patch, and the class that it must contain if that was drawn first."""
        if not self.carriers or not self._is_forced(number):
            return self.case_ids[generator.integers(len(self.case_ids))], None
        wanted, cases = self.carriers[generator.integers(len(self.carriers))]
        return cases[generator.integers(len(cases))], wanted

    def _small_bytes(self, processes: int) -> int:
        """Return up to which size a case is small, so that there is memory for all cases if all are small."""
        return min(_SMALL_BYTES, _ALL_SMALL_BYTES // (processes * max(1, len(self.case_ids))))

    def _make(self, number: int, targets: Sequence[Tensor] | None) -> Patch:
        """Return a patch, or its region with `deferred`; what is read may be in the target tensors."""
        worker = get_worker_info()
        if worker is not None and self.current_numbers is not None:
            self.current_numbers.numpy()[worker.id] = os.getpid(), number
        if self.draws:
            seed_torch(*self._key(number), "augmentation")
        matrix = None if self.spatial is None else self.spatial.draw_matrix()
        if self.is_deferred(number):
            patch = self._read(number, targets, self.read_size)
            shape = (len(patch.get_image("image").data), *self.patch_size)
            patch["drawn"], patch["noise"] = draw_all(self.transforms.transforms, matrix, shape)
            return patch
        if self.spatial is None:
            patch = self._read(number, targets, self.largest_size)
        else:  # Only the region that the rotation needs is read.
            patch = self._read(number, targets, self.spatial.source_size(matrix, self.largest_size))
            patch["matrix"] = matrix
        if self.paste is not None:
            patch["partner"] = self.partner_of(number, self.paste)
        return self._apply(patch)

    def _apply(self, patch: Patch) -> Patch:
        """Apply the transforms; draw only if one of them draws."""
        if self.draws:
            return apply_all(self.transforms.transforms, patch)
        steps: Sequence[Any] = self.transforms.transforms
        for step in steps:
            patch = step.apply_transform(patch)
        return patch

    def _regions(self, patch: Patch) -> Tensor:
        """Return the regions (K, *patch) of the components in a patch."""
        assert self.component_spacing is not None
        label = patch.get_image("label").data[0].numpy()
        regions = torch.from_numpy(component_regions(label, self.labels, self.component_spacing))
        return regions if self.dim == 3 else regions.squeeze(1)

    def _read(self, number: int, targets: Sequence[Tensor] | None, size: Sequence[int]) -> Patch:
        """Read the central part of a patch's region, into the target tensors if they have its size."""
        case, first = self.region_of(number)
        start = [low + (whole - part) // 2 for low, whole, part in zip(first, self.read_size, size, strict=True)]
        # The image of a cascade gets more channels later, so that its patch is copied into the targets.
        fits = targets is not None and not self.added_channels and tuple(targets[0].shape[1:]) == tuple(size)
        into_image, into_label = (
            (target.numpy() for target in targets) if targets is not None and fits else (None, None)
        )
        image, label = self._region(case, start, size, into_image, into_label)
        patch = Patch(image, label, case_id=case.case_id)
        if self.spatial_is_first:
            patch["inside"] = inside_of(case.image.shape[1:], start, size)
        return patch

    @staticmethod
    def _region(
        case: "StoredCase",
        start: Sequence[int],
        size: Sequence[int],
        into_image: np.ndarray | None = None,
        into_label: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read image (C, *size) and label of a region; in a cascade the label has a second channel."""
        image = torch.from_numpy(read_region(case.image, start, size, 0, into_image))
        label = torch.from_numpy(read_region(case.label, start, size, OUTSIDE, into_label))
        if case.previous is not None:
            label = torch.cat([label, torch.from_numpy(read_region(case.previous, start, size, OUTSIDE))])
        return image, label


class PatchSampler(DistributedSampler[int]):
    """Yields the numbers of this rank's patches: from every batch, the positions rank, rank + world_size, ...

    It is a DistributedSampler because Lightning keeps such a sampler under DDP and calls its `set_epoch` before each
    epoch.

    Args:
        dataset: the patches; `batch_size` and `iterations` are read.
        rank: number of this process.
        world_size: number of processes.

    >>> class Patches(list):
    ...     batch_size, iterations = 3, 2
    >>> sampler = PatchSampler(Patches(range(6)), rank=0, world_size=2)
    >>> sampler.set_epoch(1)
    >>> list(sampler)
    [6, 8, 9, 11]
    """

    def __init__(self, dataset: PatchDataset, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        self.patches = dataset
        self.positions = range(rank, dataset.batch_size, world_size)

    def __len__(self) -> int:
        """Return the number of this rank's patches in an epoch."""
        return len(self.positions) * self.patches.iterations

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the epoch's patches batch by batch."""
        first = self.epoch * len(self.patches)
        for iteration in range(self.patches.iterations):
            for position in self.positions:
                yield first + iteration * self.patches.batch_size + position


def keep_batch(batch: Any) -> Any:
    """Return a batch unchanged: the loader needs no collate function because the dataset makes whole batches."""
    return batch
