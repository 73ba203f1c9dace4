"""NSD against the official scripts' scores and against hand arithmetic."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from umamba.evaluation import dice, surface_dice
from umamba.evaluation.surface import surface_distances, surfel_areas

TOLERANCES = (5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3)
CUT_TO_TRUTH = (5, 6, 10)  # labels that the abdomen script scores in the slices of the truth only


def read_scores(path: Path) -> dict[str, list[float]]:
    """Return the scores of each case of a script's CSV."""
    with path.open() as file:
        return {row[0].split(".")[0]: [float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]}


def test_abdomen_scores_equal_the_official_ones(reference_dir: Path) -> None:
    arrays = np.load(reference_dir / "metrics" / "abdomen_inputs.npz")
    expected_nsd = read_scores(reference_dir / "metrics" / "abdomen_NSD_unrounded.csv")
    expected_dsc = read_scores(reference_dir / "metrics" / "abdomen_DSC_unrounded.csv")
    compared = 0
    for case, scores in expected_nsd.items():
        for label, tolerance in enumerate(TOLERANCES, start=1):
            truth, prediction = arrays[f"{case}/gt"] == label, arrays[f"{case}/pred"] == label
            if label in CUT_TO_TRUTH or not truth.any() or not prediction.any():
                continue
            nsd = surface_dice(prediction, truth, arrays[f"{case}/spacing"], tolerance)
            assert nsd == pytest.approx(scores[label - 1], abs=1e-12)
            assert dice(prediction, truth) == pytest.approx(expected_dsc[case][label - 1], abs=1e-12)
            compared += 1
    assert compared > 50


def test_endoscopy_scores_equal_the_official_ones(reference_dir: Path) -> None:
    arrays = np.load(reference_dir / "metrics" / "endoscopy_inputs.npz")
    with (reference_dir / "metrics" / "endoscopy_NSD_unrounded.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if "normal" in row["Name"]]
    assert rows
    for row in rows:
        case = row["Name"].removesuffix(".png")
        labels = [int(label) for label in row["union"].strip("[]").split(",")]
        truth, prediction = arrays[f"{case}/gt"][None], arrays[f"{case}/pred"][None]
        scores = [surface_dice(prediction == label, truth == label, (1, 1, 1), 2) for label in labels]
        assert np.mean(scores) == pytest.approx(float(row["NSD"]), abs=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 1.2)])
def test_areas_of_known_neighbourhoods(spacing: tuple[float, float, float]) -> None:
    areas = surfel_areas(spacing)
    depth, height, width = spacing
    assert areas[0] == areas[255] == 0
    assert areas[0b00001111] == pytest.approx(height * width)  # both sides of a horizontal face
    assert areas[0b01010101] == pytest.approx(depth * height)
    # One corner: the triangle between the midpoints of its three edges.
    a, b, c = (np.diag(spacing) / 2)[:, :]
    triangle = 0.5 * math.hypot(*np.cross(b - a, c - a))
    assert all(areas[1 << bit] == pytest.approx(triangle) for bit in range(8))
    # One edge along X: a quadrilateral as long as the edge.
    assert areas[0b11] == pytest.approx(width * math.hypot(depth, height) / 2)
    np.testing.assert_allclose(areas, areas[::-1])


def test_shifted_plates_by_hand() -> None:
    truth = np.zeros((20, 6, 6), dtype=bool)
    prediction = truth.copy()
    truth[5:9], prediction[7:11] = True, True  # faces at 5, 9 and at 7, 11: 2 voxels of 1.5 mm apart
    assert surface_dice(prediction, truth, (1.5, 1, 1), 3.0) == 1.0
    assert surface_dice(prediction, truth, (1.5, 1, 1), 2.999) < 0.8


def test_empty_masks() -> None:
    empty = np.zeros((4, 4, 4), dtype=bool)
    full = ~empty
    assert math.isnan(surface_dice(empty, empty, (1, 1, 1), 1))
    assert surface_dice(empty, full, (1, 1, 1), 1) == 0
    assert surface_dice(full, empty, (1, 1, 1), 1) == 0
    assert surface_dice(full, full, (1, 1, 1), 0) == 1


def test_tolerance_in_brute_force() -> None:
    generator = np.random.default_rng(3)
    spacing, tolerance = (2.0, 0.8, 1.1), 1.7
    prediction, truth = (generator.random((2, 7, 8, 6)) < 0.08)[:]
    points: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    areas = surfel_areas(spacing)
    for mask in (prediction, truth):
        padded = np.pad(mask, 1)
        found, area = [], []
        for point in np.ndindex(8, 9, 7):
            cube = padded[tuple(slice(start, start + 2) for start in point)]
            code = sum(int(filled) << bit for bit, filled in enumerate(cube.ravel()))
            if 0 < code < 255:
                found.append(np.array(point) * spacing)
                area.append(areas[code])
        points.append(np.array(found))
        weights.append(np.array(area))
    distances = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    near = weights[0][distances.min(1) <= tolerance].sum() + weights[1][distances.min(0) <= tolerance].sum()
    expected = near / (weights[0].sum() + weights[1].sum())
    assert surface_dice(prediction, truth, spacing, tolerance) == pytest.approx(expected)


@pytest.mark.parametrize("block", range(4))
def test_deepminds_implementation_agrees(block: int) -> None:
    theirs = pytest.importorskip("surface_distance")
    for seed in range(50 * block, 50 * (block + 1)):
        generator = np.random.default_rng(seed)
        shape, spacing = generator.integers(4, 20, 3), generator.uniform(0.5, 3, 3).tolist()
        smooth = generator.uniform(0.3, 1.5)
        prediction, truth = (ndimage.gaussian_filter(generator.random(shape), smooth) > 0.5 for _ in range(2))
        tolerance = generator.uniform(0.3, 4)
        distances = theirs.compute_surface_distances(truth, prediction, spacing)
        expected = theirs.compute_surface_dice_at_tolerance(distances, tolerance)
        assert surface_dice(prediction, truth, spacing, tolerance) == pytest.approx(expected, abs=1e-6)
        assert dice(prediction, truth) == pytest.approx(theirs.compute_dice_coefficient(truth, prediction), abs=1e-6)
        ours = surface_distances(prediction, truth, spacing)
        assert ours is not None
        assert ours.hausdorff(0.95) == pytest.approx(theirs.compute_robust_hausdorff(distances, 95), abs=1e-6)
