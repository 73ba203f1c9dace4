"""Patches by number: a dataset, a sampler that numbers them through all epochs, and how they become a batch."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torchio as tio
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, default_collate, get_worker_info

from umamba.labels import LabelSet
from umamba.patches.sampling import OUTSIDE, draw_start, draw_voxel, is_forced, read_box
from umamba.patches.seeding import generator_of, seeded_torch
from umamba.patches.spatial import RotateScaleCrop, crop_centre

if TYPE_CHECKING:
    from umamba.preprocessing import CaseStore, StoredCase


IMAGES = ("image", "label")


def steps_of(transforms: tio.Transform) -> Sequence[tio.Transform]:
    """Return the transforms of a chain, or the only one."""
    return transforms.transforms if isinstance(transforms, tio.Compose) else [transforms]


class OpenCases:
    """The cases used last, kept open; at most `capacity`. Workers start with none of their parent's."""

    def __init__(self, store: "CaseStore", capacity: int = 64) -> None:
        self.store = store
        self.capacity = capacity
        self.cases: OrderedDict[str, StoredCase] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind when sent to another process."""
        return {**self.__dict__, "cases": OrderedDict()}

    def load(self, case_id: str) -> "StoredCase":
        """Return a case, opened now or earlier."""
        if case_id in self.cases:
            self.cases.move_to_end(case_id)
            return self.cases[case_id]
        case = self.store.load(case_id)
        self.cases[case_id] = case
        if len(self.cases) > self.capacity:
            self.cases.popitem(last=False)
        return case


class PatchDataset(Dataset[tio.Subject]):
    """Patch number epoch * len(self) + i is patch i of that epoch, a function of (seed, stream, epoch, i).

    Args:
        store: the preprocessed cases.
        case_ids: those that patches are drawn from, with replacement and equal chance.
        labels: the label set.
        transforms: what a patch goes through; ends with size `patch_size` and without -1 in the label.
        deferred: leave the transforms to `transform_batch`: subjects are boxes as they were read, with their `number`.
        read_size: size (Z, Y, X) of the box that any rotation and scaling needs; read is what the drawn one needs.
        patch_size: size (Z, Y, X) of the result.
        batch_size: patches of a batch over all ranks.
        iterations: batches of an epoch.
        oversample_foreground: share of a batch that must contain foreground.
        seed: the run's.
        stream: separates training from validation.
    """

    def __init__(
        self,
        store: "CaseStore",
        case_ids: Sequence[str],
        labels: LabelSet,
        transforms: tio.Transform,
        *,
        read_size: Sequence[int],
        patch_size: Sequence[int],
        batch_size: int,
        iterations: int,
        oversample_foreground: float,
        seed: int,
        stream: str,
        deferred: bool = False,
    ) -> None:
        self.cases = OpenCases(store)
        self.case_ids = tuple(case_ids)
        self.labels = labels
        self.transforms = transforms
        self.spatial = next((each for each in steps_of(transforms) if isinstance(each, RotateScaleCrop)), None)
        self.read_size = tuple(read_size)
        self.patch_size = tuple(patch_size)
        self.batch_size = batch_size
        self.iterations = iterations
        self.oversample_foreground = oversample_foreground
        self.seed = seed
        self.stream = stream
        self.deferred = deferred
        self.in_work: Tensor | None = None

    def share_work(self, num_workers: int) -> None:
        """Let each worker process note in shared memory its process number and which patch it makes."""
        self.in_work = torch.full((num_workers, 2), -1, dtype=torch.int64).share_memory_() if num_workers else None

    def case_in_work(self, pid: int) -> str | None:
        """Return the case whose patch a worker process makes, or was making when it died; None if it is no such."""
        for process, number in [] if self.in_work is None else self.in_work.tolist():
            if process == pid:
                return self.case_of(number)
        return None

    def case_of(self, number: int) -> str:
        """Return the case that a patch is taken from."""
        generator = generator_of(*self._key(number), "place")
        return self.case_ids[generator.integers(len(self.case_ids))]

    def _key(self, number: int) -> tuple[int, str, int, int]:
        epoch, index = divmod(number, len(self))
        return self.seed, self.stream, epoch, index

    def __len__(self) -> int:
        """Return the patches of one epoch, over all ranks."""
        return self.batch_size * self.iterations

    def __getitem__(self, number: int) -> tio.Subject:
        """Return a subject with `image` (C, Z, Y, X) float32, `label` (1, Z, Y, X) and `case_id`."""
        worker = get_worker_info()
        if worker is not None and self.in_work is not None:
            self.in_work[worker.id] = torch.tensor([os.getpid(), number])
        if self.deferred:
            subject = self._read(number, self.read_size)
            subject["number"] = number
            return subject
        return self._transformed(number, partial(self._read, number))

    def _read(self, number: int, size: Sequence[int]) -> tio.Subject:
        """Return the box of a patch, or the part of this size in its centre."""
        generator = generator_of(*self._key(number), "place")
        case_id = self.case_ids[generator.integers(len(self.case_ids))]
        case = self.cases.load(case_id)
        forced = is_forced(number % len(self) % self.batch_size, self.batch_size, self.oversample_foreground)
        voxel = draw_voxel(case.foreground, self.labels, forced, generator)
        box = draw_start(case.image.shape[1:], self.read_size, self.patch_size, voxel, generator)
        start = [first + (whole - part) // 2 for first, whole, part in zip(box, self.read_size, size, strict=True)]
        return tio.Subject(
            image=tio.ScalarImage(tensor=torch.from_numpy(read_box(case.image, start, size, 0))),
            label=tio.LabelMap(tensor=torch.from_numpy(read_box(case.label, start, size, OUTSIDE))),
            case_id=case_id,
        )

    def transform_batch(self, batch: Mapping[str, Any], dim: int) -> dict[str, Any]:
        """Return a batch of boxes (see `deferred`) as patches: each with the draws of its number, on its device."""
        boxes = batch["image"], batch["label"]
        images, labels = boxes if dim == 3 else (box.unsqueeze(2) for box in boxes)

        def cut(image: Tensor, label: Tensor, case_id: str, size: Sequence[int]) -> tio.Subject:
            # Contiguous as what is read: the layout decides in what order sums are made.
            parts = [crop_centre(tensor, size).contiguous() for tensor in (image, label)]
            return tio.Subject(
                image=tio.ScalarImage(tensor=parts[0]), label=tio.LabelMap(tensor=parts[1]), case_id=case_id
            )

        subjects = [
            self._transformed(number, partial(cut, image, label, case_id))
            for image, label, case_id, number in zip(images, labels, batch["case_id"], batch["number"], strict=True)
        ]
        return collate_patches(subjects, dim)

    def _transformed(self, number: int, give: Callable[[Sequence[int]], tio.Subject]) -> tio.Subject:
        """Return a patch; how it is turned is drawn first, so that `give` is asked for no larger a part than needed."""
        with seeded_torch(*self._key(number), "augmentation"):
            if self.spatial is None:
                return self.transforms(give(self.read_size))
            matrix = self.spatial.draw_matrix()
            subject = give(self.spatial.source_size(matrix, self.read_size))
            subject["matrix"] = matrix
            return self.transforms(subject)


class PatchSampler(DistributedSampler[int]):
    """Yields this rank's patch numbers of an epoch: its stride of every batch.

    A DistributedSampler because Lightning then leaves it in place under DDP, and calls `set_epoch` before each epoch.

    Args:
        dataset: the patches.
        rank: this process.
        world_size: all processes.
    """

    def __init__(self, dataset: PatchDataset, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        self.patches = dataset
        self.positions = range(rank, dataset.batch_size, world_size)

    def __len__(self) -> int:
        """Return the patches of one epoch on this rank."""
        return len(self.positions) * self.patches.iterations

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers batch by batch."""
        first = self.epoch * len(self.patches)
        for iteration in range(self.patches.iterations):
            for position in self.positions:
                yield first + iteration * self.patches.batch_size + position


def collate_patches(subjects: Sequence[tio.Subject], dim: int) -> dict[str, Any]:
    """Return "image" float32 (B, C, *patch), "label" int16 (B, 1, *patch), "case_id"; 2D: without the first axis.

    Boxes that are yet to be transformed also have their "number".
    """
    # PyTorch's collation writes straight into the memory that a worker shares with the main process.
    image, label = (default_collate([subject.get_image(name).data for subject in subjects]) for name in IMAGES)
    if dim == 2:
        image, label = image.squeeze(2), label.squeeze(2)
    told = [name for name in ("case_id", "number") if name in subjects[0]]
    return {"image": image, "label": label, **{name: [subject[name] for subject in subjects] for name in told}}
