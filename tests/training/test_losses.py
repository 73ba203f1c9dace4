"""Losses against sums written out by hand and slow loops."""

import math

import numpy as np
import pytest
import torch

from umamba.labels import LabelSet
from umamba.settings import LossSettings
from umamba.training.losses import DeepSupervisionLoss, DiceCrossEntropy, deep_supervision_weights, resize_label

PLAIN = LabelSet.from_json({"background": 0, "a": 1, "b": 2})
PLAIN_OF_ONE = LabelSet.from_json({"background": 0, "a": 1})
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


@pytest.mark.parametrize(
    ("batch_dice", "loss", "norm"), [(False, 1.8902355432510376, 0.07451991), (True, 1.8898273706436157, 0.074523486)]
)
@pytest.mark.parametrize("weights", [None, (1.0, 1.0, 1.0)])
def test_regions_with_an_ignore_label_have_nnunets_loss(
    batch_dice: bool, loss: float, norm: float, weights: tuple[float, ...] | None
) -> None:
    """The numbers are those of DC_and_BCE_loss of nnU-Net 2.8.1 (use_ignore_label=True) for the same arrays."""
    labels = LabelSet.from_json(
        {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "peak": 3, "ignore": 4}, regions_class_order=[1, 2, 3]
    )
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.standard_normal((2, 3, 6, 5, 4)).astype(np.float32)).requires_grad_()
    label = torch.from_numpy(generator.integers(0, 5, (2, 1, 6, 5, 4)))
    found = DiceCrossEntropy(labels, batch_dice, LossSettings(class_weights=weights))(logits, label)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-6)
    assert logits.grad is not None
    assert logits.grad.norm().item() == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0, 2.0])
def test_a_focal_exponent_has_finite_gradients_where_a_voxel_is_certain(gamma: float) -> None:
    logits = torch.tensor([[[[0.0, 0.3]], [[40.0, 0.1]]]], requires_grad=True)  # the first voxel: probability of 1
    label = torch.tensor([[[[1, 0]]]])
    loss = DiceCrossEntropy(PLAIN_OF_ONE, False, LossSettings(focal_gamma=gamma, dice_weight=0.0))(logits, label)
    loss.backward()
    right = 1 / (1 + math.exp(0.1 - 0.3))
    assert loss.item() == pytest.approx((1 - right) ** gamma * -math.log(right) / 2, rel=1e-5)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("labels", [PLAIN, IGNORE])
@pytest.mark.parametrize("last", [True, False])
def test_one_pass_gives_loss_and_gradient_of_float64(dtype: torch.dtype, labels: LabelSet, last: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    classes = labels.num_classes
    logits = (3 * torch.randn(2, classes, 9, 13, 17, generator=generator)).to(dtype)
    logits = logits.contiguous(memory_format=torch.channels_last_3d) if last else logits
    label = torch.randint(0, classes + (labels.ignore is not None), (2, 1, 9, 13, 17), generator=generator)
    one_pass, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = DiceCrossEntropy(labels, False)(one_pass, label)
    found.backward()

    counts = torch.ones_like(label) if labels.ignore is None else label != labels.ignore
    true = torch.nn.functional.one_hot((label * counts)[:, 0], classes).movedim(-1, 1) * counts
    p = exact.softmax(1) * counts
    entropy = -(exact.log_softmax(1) * true).sum() / counts.sum()
    overlap, together = (p * true).flatten(2).sum(-1)[:, 1:], (p + true).flatten(2).sum(-1)[:, 1:]
    expected = entropy - ((2 * overlap + 1e-5) / (together + 1e-5)).mean()
    expected.backward()
    assert one_pass.grad is not None
    assert exact.grad is not None
    assert one_pass.grad.dtype == dtype
    assert found.item() == pytest.approx(expected.item(), abs=2e-6)
    error = (one_pass.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < (1e-5 if dtype == torch.float32 else 4e-3)


def test_one_pass_does_not_depend_on_the_number_of_threads() -> None:
    logits, label = torch.randn(2, 3, 40, 40, 40), torch.randint(0, 3, (2, 1, 40, 40, 40))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaf = logits.clone().requires_grad_()
            loss = DiceCrossEntropy(PLAIN, True)(leaf, label)
            results.append([loss, *torch.autograd.grad(loss, leaf)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_gives_no_finite_loss(value: float) -> None:
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 1, 2, 2] = value
    assert not DiceCrossEntropy(PLAIN, True)(logits, torch.ones(1, 1, 4, 4, dtype=torch.long)).isfinite()


def test_a_label_without_a_class_is_refused() -> None:
    with pytest.raises(IndexError, match="outside of the 3 classes"):
        DiceCrossEntropy(PLAIN, True)(torch.zeros(1, 3, 4, 4), torch.full((1, 1, 4, 4), 3))
