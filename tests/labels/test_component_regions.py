"""Regions of components against a search through all voxels of the components."""

import numpy as np
import pytest

from umamba.labels import LabelSet
from umamba.labels.component_regions import component_regions

LABELS = LabelSet(("a", "b"), ((1,), (2,)))
REGIONS = LabelSet(("whole", "core"), ((1, 2), (2,)), region_order=(1, 2))


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return small boxes of the labels 1 and 2 that may touch, and a corner with -1."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, dtype=np.int16)
    for _ in range(6):
        start = [int(rng.integers(size)) for size in shape]
        label[tuple(slice(first, first + 2) for first in start)] = rng.integers(1, 3)
    label[0, :2, :2] = -1
    return label


def grown_components(mask: np.ndarray) -> list[np.ndarray]:
    """Return the voxels (n, 3) of each component; voxels one apart along each axis at most are connected."""
    left = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    found = []
    while left:
        wave, members = [left.pop()], []
        while wave:
            voxel = wave.pop()
            members.append(voxel)
            near = {other for other in left if max(abs(a - b) for a, b in zip(voxel, other, strict=True)) <= 1}
            left -= near
            wave += near
        found.append(np.array(members))
    return found


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("shape", [(5, 9, 8), (1, 12, 11)])
def test_each_voxel_belongs_to_the_nearest_component(shape: tuple[int, ...], labels: LabelSet) -> None:
    spacing = np.array([2.5, 1.0, 0.7])
    for seed in range(3):
        label = blobs(shape, seed)
        found = component_regions(label, labels, tuple(spacing))
        assert found.dtype == np.int32
        for own, values in zip(found, labels.values, strict=True):
            components = grown_components(np.isin(label, values))
            assert own.max() == len(components)
            numbers = [set(own[tuple(voxels.T)].tolist()) for voxels in components]
            assert all(len(number) == 1 for number in numbers)  # a component is in one region, and has its own
            assert len(set.union(set(), *numbers)) == len(components)
            for voxel in np.ndindex(*shape):
                steps = [(voxels - np.array(voxel)) * spacing for voxels in components]
                away = {min(number): (step**2).sum(1).min() for number, step in zip(numbers, steps, strict=True)}
                if away:
                    assert away[int(own[voxel])] == pytest.approx(min(away.values()))


def test_an_absent_label_has_no_regions_and_a_single_component_has_all() -> None:
    label = np.zeros((2, 3, 4), dtype=np.int16)
    label[1, 1, 1] = 2
    found = component_regions(label, LABELS, (1, 1, 1))
    assert not found[0].any()
    assert (found[1] == 1).all()
