"""Batches: shapes and values, and equality for any number of workers and ranks and after a resume."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import lightning
import numpy as np
import pytest
import torch

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.patches.case_cache import CaseCache
from umamba.patches.dataset import PatchSampler
from umamba.settings import AugmentationSettings
from umamba.settings.augmentation import Contrast, Gamma, Mirror

Make = Callable[..., Any]

# Case and first voxel of the training patches 0, 1, 2, 12, 13, 14 and 1200 of the store, seed 1.
RECORDED = [
    ("case_0", 3, 5, 5),
    ("case_2", 1, 0, 1),
    ("case_1", 4, 13, 7),
    ("case_0", 9, 9, 7),
    ("case_1", 5, 19, 7),
    ("case_0", 3, 1, 5),
    ("case_1", 5, 4, 7),
]


def take(loader: Any, count: int) -> list[dict[str, Any]]:
    """Return the first batches."""
    batches = []
    for _, batch in zip(range(count), loader, strict=False):
        batches.append(batch)
    return batches


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """Check that batches are bit-identical."""
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one["case_id"] == other["case_id"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_3d_batches(make_module: Make, store: Any, often: AugmentationSettings) -> None:
    module = make_module(store, augmentation=often)
    for loader, length in ((module.train_dataloader(), 4), (module.val_dataloader(), 2)):
        batches = list(loader)
        assert len(batches) == len(loader) == length
        for batch in batches:
            assert set(batch) == {"image", "label", "case_id"}
            assert batch["image"].shape == (3, 1, 8, 10, 6)
            assert batch["label"].shape == (3, 1, 8, 10, 6)
            assert batch["image"].dtype == torch.float32
            assert batch["label"].dtype == torch.int16
            assert module.on_after_batch_transfer(batch, 0)["label"].dtype == torch.int64
            assert batch["image"].is_contiguous()
            assert len(batch["case_id"]) == 3


@pytest.mark.parametrize("shapes", [[(1, 40, 30)], [(5, 20, 24), (7, 40, 12)]], ids=["images", "slices"])
def test_2d_batches(make_module: Make, make_cases: Make, often: AugmentationSettings, shapes: Any) -> None:
    module = make_module(make_cases(shapes, 3), (16, 12), augmentation=often, mask=(False,) * 3)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for batch in loader:
            assert batch["image"].shape == (3, 3, 16, 12)
            assert batch["label"].shape == (3, 1, 16, 12)


def test_workers_make_no_difference(make_module: Make, store: Any, often: AugmentationSettings) -> None:
    def batches(workers: int) -> list[dict[str, Any]]:
        module = make_module(store, iterations=5, augmentation=often, num_workers=workers)
        return take(module.train_dataloader(), 5) + take(module.val_dataloader(), 2)

    expected = batches(0)
    for workers in (1, 2):
        assert_same(batches(workers), expected)


def test_larger_patches_do_not_depend_on_threads(make_module: Make, make_cases: Make) -> None:
    """Sums over a patch of this size are split between threads and then round differently."""
    kinds = replace(AugmentationSettings.off(), contrast=Contrast(p=1), gamma=Gamma(p=1))
    module = make_module(make_cases([(48, 64, 64)]), (40, 56, 56), iterations=1, augmentation=kinds)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        several = list(module.train_dataloader())
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert_same(list(module.train_dataloader()), several)
    finally:
        torch.set_num_threads(before)


def test_epochs_seeds_and_streams_differ(make_module: Make, store: Any) -> None:
    module = make_module(store)
    loader = module.train_dataloader()
    first = list(loader)
    assert_same(list(loader), first)
    loader.sampler.set_epoch(1)
    second = list(loader)
    assert not any(torch.equal(one["image"], other["image"]) for one in first for other in second)
    assert not torch.equal(next(iter(make_module(store, seed=2).train_dataloader()))["image"], first[0]["image"])
    assert not torch.equal(next(iter(module.val_dataloader()))["image"], first[0]["image"])


def test_patches_do_not_depend_on_their_order(make_module: Make, store: Any, often: AugmentationSettings) -> None:
    patches = make_module(store, augmentation=often).train_patches
    forward = [patches[number].get_image("image").data for number in range(12)]
    for number in reversed(range(12)):
        assert torch.equal(patches[number].get_image("image").data, forward[number])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_batch(make_module: Make, store: Any, world_size: int) -> None:
    patches = make_module(store, batch_size=5).train_patches
    alone = PatchSampler(patches)
    alone.set_epoch(7)
    numbers = np.array(list(alone)).reshape(4, 5)
    parts = []
    for rank in range(world_size):
        sampler = PatchSampler(patches, rank, world_size)
        sampler.set_epoch(7)
        part = np.array(list(sampler)).reshape(4, -1)
        assert part.size == len(sampler)
        assert np.array_equal(part, numbers[:, rank::world_size])
        parts.append(part)
    assert np.array_equal(np.sort(np.concatenate(parts, axis=1)), numbers)
    assert numbers.min() == 7 * len(patches)


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_not_changed(
    make_module: Make, store: Any, often: AugmentationSettings, workers: int
) -> None:
    module = make_module(store, augmentation=often, num_workers=workers)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr] # noqa: NPY002
    list(module.train_dataloader())
    list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index] # noqa: NPY002


def packed(store: Any) -> Any:
    """Return a store whose voxels are blosc2 arrays, as in the files of prepared cases."""
    kept = copy(store)
    kept.loads = []
    kept.cases = {
        name: replace(case, image=blosc2.asarray(case.image), label=blosc2.asarray(case.label))
        for name, case in store.cases.items()
    }
    return kept


def total_of(batch: dict[str, Any]) -> float:
    """Return a number by which batches differ."""
    return float(batch["image"].double().sum() + batch["label"].double().sum())


class Recorder(lightning.LightningModule):
    """Records the batches that it receives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fed: dict[tuple[str, int], list[float]] = {}

    def record(self, kind: str, batch: dict[str, Any]) -> None:
        self.fed.setdefault((kind, self.current_epoch), []).append(total_of(batch))

    def training_step(self, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
        self.record("train", batch)
        return self.weight * batch["image"].mean()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.record("val", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Any, epochs: int, resume: Path | None, save: Path | None) -> dict[tuple[str, int], list[float]]:
    """Train with Lightning and return a number for each batch, by kind and epoch."""
    recorder = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, datamodule=module, ckpt_path=resume)
    if save:
        trainer.save_checkpoint(save)
    return recorder.fed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_gets_the_patches_of_the_uninterrupted_run(
    make_module: Make, store: Any, often: AugmentationSettings, tmp_path: Path, workers: int
) -> None:
    def module() -> Any:
        return make_module(store, augmentation=often, num_workers=workers)

    whole = fit(module(), 3, None, None)
    expected: dict[tuple[str, int], list[float]] = {}
    alone = make_module(store, augmentation=often)
    for kind, loader in (("train", alone.train_dataloader()), ("val", alone.val_dataloader())):
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)
            expected[kind, epoch] = [total_of(batch) for batch in loader]
    assert whole == expected
    assert len({total for totals in whole.values() for total in totals}) == 18, "every epoch has other patches"
    start = fit(module(), 1, None, tmp_path / "one.ckpt")
    rest = fit(module(), 3, tmp_path / "one.ckpt", None)
    assert start | rest == whole


def test_padding_and_no_negative_label(make_module: Make, make_cases: Make, often: AugmentationSettings) -> None:
    """No voxel of these images is 0, so that 0 means padding; their corners have the label -1."""
    store = make_cases([(5, 6, 7)])
    original = set(np.unique(store.cases["case_0"].label))
    assert -1 in original
    module = make_module(store, (8, 10, 10), augmentation=often, iterations=20)
    batch = next(iter(module.val_dataloader()))
    inside = batch["image"][:, 0] != 0
    assert inside.sum(dim=(1, 2, 3)).le(5 * 6 * 7).all()
    assert (batch["label"][:, 0][~inside] == 0).all()
    for batch in [*module.val_dataloader(), *module.train_dataloader()]:
        assert batch["label"].min() >= 0
        assert batch["label"].max() <= 2
        assert torch.isfinite(batch["image"]).all()
    assert set(np.unique(store.cases["case_0"].label)) == original, "the store's arrays are not written to"
    assert (store.cases["case_0"].image >= 1).all()


def test_masked_channels_are_cleared_in_training_only(make_module: Make, make_cases: Make) -> None:
    store = make_cases([(8, 10, 6)], 2)
    outside = torch.from_numpy(store.cases["case_0"].label[0] == -1)
    module = make_module(store, (8, 10, 6), mask=(True, False), oversample_foreground=0.0)
    for batch in module.train_dataloader():
        assert (batch["image"][:, 0, outside] == 0).all()
        assert (batch["image"][:, 0, ~outside] != 0).all()
        assert (batch["image"][:, 1] != 0).all()
    for batch in module.val_dataloader():
        assert (batch["image"] != 0).all()


@pytest.mark.parametrize(("batch_size", "forced"), [(2, 1), (12, 4), (30, 10), (9, 3), (1, 0)])
def test_forced_patches_hold_foreground(make_module: Make, make_cases: Make, batch_size: int, forced: int) -> None:
    """The last patches of a batch are forced; the image is large and its foreground small, so others mostly miss it."""
    module = make_module(make_cases([(64, 64, 64)]), (4, 4, 4), batch_size=batch_size, val_iterations=6)
    share = []
    for batch in module.val_dataloader():
        holds = batch["label"].flatten(1).max(dim=1).values > 0
        assert holds[batch_size - forced :].all()
        share.append(holds[: batch_size - forced].float().mean().item())
    assert forced == batch_size or np.mean(share) < 0.3


def test_few_cases_and_unused_val(make_module: Make, make_cases: Make) -> None:
    module = make_module(make_cases([(9, 9, 9)]), batch_size=7, val_iterations=0, val_cases=())
    assert next(iter(module.train_dataloader()))["case_id"] == ["case_0"] * 7
    assert module.val_dataloader() == []


def test_open_cases_are_bounded(make_cases: Make) -> None:
    store = make_cases([(3, 3, 3)] * 3)
    cases = CaseCache(store, capacity=2)
    for case_id in ("case_0", "case_1", "case_0", "case_2", "case_0", "case_1"):
        assert cases.load(case_id).case_id == case_id
    assert store.loads == ["case_0", "case_1", "case_2", "case_1"]
    assert cases.__getstate__()["cases"] == {}


def test_small_cases_stay_in_memory(make_cases: Make) -> None:
    """27 voxels of 6 bytes and 2 of foreground of 12 bytes make 186 bytes; 1000 voxels take more."""
    store = packed(make_cases([(3, 3, 3)] * 3 + [(10, 10, 10)]))
    foreground = {1: np.zeros((2, 3), np.int32)}
    store.cases = {name: replace(case, foreground=foreground) for name, case in store.cases.items()}
    cases = CaseCache(store, capacity=1, small_bytes=186)
    for _again in range(2):
        for case_id, source in store.cases.items():
            case, small = cases.load(case_id), case_id != "case_3"
            assert isinstance(case.image, np.ndarray) == isinstance(case.label, np.ndarray) == small
            assert np.array_equal(case.image[:], source.image[:])
            assert np.array_equal(case.label[:], source.label[:])
    assert store.loads == list(store.cases), "each case is opened once"
    assert list(cases.cases) == ["case_3"]
    assert cases.__getstate__()["small"] == {}
    assert CaseCache(store, small_bytes=185).load("case_0") is store.cases["case_0"]


def test_small_cases_of_all_workers_share_their_memory(make_module: Make, store: Any) -> None:
    patches = make_module(store).train_patches
    patches.share_memory(4, 3, 1)
    assert patches.cases.small_bytes == 2**22, "at most 4 MiB"
    patches.case_ids *= 100
    patches.share_memory(4, 3, 1)
    assert patches.cases.small_bytes == 2**29 // 300 // 4


@pytest.mark.parametrize("patch_size", [(8, 10, 6), (24, 28, 30), (2, 14, 14)], ids=["inside", "larger", "flat"])
def test_patches_do_not_depend_on_where_their_cases_are(
    make_module: Make, store: Any, often: AugmentationSettings, patch_size: tuple[int, ...]
) -> None:
    """Cases are arrays, files that are decoded whole, or files of which regions are decoded."""
    expected = list(make_module(store, patch_size, augmentation=often).train_dataloader())
    for small_bytes in (2**20, 0):
        module = make_module(packed(store), patch_size, augmentation=often)
        loader = module.train_dataloader()
        module.train_patches.cases.small_bytes = small_bytes
        module.train_patches.cases.small.clear()
        assert_same(list(loader), expected)
        assert len(module.train_patches.cases.small) == (3 if small_bytes else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_cases": ()}, "no training cases"),
        ({"val_cases": ()}, "no validation cases"),
        ({"train_cases": ("case_0", "nobody")}, "nobody"),
        (
            {"patch_size": (8, 8), "augmentation": AugmentationSettings(mirror=Mirror(axes=(2,)))},
            r"augmentation\.mirror\.axes=\[2\]: 2D patches have the axes 0 to 1",
        ),
    ],
)
def test_mistakes_that_only_the_data_shows_name_the_key(
    make_module: Make, store: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_module(store, **arguments)


def test_ignore_label_centres_on_labelled_voxels(make_module: Make, make_cases: Make) -> None:
    store = make_cases([(40, 40, 40)])
    case = store.cases["case_0"]
    case.foreground = {**case.foreground, -1: np.array([[20, 20, 20]], dtype=np.int32)}
    case.image[0, 20, 20, 20] = 100.0
    labels = LabelSet(("one", "two"), ((1,), (2,)), ignore=3)
    module = make_module(store, (5, 5, 5), labels=labels, oversample_foreground=0.0)
    for batch in module.train_dataloader():
        assert (batch["image"][:, 0, 2, 2, 2] == 100).all()
    del case.foreground[-1]
    with pytest.raises(UserError, match="labelled"):
        next(iter(module.train_dataloader()))


def test_places_of_patches_do_not_change(make_module: Make, store: Any) -> None:
    """The case and place of a patch are a function of (seed, epoch, index); some are recorded here."""
    patches = make_module(store).train_patches
    found = [(case.case_id, *start) for case, start in map(patches.region_of, (0, 1, 2, 12, 13, 14, 1200))]
    assert found == RECORDED
