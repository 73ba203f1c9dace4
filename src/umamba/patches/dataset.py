"""A dataset of numbered patches, and the sampler that numbers them through all epochs."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torchio as tio
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, get_worker_info

from umamba.labels import LabelSet
from umamba.patches.case_cache import CaseCache
from umamba.patches.intensity import ClearOutside
from umamba.patches.patch import Patch, apply_all
from umamba.patches.sampling import draw_start, draw_voxel, is_forced, read_region
from umamba.patches.seeding import generator_of, kept_torch, seed_torch
from umamba.patches.slots import BatchLayout, SlotBatch, SlotPool, new_batch
from umamba.patches.spatial import IMAGES, RotateScaleCrop, crop_centre
from umamba.preprocessing.case import OUTSIDE

if TYPE_CHECKING:
    from umamba.preprocessing import CaseStore, StoredCase

_SLOTS_IN_USE = 2  # batches of a worker that the main process may hold beside those that are made ahead


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
        deferred: do not apply the transforms, but read whole regions; `transform_batch` applies them later.
        margin: voxels (Z, Y, X) at each side beyond `read_size` that extra transforms may need.
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
    ) -> None:
        self.cases = CaseCache(store)
        self.case_ids = tuple(case_ids)
        self.labels = labels
        self.transforms = transforms
        self.spatial = next((step for step in transforms.transforms if isinstance(step, RotateScaleCrop)), None)
        # Whether the patch depends on torch's generator.
        self.draws = any(not isinstance(step, ClearOutside) for step in transforms.transforms)
        self.read_size = tuple(read_size)
        self.largest_size = tuple(size + 2 * edge for size, edge in zip(read_size, margin, strict=True))
        self.patch_size = tuple(patch_size)
        self.dim = dim
        self.batch_size = batch_size
        self.iterations = iterations
        self.oversample_foreground = oversample_foreground
        self.seed = seed
        self.stream = stream
        self.deferred = deferred
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
            size `read_size` instead of patches, and the "number" of each.
        """
        worker = get_worker_info()
        if worker is None or self.slots is None:
            batch = new_batch(self.batch_layout(len(numbers)))
        else:
            batch = self.slots.take(worker.id)
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
                patches.append(patch)
        batch.update(_facts_of(patches))
        return batch

    def region_of(self, number: int) -> tuple["StoredCase", tuple[int, ...]]:
        """Return the case of a patch and the first voxel (Z, Y, X) of its region of size `read_size`."""
        generator = generator_of(*self._key(number), "place")
        case = self.cases.load(self._draw_case(generator))
        forced = is_forced(number % len(self) % self.batch_size, self.batch_size, self.oversample_foreground)
        voxel = draw_voxel(case.foreground, self.labels, forced, generator)
        return case, draw_start(case.image.shape[1:], self.read_size, self.patch_size, voxel, generator)

    def transform_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the transforms to a batch of regions (see `deferred`) on the device that the batch is on.

        Args:
            batch: what `__getitems__` returned, moved to the device.

        Returns:
            "image" (B, C, *patch), "label" (B, 1, *patch) and "case_id", as workers make them without `deferred`.
        """
        regions = batch["image"], batch["label"]
        images, labels = regions if self.dim == 3 else (region.unsqueeze(2) for region in regions)

        def crop(image: Tensor, label: Tensor, case_id: str, size: Sequence[int]) -> Patch:
            # Contiguous like a region that was read, because the memory layout decides in which order sums are made.
            image, label = (crop_centre(tensor, size).contiguous() for tensor in (image, label))
            return Patch(image, label, case_id=case_id)

        with kept_torch():
            patches = [
                self._transform(number, partial(crop, image, label, case_id))
                for image, label, case_id, number in zip(images, labels, batch["case_id"], batch["number"], strict=True)
            ]
        stacked = {name: torch.stack([patch.get_image(name).data for patch in patches]) for name in IMAGES}
        if self.dim == 2:
            stacked = {name: tensor.squeeze(2) for name, tensor in stacked.items()}
        return {**stacked, **_facts_of(patches)}

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
        if num_workers:
            self.current_numbers = torch.full((num_workers, 2), -1, dtype=torch.int64).share_memory_()
            self.slots = SlotPool(self.batch_layout(batch_size), num_workers, prefetch_factor + _SLOTS_IN_USE)

    def batch_layout(self, batch_size: int) -> BatchLayout:
        """Return shape and type of each tensor of a batch."""
        size = self.read_size if self.deferred else self.patch_size
        shape = size if self.dim == 3 else size[1:]
        channels = self.cases.load(self.case_ids[0]).image.shape[0]
        return {
            "image": ((batch_size, channels, *shape), torch.float32),
            "label": ((batch_size, 1, *shape), torch.int16),
        }

    def case_in_work(self, pid: int) -> str | None:
        """Return the case from which a worker makes a patch, or made one when it died.

        Args:
            pid: process ID of the worker.

        Returns:
            The case's name; None if the process is not a worker of this dataset.
        """
        for worker_pid, number in [] if self.current_numbers is None else self.current_numbers.tolist():
            if worker_pid == pid:
                return self._draw_case(generator_of(*self._key(number), "place"))
        return None

    def _key(self, number: int) -> tuple[int, str, int, int]:
        """Return what a patch is a function of."""
        epoch, index = divmod(number, len(self))
        return self.seed, self.stream, epoch, index

    def _draw_case(self, generator: Any) -> str:
        return self.case_ids[generator.integers(len(self.case_ids))]

    def _make(self, number: int, targets: Sequence[Tensor] | None) -> Patch:
        """Return a patch, or its region with `deferred`; what is read may be in the target tensors."""
        worker = get_worker_info()
        if worker is not None and self.current_numbers is not None:
            self.current_numbers.numpy()[worker.id] = os.getpid(), number
        if self.deferred:
            patch = self._read(number, targets, self.read_size)
            patch["number"] = number
            return patch
        return self._transform(number, partial(self._read, number, targets))

    def _transform(self, number: int, read: Callable[[Sequence[int]], Patch]) -> Patch:
        """Draw the rotation first, then read only the region it needs, then apply all transforms."""
        if self.draws:
            seed_torch(*self._key(number), "augmentation")
        if self.spatial is None:
            return apply_all(self.transforms.transforms, read(self.largest_size))
        matrix = self.spatial.draw_matrix()
        patch = read(self.spatial.source_size(matrix, self.largest_size))
        patch["matrix"] = matrix
        return apply_all(self.transforms.transforms, patch)

    def _read(self, number: int, targets: Sequence[Tensor] | None, size: Sequence[int]) -> Patch:
        """Read the central part of a patch's region, into the target tensors if they have its size."""
        case, first = self.region_of(number)
        start = [low + (whole - part) // 2 for low, whole, part in zip(first, self.read_size, size, strict=True)]
        fits = targets is not None and tuple(targets[0].shape[1:]) == tuple(size)
        into_image, into_label = (
            (target.numpy() for target in targets) if targets is not None and fits else (None, None)
        )
        image = torch.from_numpy(read_region(case.image, start, size, 0, into_image))
        label = torch.from_numpy(read_region(case.label, start, size, OUTSIDE, into_label))
        return Patch(image, label, case_id=case.case_id)


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


def _facts_of(patches: Sequence[Patch]) -> dict[str, list[Any]]:
    """Return "case_id" of each patch, and the "number" of patches that are not transformed yet."""
    names = [name for name in ("case_id", "number") if name in patches[0]]
    return {name: [patch[name] for patch in patches] for name in names}
