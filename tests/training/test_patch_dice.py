"""The patch Dice against counts made by hand."""

import math

import torch

from umamba.labels import LabelSet
from umamba.training.patch_dice import PatchDice


def one_hot_logits(winner: list[int], classes: int) -> torch.Tensor:
    """Logits (1, classes, 1, n) whose argmax is `winner`."""
    return torch.nn.functional.one_hot(torch.tensor([[winner]]), classes).permute(0, 3, 1, 2).float()


def test_counts_are_summed_over_batches_before_the_ratio() -> None:
    metric = PatchDice(LabelSet.from_json({"background": 0, "a": 1, "b": 2, "c": 3}))
    metric.update(one_hot_logits([1, 1, 0, 2], 4), torch.tensor([[[[1, 0, 1, 2]]]]))  # a: tp 1 fp 1 fn 1; b: tp 1
    metric.update(one_hot_logits([1, 1, 1, 0], 4), torch.tensor([[[[1, 1, 1, 2]]]]))  # a: tp 3; b: fn 1
    a, b, c = metric.compute().tolist()
    assert a == 2 * 4 / (2 * 4 + 1 + 1)
    assert b == 2 * 1 / (2 * 1 + 0 + 1)
    assert math.isnan(c)


def test_the_counts_fit_devices_without_float64() -> None:
    metric = PatchDice(LabelSet.from_json({"background": 0, "a": 1}))
    assert metric.true_positive.dtype == metric.false_positive.dtype == metric.false_negative.dtype == torch.int64


def test_ignored_voxels_do_not_count() -> None:
    metric = PatchDice(LabelSet.from_json({"background": 0, "a": 1, "ignore": 2}))
    metric.update(one_hot_logits([1, 1, 1], 2), torch.tensor([[[[1, 2, 2]]]]))
    assert metric.compute().reshape(-1).tolist() == [1.0]


def test_regions_are_scored_by_channel() -> None:
    labels = LabelSet.from_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    metric = PatchDice(labels)
    logits = torch.tensor([[[[-1.0, 1, 1]], [[-1, 1, -1]]]])
    metric.update(logits, torch.tensor([[[[0, 1, 2]]]]))
    assert metric.compute().tolist() == [1.0, 0.0]
