"""Patches by number: a dataset, a sampler that numbers them through all epochs, and how they become a batch."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torchio as tio
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, get_worker_info

from umamba.labels import LabelSet
from umamba.patches.lending import Batch, Layout, LendingMemory, new_batch
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
    """The cases used last, kept open. Workers start with none of their parent's.

    Args:
        store: where they are.
        capacity: most cases, each of which has two open files.
        capacity_bytes: of their lists of foreground voxels.
    """

    def __init__(self, store: "CaseStore", capacity: int = 256, capacity_bytes: int = 2**26) -> None:
        self.store = store
        self.capacity = capacity
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self.cases: OrderedDict[str, StoredCase] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind when sent to another process."""
        return {**self.__dict__, "cases": OrderedDict(), "held_bytes": 0}

    def load(self, case_id: str) -> "StoredCase":
        """Return a case, opened now or earlier."""
        if case_id in self.cases:
            self.cases.move_to_end(case_id)
            return self.cases[case_id]
        case = self.store.load(case_id)
        self.cases[case_id] = case
        self.held_bytes += foreground_bytes(case)
        while len(self.cases) > 1 and (len(self.cases) > self.capacity or self.held_bytes > self.capacity_bytes):
            self.held_bytes -= foreground_bytes(self.cases.popitem(last=False)[1])
        return case


def foreground_bytes(case: "StoredCase") -> int:
    """Return the memory of a case's lists of foreground voxels."""
    return sum(voxels.nbytes for voxels in case.foreground.values())


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
        dim: 3; or 2, whose batches are without the first axis.
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
        dim: int,
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
        self.dim = dim
        self.batch_size = batch_size
        self.iterations = iterations
        self.oversample_foreground = oversample_foreground
        self.seed = seed
        self.stream = stream
        self.deferred = deferred
        self.in_work: Tensor | None = None
        self.memory: LendingMemory | None = None

    def share_work(self, num_workers: int, batch_size: int, batches_ahead: int) -> None:
        """Prepare memory that worker processes share with this one, anew for each loader.

        In it each notes its process number and which patch it makes, and writes its batches.

        Args:
            num_workers: processes.
            batch_size: patches of their batches.
            batches_ahead: those that each makes ahead; there is memory for these, and for two that are in use.

        Raises:
            UserError: there is not so much shared memory.
        """
        self.in_work = self.memory = None
        if num_workers:
            self.in_work = torch.full((num_workers, 2), -1, dtype=torch.int64).share_memory_()
            self.memory = LendingMemory(self.layout(batch_size), num_workers, batches_ahead + 2)

    def layout(self, batch_size: int) -> Layout:
        """Return shape and type of the tensors of a batch."""
        size = self.read_size if self.deferred else self.patch_size
        shape = size if self.dim == 3 else size[1:]
        channels = self.cases.load(self.case_ids[0]).image.shape[0]
        return {
            "image": ((batch_size, channels, *shape), torch.float32),
            "label": ((batch_size, 1, *shape), torch.int16),
        }

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
        return self._made(number, None)

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """Return the batch of these patches, which PyTorch's loader asks for at once.

        It holds "image" float32 (B, C, *patch), "label" int16 (B, 1, *patch) and "case_id"; with `deferred` boxes, and
        "number".

        Each patch is read or written where it belongs in the batch: joining them would copy them once more.
        """
        worker = get_worker_info()
        if worker is None or self.memory is None:
            batch = new_batch(self.layout(len(numbers)))
        else:
            batch = self.memory.take(worker.id)
        whole = [batch[name] if self.dim == 3 else batch[name].unsqueeze(2) for name in IMAGES]
        subjects = []
        for place, number in enumerate(numbers):
            parts = [tensor[place] for tensor in whole]
            subject = self._made(number, parts)
            for name, part in zip(IMAGES, parts, strict=True):
                made = subject.get_image(name).data
                if made.data_ptr() != part.data_ptr():
                    part.copy_(made)
            subjects.append(subject)
        batch.update(_told(subjects))
        return batch

    def _made(self, number: int, into: Sequence[Tensor] | None) -> tio.Subject:
        """Return a patch, which may lie in the memory offered for its image and label."""
        worker = get_worker_info()
        if worker is not None and self.in_work is not None:
            self.in_work.numpy()[worker.id] = os.getpid(), number
        if self.deferred:
            subject = self._read(number, self.read_size, into)
            subject["number"] = number
            return subject
        return self._transformed(number, partial(self._read, number, into=into))

    def _read(self, number: int, size: Sequence[int], into: Sequence[Tensor] | None) -> tio.Subject:
        """Return the box of a patch, or the part of this size in its centre; it is read into memory of its shape."""
        case, box = self.place_of(number)
        start = [first + (whole - part) // 2 for first, whole, part in zip(box, self.read_size, size, strict=True)]
        fits = into is not None and tuple(into[0].shape[1:]) == tuple(size)
        image, label = (part.numpy() for part in into) if into is not None and fits else (None, None)
        return tio.Subject(
            image=tio.ScalarImage(tensor=torch.from_numpy(read_box(case.image, start, size, 0, image))),
            label=tio.LabelMap(tensor=torch.from_numpy(read_box(case.label, start, size, OUTSIDE, label))),
            case_id=case.case_id,
        )

    def place_of(self, number: int) -> tuple["StoredCase", tuple[int, ...]]:
        """Return the case of a patch, and the first voxel of its box of `read_size`."""
        generator = generator_of(*self._key(number), "place")
        case = self.cases.load(self.case_ids[generator.integers(len(self.case_ids))])
        forced = is_forced(number % len(self) % self.batch_size, self.batch_size, self.oversample_foreground)
        voxel = draw_voxel(case.foreground, self.labels, forced, generator)
        return case, draw_start(case.image.shape[1:], self.read_size, self.patch_size, voxel, generator)

    def transform_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch of boxes (see `deferred`) as patches: each with the draws of its number, on its device."""
        boxes = batch["image"], batch["label"]
        images, labels = boxes if self.dim == 3 else (box.unsqueeze(2) for box in boxes)

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
        joined = {name: torch.stack([subject.get_image(name).data for subject in subjects]) for name in IMAGES}
        if self.dim == 2:
            joined = {name: tensor.squeeze(2) for name, tensor in joined.items()}
        return {**joined, **_told(subjects)}

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


def _told(subjects: Sequence[tio.Subject]) -> dict[str, list[Any]]:
    """Return what a batch says of each patch: "case_id", and of boxes that are yet to be transformed their "number"."""
    names = [name for name in ("case_id", "number") if name in subjects[0]]
    return {name: [subject[name] for subject in subjects] for name in names}


def as_made(batch: Any) -> Any:
    """Return a batch as it is: the dataset has joined its patches (`__getitems__`)."""
    return batch
