"""The benchmarks' own rules against the scores of the official scripts (unrounded)."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from umamba.evaluation.instances import score_cells
from umamba.evaluation.protocols import ABDOMEN_ORGANS, score_abdomen
from umamba.evaluation.rules import Rules
from umamba.evaluation.score import Scores, score_arrays
from umamba.labels import LabelSet
from umamba.labels.instance_maps import interior_and_boundary


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a script's CSV by case."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    key = next(iter(rows[0]))
    return {row[key].split(".")[0]: row for row in rows}


def mean_score(scores: Scores, metric: str) -> float:
    """Return the mean over the classes that have a score; NaN without any."""
    found = [values[metric] for values in scores.values() if not math.isnan(values[metric])]
    return float(np.mean(found)) if found else math.nan


def test_abdomen(reference_dir: Path) -> None:
    arrays = np.load(reference_dir / "metrics" / "abdomen_inputs.npz")
    nsd, dsc = (read_rows(reference_dir / "metrics" / f"abdomen_{kind}_unrounded.csv") for kind in ("NSD", "DSC"))
    assert len(dsc) == 8
    for case in dsc:
        # The arrays are in NIfTI order (x, y, z).
        prediction, truth = (arrays[f"{case}/{kind}"].transpose(2, 1, 0) for kind in ("pred", "gt"))
        scores = score_abdomen(prediction, truth, arrays[f"{case}/spacing"][::-1], True)
        for organ, _ in ABDOMEN_ORGANS:
            assert scores[organ]["dsc"] == pytest.approx(float(dsc[case][f"{organ}_DSC"]), abs=1e-12)
            assert scores[organ]["nsd"] == pytest.approx(float(nsd[case][f"{organ}_NSD"]), abs=1e-12)


def test_a_tube_in_one_slice_has_no_score(reference_dir: Path) -> None:
    arrays = np.load(reference_dir / "metrics" / "abdomen_single_slice_inputs.npz")
    prediction, truth = (arrays[f"single_slice_aorta/{kind}"].transpose(2, 1, 0) for kind in ("pred", "gt"))
    scores = score_abdomen(prediction, truth, arrays["single_slice_aorta/spacing"][::-1], True)
    assert math.isnan(scores["Aorta"]["dsc"])
    assert math.isnan(scores["Aorta"]["nsd"])
    assert scores["Liver"]["dsc"] == pytest.approx(0.7566, abs=5e-5)


def test_endoscopy(reference_dir: Path) -> None:
    arrays = np.load(reference_dir / "metrics" / "endoscopy_inputs.npz")
    nsd, dsc = (read_rows(reference_dir / "metrics" / f"endoscopy_{kind}_unrounded.csv") for kind in ("NSD", "DSC"))
    labels = LabelSet(tuple("abcdefg"), tuple((value,) for value in range(1, 8)))
    rules = Rules(labels, "endoscopy", strict_official=True)
    assert len(dsc) == 14
    for case in dsc:
        scores = score_arrays(arrays[f"{case}/pred"][None], arrays[f"{case}/gt"][None], (1, 1, 1), rules)
        for metric, table in (("dsc", dsc), ("nsd", nsd)):
            assert mean_score(scores, metric) == pytest.approx(float(table[case][metric.upper()]), abs=1e-12)
    empty = np.zeros((1, 4, 4), dtype=np.uint8)
    assert math.isnan(mean_score(score_arrays(empty, empty, (1, 1, 1), rules), "dsc"))


@pytest.mark.parametrize(
    ("name", "threshold", "count_edge_cells"),
    [
        ("cell_unrounded-0.5.csv", 0.5, False),
        ("cell_unrounded-0.7.csv", 0.7, False),
        ("cell_unrounded-0.9.csv", 0.9, False),
        ("cell_count_bd_cells_unrounded-0.5.csv", 0.5, True),
    ],
)
def test_cells(reference_dir: Path, name: str, threshold: float, count_edge_cells: bool) -> None:
    arrays = np.load(reference_dir / "metrics" / "cell_inputs.npz")
    rows = read_rows(reference_dir / "metrics" / name)
    assert len(rows) >= 9
    for case, row in rows.items():
        if "large" in case and threshold != 0.5:
            continue  # seconds an image; once is enough
        scores = score_cells(arrays[f"{case}/pred"], arrays[f"{case}/gt"], threshold, count_edge_cells, True)
        counts = [int(row[column]) for column in list(row)[1:6]]
        assert [scores.true, scores.predicted, scores.hits, scores.misses, scores.wrong] == counts
        for column, value in (("precision", scores.precision), ("recall", scores.recall), ("F1", scores.f1)):
            assert value == pytest.approx(float(row[column]), abs=1e-12)
        assert scores.dsc == pytest.approx(float(row["dice"]), abs=1e-12)


def test_whole_cells_have_their_boundary_and_touching_ones_are_split() -> None:
    truth = np.zeros((30, 40), dtype=np.uint8)
    truth[3:9, 3:9], truth[12:22, 12:22], truth[12:22, 22:32] = 1, 2, 3  # the last two touch
    classes = interior_and_boundary(truth)
    labels = LabelSet(("interior", "boundary"), ((1,), (2,)))
    found = {
        protocol: score_arrays(classes[None], truth[None], (1, 1, 1), Rules(labels, protocol))["cells"]
        for protocol in ("cell", "whole_cells")
    }
    # Interiors of 4 x 4 in 6 x 6 and of 8 x 8 in 10 x 10 pixels: IoU 16 / 36 and 64 / 100.
    assert [found["cell"][name] for name in ("true_cells", "predicted_cells", "found_cells")] == [3, 3, 2]
    assert found["cell"]["dsc"] == pytest.approx(2 * 144 / (144 + 236))
    assert [found["whole_cells"][name] for name in ("true_cells", "predicted_cells", "found_cells", "f1")] == [
        3,
        3,
        3,
        1,
    ]
    assert found["whole_cells"]["dsc"] == 1
    classes[13:21, 21:23] = 1  # the border between the two is missed: one interior with a waist
    classes[13:15, 21:23] = classes[19:21, 21:23] = 2
    joined = {
        protocol: score_arrays(classes[None], truth[None], (1, 1, 1), Rules(labels, protocol))["cells"]
        for protocol in ("cell", "whole_cells")
    }
    assert [joined["cell"][name] for name in ("predicted_cells", "found_cells")] == [2, 0]
    assert [joined["whole_cells"][name] for name in ("predicted_cells", "found_cells")] == [3, 3]


def test_large_images_without_their_edge_only() -> None:
    image = np.zeros((5000, 5000), dtype=np.uint8)
    with pytest.raises(ValueError, match="25 million"):
        score_cells(image, image, count_edge_cells=True)
