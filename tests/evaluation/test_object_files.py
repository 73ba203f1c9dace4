"""Scores of objects from files: connected parts of labels, cells of classes, and the FROC of probabilities."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.evaluation import Rules, score_arrays
from umamba.evaluation.detection import detection_scores
from umamba.evaluation.evaluate import evaluate_folders, label_names
from umamba.evaluation.panoptic import panoptic_scores
from umamba.io import write_json
from umamba.io.tabular import read_table
from umamba.labels import LabelSet
from umamba.labels.instance_depth import DEPTH_CLASSES, depth_levels
from umamba.labels.instance_maps import interior_and_boundary
from umamba.settings import EvaluateSettings, InvalidSettings

LESIONS = LabelSet(("lesion", "other"), ((1,), (2,)))
DEPTH = LabelSet(DEPTH_CLASSES, ((1,), (2,), (3,), (4,)))
CELLS = LabelSet(("interior", "boundary"), ((1,), (2,)))


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def lesions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numbered lesions, numbered predictions, and the probability of the predictions."""
    truth, found = np.zeros((6, 10, 12), dtype=np.uint8), np.zeros((6, 10, 12), dtype=np.uint8)
    truth[1:4, 1:4, 1:4], truth[4, 8, 10] = 1, 2
    found[1:4, 1:4, 1:3], found[1, 8, 2] = 1, 2
    return truth, found, np.choose(found, [0.0, 0.9, 0.6]).astype(np.float32)


def test_parts_of_labels_are_scored_as_numbered_objects() -> None:
    truth, found, _ = lesions()
    maps = (found > 0).astype(np.uint8), (truth > 0).astype(np.uint8)
    scores = score_arrays(*maps, (1, 1, 1), Rules(LESIONS, objects=True))
    expected = {**panoptic_scores(truth, found).to_metrics(), **detection_scores(truth, found)}
    assert {name: scores["lesion"][name] for name in expected} == pytest.approx(expected)
    assert scores["lesion"]["object_recall"] == 0.5
    assert all(np.isnan(scores["other"][name]) for name in expected)
    assert "pq" not in score_arrays(*maps, (1, 1, 1), Rules(LESIONS))["lesion"]


def test_probabilities_give_a_froc(tmp_path: Path) -> None:
    truth, found, probability = lesions()
    write_json(tmp_path / "dataset.json", {"labels": {"background": 0, "lesion": 1, "other": 2}})
    for case in ("a", "b"):
        write(tmp_path / "truth" / f"{case}.nii.gz", (truth > 0).astype(np.uint8))
        write(tmp_path / "found" / f"{case}.nii.gz", (found > 0).astype(np.uint8))
        all_classes = np.stack([1 - probability, probability, np.zeros_like(probability)])
        np.savez_compressed(tmp_path / "found" / f"{case}.npz", probabilities=all_classes)
    rules = Rules(label_names(tmp_path / "truth", None, "generic"), objects=True)
    outcome = evaluate_folders({"x": tmp_path / "found"}, tmp_path / "truth", tmp_path / "out", rules, workers=1)
    assert not outcome.problems
    table = read_table(tmp_path / "out" / "froc.csv", ("label", "false_per_case"))
    lesion = table[table["label"] == "lesion"]
    # One of two lesions is found at 0.9, without a false object; the false one at 0.6 adds none.
    assert lesion["sensitivity"].tolist() == [0.5] * 8
    assert lesion["false_per_case"].tolist() == ["0.125", "0.25", "0.5", "1.0", "2.0", "4.0", "8.0", "mean"]
    assert (lesion["objects"] == 4).all()
    summary = read_table(tmp_path / "out" / "summary.csv", ("label", "metric"))
    assert {"pq", "ap_mean", "object_f1", "object_dsc"} <= set(summary["metric"])
    # Nobody looked for lesions in b: what is found there is neither right nor wrong.
    partly = replace(rules, annotated={"b": ("other",)})
    evaluate_folders({"x": tmp_path / "found"}, tmp_path / "truth", tmp_path / "partly", partly, workers=1)
    table = read_table(tmp_path / "partly" / "froc.csv", ("label", "false_per_case"))
    assert table.groupby("label")["cases"].unique().str[0].to_dict() == {"lesion": 1, "other": 2}
    assert set(table[table["label"] == "lesion"]["objects"]) == {2}
    (tmp_path / "found" / "b.npz").write_bytes(b"no archive")
    broken = evaluate_folders({"x": tmp_path / "found"}, tmp_path / "truth", tmp_path / "out", rules, workers=1)
    assert len(broken.problems) == 1
    assert "b.npz: its probabilities cannot be read" in broken.problems[0]
    (tmp_path / "found" / "b.npz").unlink()
    absent = evaluate_folders({"x": tmp_path / "found"}, tmp_path / "truth", tmp_path / "out", rules, workers=1)
    assert "b.npz: there is no such file" in absent.problems[0]


def test_cells_of_both_kinds_of_classes(tmp_path: Path) -> None:
    y, x = np.mgrid[:40, :70]
    cells = np.zeros((40, 70), dtype=np.int32)
    for number, (top, left, radius) in enumerate([(18, 16, 10), (20, 34, 8), (20, 56, 6)], start=1):
        cells[((y - top) ** 2 + (x - left) ** 2 <= radius**2) & (cells == 0)] = number
    for labels, classes in ((CELLS, interior_and_boundary(cells)), (DEPTH, depth_levels(cells))):
        rules = Rules(labels, "cell", objects=True)
        scores = score_arrays(classes[None], cells[None], (1, 1, 1), rules)["cells"]
        assert (scores["f1"], scores["found_cells"], scores["pq"]) == pytest.approx((1, 3, 1), abs=0.02)
        assert scores["ap_90"] == 1
    write_json(
        tmp_path / "dataset.json", {"labels": {"background": 0} | dict(zip(DEPTH.names, range(1, 5), strict=True))}
    )
    assert label_names(tmp_path / "instancesTs", None, "cell") == DEPTH
    assert label_names(tmp_path / "elsewhere" / "instancesTs", None, "cell") == CELLS


def test_protocols_without_a_rule_for_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="objects=true: protocol=abdomen has no rule"):
        EvaluateSettings(predictions=tmp_path, truth=tmp_path, output=tmp_path, protocol="abdomen", objects=True)
