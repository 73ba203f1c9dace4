"""Label audit: each trace by hand or by arithmetic, and planted faults that come first among generated cases."""

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from umamba.evaluation.audit import FOREGROUND, CaseFacts, Offset, inspect_labels
from umamba.evaluation.audit_parts import Part
from umamba.evaluation.audit_ranking import part_kind, rank_cases, ranked_pairs, ranked_slices, reason
from umamba.evaluation.label_faults import FAULTS, Fault, auroc, plant_fault
from umamba.evaluation.surface_offset import surface_offset
from umamba.labels.instance_maps import interior_and_boundary

NAMES = {1: "front", 2: "back"}


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.ogrid[tuple(slice(0, length) for length in shape)]
    squares = [(axis - place) ** 2 for axis, place in zip(grid, centre, strict=True)]
    inside: np.ndarray = np.asarray(sum(squares)) <= radius**2
    return inside


@pytest.mark.parametrize("shape", [(40, 44), (30, 32, 34)])
@pytest.mark.parametrize(("shift", "growth"), [(0, 0), (2, 0), (-2, 0), (0, 1), (0, -1), (1, 1)])
def test_shift_and_growth_of_a_ball_are_found(shape: tuple[int, ...], shift: int, growth: int) -> None:
    centre = tuple(length / 2 for length in shape)
    moved = (centre[0], centre[1] + shift, *centre[2:])
    found = surface_offset(ball(shape, moved, 9 + growth), ball(shape, centre, 9))
    assert found is not None
    expected = [0.0] * len(shape)
    expected[1] = shift
    np.testing.assert_allclose(found[0], expected, atol=0.2)
    assert found[1] == pytest.approx(growth, abs=0.15)


def test_there_is_no_offset_of_what_is_absent_or_far_away() -> None:
    small, far = ball((40, 40), (8, 8), 3), ball((40, 40), (32, 32), 3)
    for pair in ((small, small & False), (small & False, small), (small, far), (small | True, small | True)):
        assert surface_offset(*pair) is None


def test_overlap_and_crossed_voxels_by_hand() -> None:
    given, predicted = np.zeros((2, 1, 8, 8), dtype=np.uint8)
    given[0, 1, :6] = [1, 1, 1, 2, 2, 0]
    predicted[0, 1, :6] = [1, 2, 2, 2, 1, 1]
    facts = inspect_labels(given, predicted)
    assert facts.overlaps == {1: pytest.approx(2 * 1 / (3 + 3)), 2: pytest.approx(2 * 1 / (2 + 3))}
    assert facts.crossed == {(1, 2): pytest.approx(3 / 5)}
    assert facts.slices == ()  # of an image with one slice


def squares(*places: tuple[int, int]) -> np.ndarray:
    """Return squares of 7 x 7 pixels, whose deepest pixel is 4 pixels from outside."""
    image = np.zeros((1, 40, 60), dtype=np.uint8)
    for y, x in places:
        image[0, y : y + 7, x : x + 7] = 1
    return image


def test_a_dropped_object_is_missing_and_an_added_one_invented() -> None:
    both, one = squares((5, 5), (20, 40)), squares((5, 5))
    (missing,) = inspect_labels(one, both).parts
    assert missing == Part(0, 1, True, 49, 1.0, 1.0, (0, 23, 43), ((0, 0), (20, 26), (40, 46)))
    (invented,) = inspect_labels(both, one).parts
    assert (part_kind(missing), part_kind(invented)) == ("missing", "invented")
    assert (invented.given, invented.predicted, invented.centre_zyx) == (1, 0, (0, 23, 43))


def test_a_leak_is_a_part_of_an_object() -> None:
    given, predicted = squares((5, 5), (20, 40)), squares((5, 5), (20, 40))
    predicted[0, 5:20, 12:15] = 0
    given[0, 5:12, 12:15] = 1  # 3 columns more, whose deepest pixel is 2 pixels from outside
    (leak,) = inspect_labels(given, predicted).parts
    assert part_kind(leak) == "leaked"
    assert (leak.voxels, leak.depth) == (21, pytest.approx(2 / 4))
    (short,) = inspect_labels(predicted, given).parts
    assert part_kind(short) == "short"


def test_a_border_drawn_elsewhere_is_no_part() -> None:
    given = squares((5, 5), (20, 40))
    assert inspect_labels(given, np.roll(given, 2, axis=2)).parts == ()


def test_another_label_is_mistaken_and_the_margin_counts() -> None:
    given = squares((5, 5), (20, 40))
    predicted = given.copy()
    predicted[0, 20:27, 40:47] = 2
    margin = np.where(given == predicted, 0, np.float32(0.25))
    (part,) = inspect_labels(given, predicted, margin).parts
    assert part_kind(part) == "mistaken"
    assert (part.given, part.predicted, part.margin, part.size) == (1, 2, 0.25, 0.25**2)


def test_a_slice_that_was_left_out_is_found() -> None:
    predicted = np.zeros((12, 30, 30), dtype=np.uint8)
    predicted[2:10] = ball((30, 30), (15, 15), 8)
    given = predicted.copy()
    given[5] = 0
    facts = inspect_labels(given, predicted)
    assert facts.parts == ()  # one voxel thick
    first = facts.slices[0]
    assert (first.axis, first.index, first.size) == (0, 5, 1.0)
    assert first.voxels == np.count_nonzero(predicted[5])


def test_ignored_voxels_do_not_count_and_empty_maps_give_nothing() -> None:
    given = squares((5, 5))
    predicted = squares((5, 5), (20, 40))
    given[0, 15:, 30:] = 3
    facts = inspect_labels(given, predicted, ignore=3)
    assert facts.overlaps == {1: 1.0}
    assert facts.parts == ()
    assert inspect_labels(given * 0, given * 0) == CaseFacts({}, {}, (), (), (), {})
    with pytest.raises(ValueError, match="differ in shape"):
        inspect_labels(given, predicted[:, 1:])


def test_scores_by_hand() -> None:
    facts = {f"c{index}": CaseFacts({1: 1 - overlap}, {}, (), (), (), {}) for index, overlap in enumerate(range(11))}
    ranked = rank_cases(facts)  # differences 0 to 10: median 5, ninth decile 9, spread 4 / 1.2816
    assert [each.case for each in ranked[:2]] == ["c10", "c9"]
    assert ranked[0].score == pytest.approx(5 / (4 / 1.2816))


def test_what_all_cases_share_is_no_suspicion() -> None:
    def facts(growth: float, shift: float) -> CaseFacts:
        return CaseFacts({1: 0.9}, {}, (Offset(1, (0.0, shift, 0.0), growth),), (), (), {})

    cases = {f"c{index}": facts(-1.0, 1.0) for index in range(9)} | {"odd": facts(0.0, 1.0), "moved": facts(-1.0, 3.0)}
    ranked = rank_cases(cases)
    assert {each.case for each in ranked[:2]} == {"odd", "moved"}
    assert ranked[0].score == pytest.approx(2 / 0.15)
    assert ranked[1].score == pytest.approx(1 / 0.1)
    assert ranked[2].score == 0
    assert reason(ranked[0], NAMES) == "front lies 3.0 voxels away (z +0.0, y +3.0, x +0.0)."


def ring(radius: float, thickness: float) -> np.ndarray:
    """Return a disc (1, 40, 40) of the label 1 with a rim of the label 2 inside of its border."""
    away = np.hypot(*np.ogrid[-20:20, -20:20])[None]
    return np.where(away < radius, np.where(away >= radius - thickness, 2, 1), 0).astype(np.uint8)


def test_a_thicker_outline_is_found_where_every_annotator_draws_another_border() -> None:
    def facts(given: np.ndarray) -> CaseFacts:
        return inspect_labels(given, ring(12, 2))

    assert facts(ring(12, 2)).thickness == {1: 0, 2: 0}
    assert math.exp(facts(ring(13, 3)).thickness[2]) == pytest.approx(3 / 2, abs=0.05)
    assert facts(ring(12, 12)).thickness.keys() == {2}, "a label that one map lacks has no thickness"
    cases = {f"{radius}": facts(ring(radius, 2)) for radius in np.arange(10, 14.1, 0.25)}
    ranked = rank_cases(cases | {"thick": facts(ring(13, 3))})
    assert (ranked[0].case, ranked[0].main.kind) == ("thick", "thickness")
    assert reason(ranked[0], {1: "interior", 2: "rim"}) == (
        "rim is 1.5 times as thick as in the segmentation, where 1.0 times is usual."
    )


def test_a_missing_object_is_compared_with_missing_objects_alone() -> None:
    def facts(whole: bool) -> CaseFacts:
        part = Part(0, 1, whole, 50, 0.9, 0.9, (0, 5, 5), ((0, 0), (2, 8), (2, 8)))
        return CaseFacts({1: 0.9}, {}, (), (part,), (), {})

    cases = {f"short{index}": facts(whole=False) for index in range(20)}  # the networks see objects end later
    ranked = rank_cases(cases | {"missing": facts(whole=True)})
    assert (ranked[0].case, ranked[0].main.kind) == ("missing", "missing")
    assert ranked[0].score == pytest.approx(0.81**2 / 0.15)
    assert ranked[1].score == 0


def organs(seed: int) -> np.ndarray:
    """Return a blob of two labels, one in front of the other, of random size and place (14, 34, 26)."""
    rng = np.random.default_rng(seed)
    shape = (14, 34, 26)
    centre, radii = np.array([7, 17, 13]) + rng.uniform(-1, 1, 3), np.array([4.5, 11, 7]) * rng.uniform(0.85, 1.1, 3)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    inside = (((grid - centre) / radii) ** 2).sum(axis=-1) <= 1
    front = grid[..., 1] < centre[1] + rng.uniform(-2, 2)
    return (inside * (2 - front)).astype(np.uint8)


def cells(seed: int) -> np.ndarray:
    """Return discs with interior and boundary (1, 90, 90)."""
    rng = np.random.default_rng(seed)
    instances = np.zeros((90, 90), dtype=np.int32)
    for number, (y, x) in enumerate(np.ndindex(4, 4), start=1):
        place = np.array([11, 11]) + 22 * np.array([y, x]) + rng.uniform(-2, 2, 2)
        instances[ball((90, 90), tuple(place), rng.uniform(5, 9))] = number
    return interior_and_boundary(instances)[None]


def segmented(truth: np.ndarray, seed: int) -> np.ndarray:
    """Return the truth as a network would see it: its borders are moved smoothly by about half a voxel."""
    rng = np.random.default_rng([seed, 1])
    grid = np.meshgrid(*map(np.arange, truth.shape), indexing="ij")
    moved = []
    for axis, length in zip(grid, truth.shape, strict=True):
        field = ndimage.gaussian_filter(rng.standard_normal(truth.shape), 3)
        moved.append(axis + (0.5 * field / field.std() if length > 1 else 0))
    warped: np.ndarray = ndimage.map_coordinates(truth, moved, order=0, mode="nearest")
    return warped


@cache
def generated(kind: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    make = {"organs": organs, "cells": cells}[kind]
    return {f"{kind}{seed}": (make(seed), segmented(make(seed), seed)) for seed in range(40)}


@cache
def untouched(kind: str) -> dict[str, CaseFacts]:
    return {case: inspect_labels(*maps) for case, maps in generated(kind).items()}


@pytest.mark.parametrize("kind", ["organs", "cells"])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_come_first(kind: str, fault: Fault) -> None:
    rng = np.random.default_rng(5)
    cases, facts = generated(kind), dict(untouched(kind))
    chosen = set(rng.choice(sorted(cases), 2, replace=False).tolist())  # 5 %
    for case in chosen:
        truth, predicted = cases[case]
        facts[case] = inspect_labels(plant_fault(truth, fault, rng), predicted)
    ranked = rank_cases(facts)
    assert auroc({each.case: each.score for each in ranked}, chosen) >= 0.95
    expected = {"swap": "swapped", "shift": "shifted", "dilate": "resized", "drop": "missing"}[fault]
    assert [each.main.kind for each in ranked if each.case in chosen] == [expected] * 2
    if fault == "drop":
        pair = ranked_pairs(ranked)[0]
        assert pair.given == 0
        assert pair.worst in chosen
        if kind == "organs":
            assert ranked_slices(ranked)[0][0] in chosen


def pairs(scores: dict[str, float], positive: set[str]) -> Iterator[float]:
    for one in positive:
        for other in scores.keys() - positive:
            yield (scores[one] > scores[other]) + (scores[one] == scores[other]) / 2


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    scores = {str(index): float(rng.integers(6)) for index in range(30)}
    positive = set(list(scores)[:7])
    assert auroc(scores, positive) == pytest.approx(np.mean(list(pairs(scores, positive))))


def test_each_fault_by_hand() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((1, 12, 12), dtype=np.uint8)
    labels[0, 4:6, 4:6], labels[0, 6:8, 4:6], labels[0, 9, 9] = 1, 2, 2
    swapped = plant_fault(labels, "swap", rng)
    assert swapped.dtype == labels.dtype
    np.testing.assert_array_equal(swapped, np.array([0, 2, 1], dtype=np.uint8)[labels])
    shifted = plant_fault(labels, "shift", rng)
    moves = [(by, axis) for axis in (1, 2) for by in (-2, 2)]
    assert sum(np.array_equal(shifted, np.roll(labels, *move)) for move in moves) == 1
    dilated = plant_fault(labels, "dilate", rng)
    assert np.count_nonzero(dilated) == 8 + 12 + 5  # a block of 4 x 2 gets its border of 12, a single voxel a cross
    assert (dilated[labels > 0] == labels[labels > 0]).all()
    dropped = plant_fault(labels, "drop", rng)
    np.testing.assert_array_equal(dropped[0, :8], 0 * labels[0, :8])  # the large part; the other one is a speck
    assert dropped[0, 9, 9] == 2
    with pytest.raises(ValueError, match="swap"):
        plant_fault((labels == 1).astype(np.uint8), "swap", rng)


def test_an_edge_is_no_place_to_come_back_from() -> None:
    labels = np.zeros((6, 1, 1), dtype=np.uint8)
    labels[[0, 5]] = 1
    rng = np.random.default_rng(0)
    found = {tuple(plant_fault(labels, "shift", rng).ravel()) for _ in range(10)}
    assert found == {(0, 0, 1, 0, 0, 0), (0, 0, 0, 1, 0, 0)}


def test_all_labels_together_are_compared_too() -> None:
    truth = cells(0)
    facts = inspect_labels(np.roll(truth, 2, axis=2), truth)
    (whole,) = [offset for offset in facts.offsets if offset.value == FOREGROUND]
    np.testing.assert_allclose(whole.shift_vox, (0, 0, 2), atol=0.2)
