"""Where patches are sampled, compared with hand arithmetic and slow enumeration."""

import itertools
from dataclasses import replace
from typing import Any

import blosc2
import numpy as np
import pytest

from umamba.labels import LabelSet
from umamba.patches.augmentation import read_size
from umamba.patches.sampling import carriers, draw_start, draw_voxel, inside_of, is_forced, read_region
from umamba.patches.seeding import seed_of
from umamba.settings import AugmentationSettings
from umamba.settings.augmentation import Scaling

OFF = AugmentationSettings.off()


@pytest.mark.parametrize(
    ("patch", "size"),
    [
        ((128, 128, 128), (205, 205, 205)),  # 128 (cos 30 + sin 30) / 0.85 = 205.7
        # 40 cos 30 + 56 sin 30 = 62.6; 56 cos 30 + 40 sin 30 = 68.5; 40 (cos 30 + sin 30) = 54.6
        ((40, 56, 40), (73, 80, 64)),
        ((40, 224, 192), (40, 263, 263)),  # flat: in-plane, up to 90 degrees: 224 / 0.85 = 263.5
        ((512, 512), (1, 602, 602)),
        ((100, 200), (1, 174, 235)),  # elongated, 15 degrees: 100 cos 15 + 200 sin 15 = 148.4; 200 / 0.85 = 235.3
    ],
)
def test_read_size(patch: tuple[int, ...], size: tuple[int, ...]) -> None:
    assert read_size(AugmentationSettings(), patch) == size


def test_nothing_more_is_read_without_rotation_and_scaling() -> None:
    assert read_size(OFF, (40, 56, 40)) == (40, 56, 40)
    assert read_size(OFF, (56, 40)) == (1, 56, 40)
    assert read_size(replace(OFF, scaling=Scaling(p=0.1)), (128, 128, 128)) == (205, 205, 205)


def test_forced_positions() -> None:
    counts = {batch: sum(is_forced(j, batch, 0.33) for j in range(batch)) for batch in range(1, 31)}
    assert {2: 1, 12: 4, 30: 10}.items() <= counts.items()
    assert [j for j in range(12) if is_forced(j, 12, 0.33)] == [8, 9, 10, 11]
    assert not any(is_forced(j, 12, 0.0) for j in range(12))
    assert all(is_forced(j, 12, 1.0) for j in range(12))


@pytest.mark.parametrize(
    ("size", "read", "patch", "starts"),
    [
        (10, 4, 4, range(0, 7)),  # as much as fits
        (10, 6, 4, range(-1, 6)),  # one voxel of margin on both sides
        (10, 7, 4, range(-2, 6)),  # three: two below, two above
        (3, 8, 4, range(-3, -1)),  # smaller than the patch: 5 are missing, 3 before and 2 after, or 2 and 3
        (1, 1, 1, range(0, 1)),
    ],
)
def test_random_starts_cover_their_range(size: int, read: int, patch: int, starts: range) -> None:
    generator = np.random.default_rng(0)
    drawn = [draw_start((size,), (read,), (patch,), None, generator)[0] for _ in range(400)]
    assert sorted(set(drawn)) == list(starts)


def test_forced_starts_are_clamped_below_only() -> None:
    generator = np.random.default_rng(0)
    starts = [draw_start((10,), (6,), (4,), np.array([voxel]), generator)[0] for voxel in range(10)]
    assert starts == [-1, -1, -1, 0, 1, 2, 3, 4, 5, 6]


def test_classes_have_equal_chance_however_rare() -> None:
    labels = LabelSet(("a", "b", "c"), ((1,), (2,), (3,)))
    foreground = {1: np.zeros((1000, 3), int), 2: np.ones((1, 3), int), 3: np.zeros((0, 3), int)}
    generator = np.random.default_rng(0)
    rare = sum(bool(draw_voxel(foreground, labels, True, generator)[0]) for _ in range(2000))  # type: ignore[index]
    assert abs(rare - 1000) < 4 * np.sqrt(500)
    assert draw_voxel(foreground, labels, False, generator) is None
    assert draw_voxel({}, labels, True, generator) is None


def test_regions_are_copies_padded_outside() -> None:
    array = np.arange(1, 61, dtype=np.float32).reshape(1, 3, 4, 5)
    padded = np.pad(array, [(0, 0), (6, 8), (6, 8), (6, 8)], constant_values=-7)
    for start in itertools.product((-6, -2, 0, 1, 5), (-6, -3, 0, 1), (-6, -4, 0, 1, 5)):
        for size in ((2, 4, 6), (2, 3, 4)):
            expected = padded[(slice(None), *(slice(s + 6, s + 6 + n) for s, n in zip(start, size, strict=True)))]
            for source in (array, blosc2.asarray(array)):
                region = read_region(source, start, size, -7)
                assert np.array_equal(region, expected), (start, size)
                assert not np.shares_memory(region, array)
            low, high = inside_of(array.shape[1:], start, size)
            inside = (expected != -7)[0]
            within = tuple(map(slice, low, high))
            assert inside[within].all()
            assert inside.sum() == inside[within].size


def test_seeds_depend_on_every_part() -> None:
    seeds = {seed_of(a, b, c) for a in range(10) for b in ("train", "val") for c in range(100)}
    assert len(seeds) == 2000
    assert seed_of(1, 12) != seed_of(11, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_forced_patches_give_each_label_the_same_share_of_few_and_many_carriers(
    make_module: Any, make_cases: Any
) -> None:
    store = make_cases([(12, 12, 12)] * 10)
    annotated = {f"case_{number}": ("one",) for number in range(1, 10)}  # only case_0 carries two
    for case_id in annotated:
        case = store.cases[case_id]
        case.label[case.label == 2] = 0
        case.foreground = {1: case.foreground[1], 2: np.zeros((0, 3), np.int32)}
    options = {"iterations": 200, "oversample_foreground": 1.0, "batch_size": 2}
    module = make_module(store, (4, 4, 4), annotated=annotated, **options)
    patches = module.train_patches
    drawn = [patches.region_of(number)[0].case_id for number in range(400)]
    share = drawn.count("case_0") / 400  # all of label two, and a tenth of label one: 0.55; without knowing: 0.1
    assert abs(share - 0.55) < 4 * np.sqrt(0.25 / 400)
    assert carriers(module.labels, annotated, store.case_ids)[2] == ("case_0",)
    plain = make_module(store, (4, 4, 4), **options).train_patches
    everything = make_module(store, (4, 4, 4), annotated={"elsewhere": ("one",)}, **options).train_patches
    for number in range(50):
        assert plain.region_of(number)[1] == everything.region_of(number)[1]


def test_batches_say_which_labels_their_cases_carry(make_module: Any, store: Any) -> None:
    module = make_module(store, annotated={"case_1": ("two",)}, batch_size=12)
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    expected = [[case_id != "case_1", True] for case_id in batch["case_id"]]
    assert batch["annotated"].tolist() == expected
    assert "case_1" in batch["case_id"]
    whole = make_module(store)
    assert "annotated" not in whole.on_after_batch_transfer(next(iter(whole.train_dataloader())), 0)
