"""A store in memory with the interface of the prepared cases, and datamodules that read it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from umamba.labels import LabelSet
from umamba.patches import PatchDataModule
from umamba.settings import AugmentationSettings

LABELS = LabelSet(("one", "two"), ((1,), (2,)))


@dataclass
class MemoryCase:
    case_id: str
    image: np.ndarray  # (C, Z, Y, X)
    label: np.ndarray  # (1, Z, Y, X)
    foreground: Mapping[int, np.ndarray] = field(default_factory=dict)
    previous: np.ndarray | None = None  # (1, Z, Y, X), for cascades


@dataclass
class MemoryStore:
    cases: dict[str, MemoryCase]
    loads: list[str] = field(default_factory=list)

    @property
    def case_ids(self) -> tuple[str, ...]:
        return tuple(self.cases)

    def load(self, case_id: str) -> MemoryCase:
        self.loads.append(case_id)
        return self.cases[case_id]

    def letters(self, case_id: str) -> tuple[str, str, str] | None:
        return ("S", "P", "L") if self.cases[case_id].image.shape[1] > 1 else None


@dataclass
class SmallConfiguration:
    patch_size: tuple[int, ...]
    batch_size: int = 3
    use_mask_for_norm: tuple[bool, ...] = (False,)
    previous_stage: str | None = None

    @property
    def spacing(self) -> tuple[float, ...]:
        return (1.0,) * len(self.patch_size)


def make_store(shapes: Sequence[tuple[int, ...]], channels: int = 1) -> MemoryStore:
    """Return cases with two cubes of foreground; no image voxel is 0, and a corner's label is -1."""
    generator = np.random.default_rng(0)
    cases = {}
    for number, shape in enumerate(shapes):
        label = np.zeros((1, *shape), dtype=np.int16)
        for value in (1, 2):
            starts = [size * value // 4 for size in shape]
            cube = tuple(slice(start, start + max(1, size // 5)) for start, size in zip(starts, shape, strict=True))
            label[0][cube] = value
        label[0, :, :2, :2] = -1
        image = generator.uniform(1, 2, (channels, *shape)).astype(np.float32)
        foreground = {value: np.argwhere(label[0] == value).astype(np.int32) for value in (1, 2)}
        cases[f"case_{number}"] = MemoryCase(f"case_{number}", image, label, foreground)
    return MemoryStore(cases)


@pytest.fixture
def store() -> MemoryStore:
    """Return three small volumes of different shapes."""
    return make_store([(20, 22, 24), (14, 30, 16), (9, 9, 9)])


@pytest.fixture
def make_cases() -> Callable[..., MemoryStore]:
    """Return the maker of stores."""
    return make_store


@pytest.fixture
def case_type() -> type[MemoryCase]:
    """Return the type of a case in memory."""
    return MemoryCase


@pytest.fixture
def store_type() -> type[MemoryStore]:
    """Return the type of a store in memory."""
    return MemoryStore


@pytest.fixture
def often() -> AugmentationSettings:
    """Return every kind of augmentation, without CutMix, each applied to half of the patches."""
    kinds = {
        name: replace(kind, p=0.5)
        for name, kind in vars(AugmentationSettings()).items()
        if name not in ("device", "extra", "previous_stage", "cutmix")
    }
    return AugmentationSettings(**kinds)


@pytest.fixture
def make_module() -> Callable[..., PatchDataModule]:
    """Return a maker of datamodules, by default without augmentation."""

    def make(
        store: Any,
        patch_size: tuple[int, ...] = (8, 10, 6),
        *,
        batch_size: int = 3,
        mask: tuple[bool, ...] = (False,),
        labels: LabelSet = LABELS,
        previous_stage: str | None = None,
        **arguments: Any,
    ) -> PatchDataModule:
        short = {"seed": 1, "iterations": 4, "val_iterations": 2}
        options: dict[str, Any] = {**short, "augmentation": AugmentationSettings.off(), **arguments}
        configuration: Any = SmallConfiguration(patch_size, batch_size, mask, previous_stage)
        train = options.pop("train_cases", store.case_ids)
        val = options.pop("val_cases", store.case_ids)
        return PatchDataModule(store, configuration, labels, train, val, **options)

    return make
