"""Marginal and exclusion loss of partly labelled cases against loops over voxels in float64."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from umamba.labels import LabelSet
from umamba.settings import LossSettings
from umamba.training import panels
from umamba.training.losses import DeepSupervisionLoss, DiceCrossEntropy, dice_of_sums, resize_label
from umamba.training.partial_losses import exclusion_loss, merged_logits
from umamba.training.patch_dice import PatchDice

ORGANS = LabelSet.from_json({"background": 0, "a": 1, "b": 2, "c": 3})
IGNORE = LabelSet.from_json({"background": 0, "a": 1, "b": 2, "c": 3, "ignore": 4})
REGIONS = LabelSet.from_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
CARRIED = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
BOTH = LossSettings(exclusion_weight=1)  # the marginal and the exclusion loss


def made(labels: LabelSet, carried: torch.Tensor, *size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random logits, and labels that each case carries."""
    generator = torch.Generator().manual_seed(7)
    logits = 2 * torch.randn(len(carried), labels.num_classes, *size, generator=generator)
    label = torch.zeros(len(carried), 1, *size, dtype=torch.long)
    for sample, row in enumerate(carried):
        values = [0, *(k + 1 for k, carries in enumerate(row) if carries)]
        values += [] if labels.ignore is None else [labels.ignore]
        label[sample] = torch.tensor(values)[torch.randint(0, len(values), (1, *size), generator=generator)]
    return logits, label


def slow_loss(
    logits: torch.Tensor,
    label: torch.Tensor,
    carried: torch.Tensor,
    batch_dice: bool,
    ignore: int | None,
    weight: float,
) -> float:
    """Marginal cross-entropy and Dice, and the exclusion loss, voxel by voxel."""
    samples, classes = logits.shape[:2]
    p = logits.double().softmax(1).reshape(samples, classes, -1).tolist()
    truth = label.reshape(samples, -1).tolist()
    entropy, voxels = 0.0, 0
    sums: dict[tuple[int, int], list[float]] = {}
    excluded = []
    for b in range(samples):
        missing = [k for k in range(1, classes) if not carried[b, k - 1]]
        counted = [v for v, true in enumerate(truth[b]) if true != ignore]
        for v in counted:
            group = [0, *missing] if truth[b][v] == 0 else [truth[b][v]]
            entropy -= math.log(sum(p[b][k][v] for k in group))
            voxels += 1
        for k in range(1, classes):
            if k not in missing:
                overlap = sum(p[b][k][v] for v in counted if truth[b][v] == k)
                total = sum(p[b][k][v] + (truth[b][v] == k) for v in counted)
                sums[b, k] = [overlap, total]
        known = [v for v in counted if truth[b][v] > 0]
        for k in missing:
            overlap = sum(p[b][k][v] for v in known)
            total = sum(p[b][k][v] for v in counted) + len(known)
            logarithms = sum(math.log(1 + p[b][k][v]) for v in known)
            excluded.append(2 * overlap / total + logarithms / max(1, len(known)))
    groups = [[pair] for pair in sums]
    if batch_dice:
        groups = [[pair for pair in sums if pair[1] == k] for k in range(1, classes)]
    ratios = []
    for together in groups:
        if together:
            overlap, total = (sum(sums[pair][i] for pair in together) for i in (0, 1))
            ratios.append((2 * overlap + 1e-5) / (total + 1e-5))
    exclusion = sum(excluded) / max(1, len(excluded))
    return entropy / voxels - sum(ratios) / len(ratios) + weight * exclusion


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("labels", [ORGANS, IGNORE])
@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
def test_loss_equals_the_sum_over_voxels(labels: LabelSet, size: tuple[int, ...], batch_dice: bool) -> None:
    logits, label = made(labels, CARRIED, *size)
    for weight in (0.0, 0.7):
        loss = DiceCrossEntropy(labels, batch_dice, LossSettings(exclusion_weight=weight))(logits, label, CARRIED)
        expected = slow_loss(logits, label, CARRIED, batch_dice, labels.ignore, weight)
        assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_a_label_that_no_case_of_the_batch_carries_is_no_part_of_the_mean() -> None:
    carried = torch.tensor([[True, False, False], [True, True, False]])
    logits, label = made(ORGANS, carried, 4, 5)
    loss = DiceCrossEntropy(ORGANS, True, BOTH)(logits, label, carried)
    assert loss.item() == pytest.approx(slow_loss(logits, label, carried, True, None, 1.0), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
def test_gradients_are_those_of_float64(dtype: torch.dtype, last: bool) -> None:
    logits, label = made(IGNORE, CARRIED, 5, 6, 7)
    logits = logits.to(dtype)
    logits = logits.contiguous(memory_format=torch.channels_last_3d) if last else logits
    fast, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    DiceCrossEntropy(IGNORE, True, BOTH)(fast, label, CARRIED).backward()

    p, counts = exact.softmax(1), (label != 4).double()
    carried = torch.cat([torch.ones(3, 1, dtype=torch.bool), CARRIED], 1)[..., None, None, None]
    rest = (p * (~carried)).sum(1, keepdim=True)
    merged = torch.cat([p[:, :1] + rest, p[:, 1:]], 1)
    true = torch.nn.functional.one_hot((label * (label != 4))[:, 0], 4).movedim(-1, 1) * counts
    entropy = -((merged.log() * true).sum()) / counts.sum()
    kept = CARRIED[..., None, None, None] * counts
    overlap, total = (p[:, 1:] * true[:, 1:] * kept).sum((0, 2, 3, 4)), ((p + true)[:, 1:] * kept).sum((0, 2, 3, 4))
    known = (label > 0) * counts
    shared, mass = (p[:, 1:] * known).sum((2, 3, 4)), (p[:, 1:] * counts).sum((2, 3, 4)) + known.sum((2, 3, 4))
    excluded = 2 * shared / mass + ((p[:, 1:] + 1).log() * known).sum((2, 3, 4)) / known.sum((2, 3, 4))
    exclusion = (excluded * ~CARRIED).sum() / (~CARRIED).sum()
    (entropy - ((2 * overlap + 1e-5) / (total + 1e-5)).mean() + exclusion).backward()
    assert fast.grad is not None
    assert exact.grad is not None
    assert fast.grad.dtype == dtype
    error = (fast.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < (1e-5 if dtype == torch.float32 else 6e-3)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_gradients_equal_finite_differences(batch_dice: bool) -> None:
    logits, label = made(ORGANS, CARRIED, 2, 3)
    loss = DiceCrossEntropy(ORGANS, batch_dice, BOTH)
    assert torch.autograd.gradcheck(lambda x: loss(x, label, CARRIED), logits.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: exclusion_loss(x, label, CARRIED, None), logits.double().requires_grad_())


@pytest.mark.parametrize("labels", [ORGANS, IGNORE, REGIONS])
def test_cases_that_carry_all_labels_have_the_loss_of_before_bit_by_bit(labels: LabelSet) -> None:
    everything = torch.ones(2, len(labels.names), dtype=torch.bool)
    logits, label = made(labels, everything, 6, 7)
    results = []
    for carried in (None, everything):
        leaf = logits.clone().requires_grad_()
        loss = DeepSupervisionLoss(DiceCrossEntropy(labels, True, BOTH))([leaf, leaf[..., ::2, ::2]], label, carried)
        results.append([loss, *torch.autograd.grad(loss, leaf)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_full_case_beside_a_partly_labelled_one_keeps_its_logits_and_its_mean() -> None:
    logits, label = made(ORGANS, CARRIED, 6, 7)
    assert torch.equal(merged_logits(logits, CARRIED)[2], logits[2])
    one_sum, two, three = torch.rand(3, 3, 3)
    for batch_dice in (True, False):
        everything = torch.ones(3, 3, dtype=torch.bool)
        one, other = (dice_of_sums(one_sum, two, three, batch_dice, None, carried) for carried in (None, everything))
        assert torch.equal(one, other)
    probabilities = merged_logits(logits, CARRIED).softmax(1)
    expected = logits.softmax(1)
    assert torch.allclose(probabilities[0, 0], expected[0, 0] + expected[0, 2], atol=1e-6)
    assert torch.equal(probabilities[0, 2], torch.zeros(6, 7))
    assert label.max() == 3


def test_regions_that_a_case_does_not_carry_count_in_no_term() -> None:
    carried = torch.tensor([[True, False], [True, True]])
    logits, _ = made(REGIONS, torch.ones(2, 2, dtype=torch.bool), 4, 5)
    label = torch.randint(0, 3, (2, 1, 4, 5), generator=torch.Generator().manual_seed(3))
    p, truth = logits.double().sigmoid(), torch.cat([label > 0, label == 2], 1).double()
    entropies = torch.where(truth > 0, -p.log(), -(1 - p).log())
    pairs = [(0, 0), (1, 0), (1, 1)]
    entropy = sum(float(entropies[pair].mean()) for pair in pairs) / 3
    ratio = [
        (2 * float((p[pair] * truth[pair]).sum()) + 1e-5, float((p[pair] + truth[pair]).sum()) + 1e-5) for pair in pairs
    ]
    dice = sum(above / below for above, below in ratio) / 3
    leaf = logits.clone().requires_grad_()
    loss = DiceCrossEntropy(REGIONS, False)(leaf, label, carried)
    assert loss.item() == pytest.approx(entropy - dice, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(gradient[0, 1], torch.zeros(4, 5))
    assert gradient[0, 0].abs().sum() > 0


def test_class_weights_and_focal_factor_see_merged_classes() -> None:
    logits, label = made(ORGANS, CARRIED, 4, 5)
    settings = LossSettings(class_weights=(1, 2, 3, 4), focal_gamma=2, dice_weight=0, exclusion_weight=0)
    p = logits.double().softmax(1)
    total, weights = 0.0, 0.0
    for b in range(3):
        missing = [k for k in range(1, 4) if not CARRIED[b, k - 1]]
        for y in range(4):
            for x in range(5):
                true = int(label[b, 0, y, x])
                q = float(sum(p[b, k, y, x] for k in ([0, *missing] if true == 0 else [true])))
                total += (1 + true) * (1 - q) ** 2 * -math.log(q)
                weights += 1 + true
    found = DiceCrossEntropy(ORGANS, True, settings)(logits, label, CARRIED)
    assert found.item() == pytest.approx(total / weights, abs=1e-5)


def test_the_patch_dice_counts_carried_labels_only() -> None:
    metric = PatchDice(ORGANS)
    logits = torch.nn.functional.one_hot(torch.tensor([[[1, 2, 2, 0]], [[1, 1, 2, 3]]]), 4).permute(0, 3, 1, 2).float()
    label = torch.tensor([[[[1, 1, 0, 0]]], [[[0, 0, 2, 2]]]])
    metric.update(logits, label, torch.tensor([[True, False, False], [False, True, False]]))
    a, b, c = metric.compute().tolist()
    assert a == 2 / 3  # of the first patch alone: one true positive, one false negative
    assert b == 2 / 3  # of the second
    assert math.isnan(c)
    assert resize_label(label, (1, 4)) is label


def test_the_title_of_a_picture_counts_carried_labels_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    label = torch.tensor([[[[1, 1, 0, 0]]]])
    logits = torch.nn.functional.one_hot(torch.tensor([[[1, 1, 2, 2]]]), 4).permute(0, 3, 1, 2).float()
    titles: list[str] = []
    monkeypatch.setattr(panels, "overlay_figure", lambda *_, score, **__: titles.append(score))
    monkeypatch.setattr(panels, "write_overlay", lambda *_: None)
    trainer: Any = SimpleNamespace(
        current_epoch=0, max_epochs=1, sanity_checking=False, is_global_zero=True, loggers=[]
    )
    module: Any = lambda image: logits  # noqa: E731
    for given in ({}, {"annotated": torch.tensor([[True, False, False]])}):
        batch = {"image": torch.zeros(1, 1, 1, 4), "label": label, "case_id": ["x"], **given}
        panels.ValidationPanels(tmp_path, ORGANS, (1.0, 1.0), 1, lambda _: None).on_validation_batch_end(
            trainer, module, None, batch, 0
        )
    assert titles == ["Dice of this patch 0.500", "Dice of this patch 1.000"]
