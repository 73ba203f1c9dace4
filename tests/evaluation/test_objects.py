"""Scores of objects against torchmetrics, loops over all pairs, and arithmetic by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchmetrics.functional.detection import panoptic_quality

from umamba.evaluation.detection import RATES, Candidates, candidates, detection_scores, froc
from umamba.evaluation.empty_cases import EMPTY_SCORES, empty_score
from umamba.evaluation.objects import match_objects, overlapping_pairs
from umamba.evaluation.panoptic import THRESHOLDS, panoptic_scores

SHAPES = [(24, 26), (8, 12, 10)]


def objects(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numbered boxes, and the same moved, missed, split or invented; numbers have gaps."""
    rng = np.random.default_rng(seed)
    truth, found = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    for number in range(2, 18, 2):
        start = [int(rng.integers(size - 3)) for size in shape]
        edge = [int(rng.integers(2, 6)) for _ in shape]
        truth[tuple(slice(a, a + b) for a, b in zip(start, edge, strict=True))] = number
        if rng.random() < 0.8:
            moved = [max(0, a + int(rng.integers(-1, 2))) for a in start]
            found[tuple(slice(a, a + b) for a, b in zip(moved, edge, strict=True))] = 3 * number
    found[tuple(slice(0, 2) for _ in shape)] = 100
    return truth, found


def iou_table(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the IoU of all pairs by masks."""
    masks = [[image == number for number in np.unique(image[image > 0])] for image in (truth, found)]
    return np.array([[(a & b).sum() / (a | b).sum() for b in masks[1]] for a in masks[0]])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_that_of_torchmetrics(shape: tuple[int, ...], seed: int) -> None:
    truth, found = objects(shape, seed)
    maps = [torch.from_numpy(np.stack([image > 0, image], -1).astype(np.int64))[None] for image in (found, truth)]
    if len(shape) == 3:  # torchmetrics knows images only; a volume is one image of many columns
        maps = [each.reshape(1, shape[0], -1, 2) for each in maps]
    every = panoptic_quality(maps[0], maps[1], things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True)
    expected = every[0]  # of the thing; the background is the stuff
    scores = panoptic_scores(truth, found)
    assert (scores.pq, scores.sq, scores.rq) == pytest.approx(expected.tolist(), abs=1e-6)
    assert scores.hits > 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_an_assignment_of_all_pairs(shape: tuple[int, ...], seed: int) -> None:
    truth, found = objects(shape, seed)
    table = iou_table(truth, found)
    scores = panoptic_scores(truth, found)
    for threshold, value in zip(THRESHOLDS, scores.ap, strict=True):
        near = (table > threshold).astype(float)
        hits = near[linear_sum_assignment(near, maximize=True)].sum()
        assert value == pytest.approx(hits / (sum(table.shape) - hits))
    metrics = scores.to_metrics()
    assert list(metrics) == ["pq", "sq", "rq", "ap_50", "ap_60", "ap_70", "ap_80", "ap_90", "ap_mean"]
    assert metrics["ap_mean"] == pytest.approx(np.mean(scores.ap))


def test_pairs_do_not_depend_on_the_numbers() -> None:
    truth, found = objects(SHAPES[0], 0)
    pairs, table = overlapping_pairs(truth, found), iou_table(truth, found)
    assert (pairs.true, pairs.predicted) == table.shape
    full = np.zeros_like(table)
    full[pairs.rows, pairs.columns] = pairs.iou
    assert np.allclose(full, table)
    renamed = np.where(truth > 0, 1000 - truth, 0)
    assert match_objects(renamed, found, 0.5) == match_objects(truth, found, 0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_lesion_scores_equal_loops(shape: tuple[int, ...]) -> None:
    truth, found = objects(shape, 5)
    table = iou_table(truth, found)
    near = (table >= 0.1).astype(float)
    hits = near[linear_sum_assignment(near, maximize=True)].sum()
    dice = []
    for number in np.unique(truth[truth > 0]):
        lesion = truth == number
        touching = np.isin(found, np.unique(found[lesion & (found > 0)]))
        dice.append(2 * (lesion & touching).sum() / (lesion.sum() + touching.sum()))
    wrong = sum(not (truth[found == number] > 0).any() for number in np.unique(found[found > 0]))
    scores = detection_scores(truth, found)
    assert scores["object_recall"] == pytest.approx(hits / table.shape[0])
    assert scores["object_precision"] == pytest.approx(hits / table.shape[1])
    assert scores["object_f1"] == pytest.approx(2 * hits / sum(table.shape))
    assert scores["object_dsc"] == pytest.approx(sum(dice) / (len(dice) + wrong))


def test_lesion_scores_by_hand() -> None:
    """Two lesions: one of 4 voxels, of which 3 are found together with 1 wrong one; one missed; one invented."""
    truth = np.array([0, 1, 1, 1, 1, 0, 0, 2, 2, 0, 0, 0])
    found = np.array([5, 5, 5, 5, 0, 0, 0, 0, 0, 0, 0, 7])
    scores = detection_scores(truth, found)
    assert scores["object_recall"] == 0.5
    assert scores["object_precision"] == 0.5
    assert scores["object_f1"] == 0.5
    assert scores["object_dsc"] == pytest.approx(2 * 3 / (4 + 4) / 3)


NOTHING, ONE, OTHER = np.array([0, 0, 0, 0]), np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("case", "truth", "found"),
    [("neither", NOTHING, NOTHING), ("no_reference", NOTHING, ONE), ("no_prediction", ONE, NOTHING),
     ("no_match", ONE, OTHER)],
)  # fmt: skip
def test_cases_without_objects_get_what_the_table_says(case: str, truth: np.ndarray, found: np.ndarray) -> None:
    scores = {**panoptic_scores(truth, found).to_metrics(), **detection_scores(truth, found)}
    for metric, value in scores.items():
        expected = getattr(EMPTY_SCORES["ap" if metric.startswith("ap_") else metric], case)
        assert value == pytest.approx(expected, nan_ok=True), metric
    assert empty_score("pq", 1, 1, 1) is None


def test_the_page_has_the_table_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scores.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.count("|") == 6]
    words = {"nan": "no score", "0.0": "0"}
    for metric, scores in EMPTY_SCORES.items():
        name = "ap_50" if metric == "ap" else metric
        found = [line for line in rows if f"`{name}`" in line]
        assert len(found) == 1, name
        assert found[0].endswith("| " + " | ".join(words[str(score)] for score in scores) + " |"), found[0]


def slow_froc(cases: list[Candidates], rate: float) -> float:
    """Return the sensitivity at a rate by trying every threshold."""
    best = 0.0
    for threshold in {float(score) for case in cases for score in case.scores}:
        hits, wrong = 0, 0
        for case in cases:
            kept = case.found[case.scores >= threshold]
            hits += len({int(number) for number in kept if number >= 0})
            wrong += int((kept < 0).sum())
        if wrong / len(cases) <= rate:
            best = max(best, hits / sum(case.true for case in cases))
    return best


@pytest.mark.parametrize("seed", range(3))
def test_froc_equals_trying_every_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases: list[Candidates] = []
    for _ in range(5):
        true = int(rng.integers(0, 4)) + (not cases)
        count = int(rng.integers(0, 12))
        found = np.where(rng.random(count) < 0.5 * (true > 0), rng.integers(0, max(1, true), count), -1)
        cases.append(Candidates(np.round(rng.random(count), 1), found, true))
    curve = froc(cases)
    for rate in RATES:
        assert curve.at(rate) == pytest.approx(slow_froc(cases, rate))
    assert curve.mean == pytest.approx(np.mean([curve.at(rate) for rate in RATES]))
    assert (np.diff(curve.sensitivity) >= 0).all()
    assert (np.diff(curve.false_per_case) >= 0).all()


def test_froc_without_objects_or_candidates() -> None:
    nothing = Candidates(np.zeros(0), np.zeros(0, dtype=int), 0)
    assert math.isnan(froc([nothing]).at(1.0))
    assert froc([Candidates(np.zeros(0), np.zeros(0, dtype=int), 2)]).mean == 0


def test_candidates_are_the_parts_of_a_probability_map() -> None:
    probability = np.zeros((6, 12))
    probability[1:3, 1:3], probability[2, 2] = 0.4, 0.9  # on the first object
    probability[1:3, 6:8] = 0.3  # on nothing
    probability[5, 9:12] = 0.05  # too low
    truth = np.zeros((6, 12), dtype=int)
    truth[1:3, 1:4], truth[5, 9:12] = 4, 9
    found = candidates(probability, truth)
    assert found.scores.tolist() == [0.9, 0.3]
    assert found.found.tolist() == [0, -1]
    assert found.true == 2
    assert froc([found]).at(0.125) == 0.5
