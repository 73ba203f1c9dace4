"""Pretraining: hidden blocks and their loss by arithmetic; a run, its continuation bit for bit, and its fine-tuning."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from umamba.cli.compose import settings_of
from umamba.io import UserError
from umamba.planning import fold_cases
from umamba.records import RunFolder, read_checkpoint
from umamba.records.checkpoint import read_weights
from umamba.records.run_folder import pretrained_file
from umamba.records.tables import read_metrics
from umamba.runs import PreparedDataset, plan_of, pretrain
from umamba.runs.cases import run_cases
from umamba.runs.pretraining import without_labels
from umamba.settings import MaskingSettings, PretrainSettings
from umamba.training.masking import block_size, hidden_voxels, reconstruction_loss

Fit = Callable[..., RunFolder]
Make = Callable[..., PretrainSettings]


@pytest.fixture(scope="module")
def make(small_settings: list[str], small_paths: Path, prepared: PreparedDataset) -> Make:
    """Return a function that makes the settings of a small pretraining on the phantom of the other small runs."""

    def settings(runs: Path, *overrides: str) -> PretrainSettings:
        paths = [f"paths.{name}={small_paths / name}" for name in ("raw", "preprocessed")]
        return settings_of(PretrainSettings, [*small_settings, *paths, f"paths.runs={runs}", "name=mae", *overrides])

    return settings


@pytest.fixture(scope="module")
def pretrained(make: Make, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a pretraining of two epochs."""
    return pretrain(make(tmp_path_factory.mktemp("runs")), progress=False)


def state(folder: RunFolder) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder.last, weights_only=True)["state_dict"])


@pytest.mark.parametrize(
    ("size", "block", "share", "count"),
    [((8, 8), (4, 4), 0.5, 2), ((8, 12, 4), (4, 4, 4), 0.75, 4), ((5, 7), (4, 4), 0.6, 2), ((4, 8), (4, 4), 0.1, 1)],
)
def test_whole_blocks_are_hidden(size: tuple[int, ...], block: tuple[int, ...], share: float, count: int) -> None:
    """The grid has ceil(size / block) blocks, of which round(share * blocks) are hidden, at least one."""
    mask = hidden_voxels(size, block, share, np.random.default_rng(3)).numpy()
    assert mask.shape == size
    hidden = 0
    for corner in np.ndindex(*[-(-edge // own) for edge, own in zip(size, block, strict=True)]):
        part = mask[tuple(slice(place * own, (place + 1) * own) for place, own in zip(corner, block, strict=True))]
        assert part.all() or not part.any()
        hidden += int(part.all())
    assert hidden == count


def test_each_block_is_hidden_as_often() -> None:
    masks = [hidden_voxels((4, 4), (2, 2), 0.75, np.random.default_rng(seed)).numpy() for seed in range(200)]
    assert np.mean(masks, axis=0) == pytest.approx(np.full((4, 4), 0.75), abs=0.1)


def test_blocks_follow_the_strides(prepared: PreparedDataset) -> None:
    configuration = prepared.configuration  # strides 1, then (1, 2, 2), then 2
    assert block_size(MaskingSettings(), configuration) == (2, 4, 4)
    assert block_size(MaskingSettings(block=(3, 5, 7)), configuration) == (3, 5, 7)
    deep = replace(configuration, strides=((1, 1, 1), *[(1, 2, 2)] * 6), patch_size=(8, 64, 64))
    assert block_size(MaskingSettings(), deep) == (1, 16, 16)
    with pytest.raises(UserError, match=r"masking\.block=\[8, 16, 20\]: a block covers the whole patch"):
        block_size(MaskingSettings(block=(8, 16, 20)), configuration)


def test_the_loss_is_that_of_hidden_voxels_alone() -> None:
    image, output = torch.zeros(1, 2, 2, 2), torch.tensor([[[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]]], requires_grad=True)
    hidden = torch.tensor([[[[True, False], [False, True]]]])
    loss = reconstruction_loss(output, image, hidden)
    assert loss.item() == (1 + 16 + 25 + 64) / 4
    loss.backward()
    assert output.grad is not None
    assert torch.equal(output.grad != 0, hidden.expand(1, 2, 2, 2))


def test_a_pretraining_leaves_a_run(pretrained: RunFolder, make: Make) -> None:
    assert pretrained.status()["state"] == "finished"
    rows = read_metrics(pretrained.metrics)
    assert len(rows) == 2
    assert {"train/loss", "val/loss"} <= rows[0].keys()
    assert not [name for name in rows[0] if "dice" in name]
    assert not pretrained.best.exists()
    with pytest.raises(UserError, match=r"pretrained to reconstruct images.*pretrained="):
        read_checkpoint(pretrained.last)
    stored = read_weights(pretrained.last)
    assert stored.reconstructs
    assert {len(tensor) for name, tensor in stored.weights.items() if "seg_layers" in name} == {1}  # one channel


def test_a_continued_pretraining_ends_with_the_same_bits(pretrained: RunFolder, make: Make, tmp_path: Path) -> None:
    pretrain(make(tmp_path, "trainer.max_epochs=1"), progress=False)
    resumed = pretrain(make(tmp_path), progress=False)
    ours, expected = state(resumed), state(pretrained)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    with pytest.raises(UserError, match=r"masking\.share: was 0\.75, is 0\.5"):
        pretrain(make(tmp_path, "masking.share=0.5"), progress=False)


def test_a_training_starts_from_it(
    pretrained: RunFolder, small_fit: Fit, messages: pytest.LogCaptureFixture, make: Make
) -> None:
    runs = pretrained.path.parents[3]
    still = ["recipe.optimizer.lr=1e-300", "recipe.optimizer.momentum=0", "recipe.optimizer.nesterov=false"]
    tuned = state(small_fit("pretrained=run:mae", f"paths.runs={runs}", "trainer.max_epochs=1", *still))
    before = state(pretrained)
    heads = {name for name in before if ".seg_layers." in name}
    assert f"it was pretrained to reconstruct images: {len(heads)} tensors of the heads begin anew" in messages.text
    assert heads
    for name, tensor in tuned.items():
        assert (name in heads and tensor.shape != before[name].shape) or torch.equal(tensor, before[name]), name


def test_a_run_that_is_not_trained_is_named(make_settings: Any, prepared: PreparedDataset, tmp_path: Path) -> None:
    from umamba.runs.checks import check_network

    with pytest.raises(UserError, match=r"pretrained=run:mae: .*seed_3.*does not exist.*umamba pretrain"):
        check_network(make_settings("pretrained=run:mae", f"paths.runs={tmp_path}", "seed=3"), prepared)


def test_a_run_that_still_trains_is_no_beginning(make_settings: Any, tmp_path: Path) -> None:
    settings = make_settings("pretrained=run:mae", f"paths.runs={tmp_path}", "name=tuned")
    own = RunFolder.of(settings)
    before = RunFolder(tmp_path / "mae" / own.path.relative_to(tmp_path / "tuned"))
    before.last.parent.mkdir(parents=True)
    before.last.touch()
    before.set_status(state="training")
    with pytest.raises(UserError, match=r"pretrained=run:mae: the training of .*mae.* has not ended"):
        pretrained_file(settings)
    own.last.parent.mkdir(parents=True)
    own.last.touch()
    assert pretrained_file(settings) == before.last, "a training that has begun with it continues"
    own.last.unlink()
    before.set_status(state="finished")
    assert pretrained_file(settings) == before.last


def test_images_that_are_learnt(make: Make, prepared: PreparedDataset, tmp_path: Path) -> None:
    """Those of the dataset besides the fold's validation cases, and those of further folders, none of them twice."""
    own = prepared.dataset.root / "imagesTr"
    first = sorted(own.glob("*.nii.gz"))[0]
    (tmp_path / "Dataset1_Other" / "imagesTr").mkdir(parents=True)
    (tmp_path / "Dataset1_Other" / "imagesTr" / "new_0000.nii.gz").write_bytes(first.read_bytes())
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "x_0000.nii.gz").write_bytes(first.read_bytes())
    (tmp_path / "plain" / "volume.tif").write_bytes(b"voxels")
    (tmp_path / "plain" / "volume.json").write_text('{"spacing": [3, 1, 1]}')  # belongs to it, wherever both lie
    settings = make(tmp_path, f"images=[{tmp_path / 'Dataset1_Other'},{tmp_path / 'plain'}]")
    images = without_labels(settings, plan_of(settings))
    assert all(case.label is None for case in images.dataset.training)
    train, val = run_cases(settings, images)
    expected_train, expected_val = fold_cases(prepared.store.case_ids, 0)
    assert val == [f"imagesTr_{name}" for name in expected_val]
    assert set(train) == {
        "images0Tr_new",
        "images1_x",
        "images1_volume",
        *(f"imagesTr_{name}" for name in expected_train),
    }
    everything, seen = run_cases(replace(settings, fold="all"), images)
    assert set(everything) == {*train, *val}
    assert set(seen) == {f"imagesTr_{name}" for name in prepared.store.case_ids}
    (tmp_path / "plain").rename(tmp_path / "elsewhere")
    moved = make(tmp_path, f"images=[{tmp_path / 'Dataset1_Other'},{tmp_path / 'elsewhere'}]")
    assert without_labels(moved, plan_of(moved)).digest == images.digest
    twice = make(tmp_path, f"images=[{own}]")
    with pytest.raises(UserError, match="is listed twice"):
        without_labels(twice, plan_of(twice))
