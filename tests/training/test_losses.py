"""Losses against sums written out by hand and slow loops."""

import math

import pytest
import torch

from umamba.labels import LabelSet
from umamba.training.losses import DeepSupervisionLoss, DiceCrossEntropy, deep_supervision_weights, resize_label

PLAIN = LabelSet.from_json({"background": 0, "a": 1, "b": 2})
IGNORE = LabelSet.from_json({"background": 0, "a": 1, "ignore": 2})
REGIONS = LabelSet.from_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])


def slow_loss(logits: torch.Tensor, label: torch.Tensor, batch_dice: bool) -> float:
    """Cross-entropy and Dice of plain labels, voxel by voxel."""
    probabilities = logits.double().softmax(1)
    samples, classes = logits.shape[:2]
    flat, truth = probabilities.reshape(samples, classes, -1), label.reshape(samples, -1)
    entropy, ratios = 0.0, []
    sums = [[[0.0, 0.0] for _ in range(classes)] for _ in range(samples)]
    for sample in range(samples):
        for voxel in range(truth.shape[1]):
            true_class = int(truth[sample, voxel])
            entropy -= math.log(flat[sample, true_class, voxel])
            for k in range(1, classes):
                probability = float(flat[sample, k, voxel])
                sums[sample][k][0] += probability * (true_class == k)
                sums[sample][k][1] += probability + (true_class == k)
    groups = [range(samples)] if batch_dice else [[sample] for sample in range(samples)]
    for group in groups:
        for k in range(1, classes):
            intersection = sum(sums[sample][k][0] for sample in group)
            total = sum(sums[sample][k][1] for sample in group)
            ratios.append((2 * intersection + 1e-5) / (total + 1e-5))
    return entropy / truth.numel() - sum(ratios) / len(ratios)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_loss_equals_the_sum_over_voxels(shape: tuple[int, ...], batch_dice: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, *shape, generator=generator)
    label = torch.randint(0, 3, (2, 1, *shape), generator=generator)
    loss = DiceCrossEntropy(PLAIN, batch_dice)(logits, label)
    assert loss.item() == pytest.approx(slow_loss(logits, label, batch_dice), abs=1e-5)


def test_a_perfect_prediction_reaches_minus_one() -> None:
    label = torch.tensor([[[[0, 1], [2, 2]]]])
    logits = 100.0 * torch.nn.functional.one_hot(label[:, 0], 3).permute(0, 3, 1, 2).float()
    assert DiceCrossEntropy(PLAIN, True)(logits, label).item() == pytest.approx(-1.0, abs=1e-4)


def test_ignored_voxels_change_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 2, 4, 4, generator=generator)
    label = torch.randint(0, 2, (1, 1, 4, 4), generator=generator)
    label[..., 2:] = 2
    loss = DiceCrossEntropy(IGNORE, False)
    cropped = DiceCrossEntropy(IGNORE, False)(logits[..., :2], label[..., :2])
    assert loss(logits, label).item() == pytest.approx(cropped.item(), abs=1e-6)
    logits[..., 2:] += 50
    assert loss(logits, label).item() == pytest.approx(cropped.item(), abs=1e-6)


def test_regions_overlap() -> None:
    label = torch.tensor([[[[0, 1, 2]]]])
    logits = torch.tensor([[[[-50.0, 50, 50]], [[-50, -50, 50]]]])
    assert DiceCrossEntropy(REGIONS, True)(logits, label).item() == pytest.approx(-1.0, abs=1e-4)
    logits[0, 1, 0, 2] = -50  # core missed: its Dice falls to 0, and one of six binary terms to 50
    expected = 50 / 6 - (1 + 1e-5 / (1 + 1e-5)) / 2
    assert DiceCrossEntropy(REGIONS, True)(logits, label).item() == pytest.approx(expected, abs=1e-3)


def test_deep_supervision_weights_by_hand() -> None:
    assert deep_supervision_weights(1) == [1.0]
    assert deep_supervision_weights(3) == pytest.approx([2 / 3, 1 / 3, 0])


def test_deep_supervision_is_the_weighted_sum() -> None:
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(0, 3, (2, 1, 8, 8), generator=generator)
    outputs = [torch.randn(2, 3, size, size, generator=generator) for size in (8, 4, 2)]
    single = DiceCrossEntropy(PLAIN, True)
    expected = 2 / 3 * single(outputs[0], label) + 1 / 3 * single(outputs[1], resize_label(label, (4, 4)))
    assert DeepSupervisionLoss(single)(outputs, label).item() == pytest.approx(expected.item(), abs=1e-6)


def test_labels_shrink_to_the_nearest_voxel_centre() -> None:
    label = torch.arange(8).view(1, 1, 8)
    assert resize_label(label.unsqueeze(-1), (4, 1)).flatten().tolist() == [1, 3, 5, 7]


def test_half_precision_logits_give_a_full_precision_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    label = torch.ones(1, 1, 4, 4, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = DiceCrossEntropy(PLAIN, True)(logits.bfloat16(), label)
    assert loss.dtype == torch.float32
