"""From files to score tables: the official scripts' own tables, faults among good cases, comparisons of methods."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import SimpleITK as sitk
from scipy.stats import wilcoxon

from umamba.cli.compose import settings_of
from umamba.evaluation import Rules
from umamba.evaluation.evaluate import evaluate, evaluate_folders, find_pairs, label_names
from umamba.evaluation.statistics import bootstrap_interval, compare_methods, holm, summarize
from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.settings import EvaluateSettings, InvalidSettings

GENERIC = LabelSet(("a", "b"), ((1,), (2,)))


def write(path: Path, array: np.ndarray, spacing_xyz: Any = None) -> Path:
    """Write a label map."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    if spacing_xyz is not None:
        image.SetSpacing([float(value) for value in spacing_xyz])
    sitk.WriteImage(image, str(path))
    return path


def cases_of(arrays: Any) -> list[str]:
    """Return the cases of an archive of arrays CASE/gt, CASE/pred."""
    return sorted({key.split("/")[0] for key in arrays.files})


def official(reference_dir: Path, name: str) -> pandas.DataFrame:
    """Return a table as an official script printed it."""
    return pandas.read_csv(reference_dir / "metrics" / name)


def assert_same(found: Path, expected: pandas.DataFrame) -> None:
    """Compare tables to the printed precision."""
    table = pandas.read_csv(found)
    expected = expected[[column for column in expected.columns if column in table.columns]]
    assert list(table.columns) == list(expected.columns)
    pandas.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("inputs", "tables"), [("abdomen", ("DSC", "NSD")), ("abdomen_single_slice", ("DSC",))])
def test_abdomen_as_the_scripts_print_it(
    reference_dir: Path, tmp_path: Path, inputs: str, tables: tuple[str, ...]
) -> None:
    arrays = np.load(reference_dir / "metrics" / f"{inputs}_inputs.npz")
    for case in cases_of(arrays):
        for kind in ("gt", "pred"):  # in NIfTI order (x, y, z)
            array = arrays[f"{case}/{kind}"].transpose(2, 1, 0).astype(np.uint8)
            write(tmp_path / kind / f"{case}.nii.gz", array, arrays[f"{case}/spacing"])
    rules = Rules(label_names(tmp_path / "gt", None, "abdomen"), "abdomen", strict_official=True)
    found = evaluate_folders({"x": tmp_path / "pred"}, tmp_path / "gt", tmp_path / "out", rules, workers=1)
    assert not found.problems
    for table in tables:
        assert_same(tmp_path / "out" / f"{table}.csv", official(reference_dir, f"{inputs}_{table}.csv"))


def test_endoscopy_as_the_scripts_print_it(reference_dir: Path, tmp_path: Path) -> None:
    arrays = np.load(reference_dir / "metrics" / "endoscopy_inputs.npz")
    for case in cases_of(arrays):
        for kind in ("gt", "pred"):
            write(tmp_path / kind / f"{case}.png", arrays[f"{case}/{kind}"].astype(np.uint8))
    labels = LabelSet(tuple("abcdefg"), tuple((value,) for value in range(1, 8)))
    rules = Rules(labels, "endoscopy", strict_official=True)
    found = evaluate_folders({"x": tmp_path / "pred"}, tmp_path / "gt", tmp_path / "out", rules, workers=1)
    assert not found.problems
    for table in ("DSC", "NSD"):
        assert_same(tmp_path / "out" / f"{table}.csv", official(reference_dir, f"endoscopy_{table}.csv"))


@pytest.mark.parametrize(("threshold", "edge"), [(0.5, False), (0.7, False), (0.9, False), (0.5, True)])
def test_cells_as_the_scripts_print_it(reference_dir: Path, tmp_path: Path, threshold: float, edge: bool) -> None:
    arrays = np.load(reference_dir / "metrics" / "cell_inputs.npz")
    expected = official(reference_dir, f"cell{'_count_bd_cells' if edge else ''}-{threshold}.csv")
    kept = [case for case in cases_of(arrays) if "large" not in case]  # test_score.py scores those
    for case in kept:
        write(tmp_path / "gt" / f"{case}_label.tiff", arrays[f"{case}/gt"].astype(np.uint16))
        write(tmp_path / "pred" / f"{case}.png", arrays[f"{case}/pred"].astype(np.uint8))
    rules = Rules(
        label_names(tmp_path, None, "cell"),
        "cell",
        strict_official=True,
        iou_threshold=threshold,
        count_edge_cells=edge,
    )
    found = evaluate_folders({"x": tmp_path / "pred"}, tmp_path / "gt", tmp_path / "out", rules, workers=1)
    assert not found.problems
    expected = expected[~expected["names"].str.contains("large")].reset_index(drop=True)
    assert len(expected) >= 8
    assert_same(tmp_path / "out" / f"cells-{threshold}.csv", expected)


@pytest.fixture
def two_methods(tmp_path: Path) -> dict[str, Path]:
    """Write eight cases of two labels, and predictions that are shifted by one and by two voxels."""
    for case in range(8):
        truth = np.zeros((8, 24, 24), dtype=np.uint8)
        truth[2:6, 4 : 10 + case, 5:15] = 1
        truth[1:7, 12 + case :, 16:] = 2
        write(tmp_path / "data" / "truth" / f"case{case}.nii.gz", truth, (1, 1, 2))
        for name, shift in (("near", 1), ("far", 2)):
            write(tmp_path / name / f"case{case}.nii.gz", np.roll(truth, shift, axis=2), (1, 1, 2))
    return {"near": tmp_path / "near", "far": tmp_path / "far"}


def test_generic_details_and_comparison(two_methods: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    rules = Rules(GENERIC, details=True)
    found = evaluate_folders(two_methods, tmp_path / "data" / "truth", output, rules, workers=1)
    assert not found.problems
    assert list(found.scores) == ["near", "far"]
    scores = pandas.read_csv(output / "near" / "scores.csv")
    first = scores[(scores["case"] == "case0") & (scores["label"] == "a")].iloc[0]
    # A box 4 x 6 x 10 of 2 mm³ voxels moved by one along its last side.
    assert first["dsc"] == pytest.approx(0.9)
    assert first["volume_ml"] == first["true_volume_ml"] == pytest.approx(4 * 6 * 10 * 2 / 1000)
    assert first["volume_error"] == 0
    assert first["hd95_mm"] == pytest.approx(1.0)
    assert (first["true_parts"], first["predicted_parts"], first["detected_parts"]) == (1, 1, 1)
    comparison = pandas.read_csv(output / "comparison.csv")
    assert found.comparison is not None
    pandas.testing.assert_frame_equal(found.comparison, comparison, check_dtype=False)
    row = comparison[(comparison["label"] == "mean") & (comparison["metric"] == "dsc")].iloc[0]
    means = {name: pandas.read_csv(output / name / "scores.csv").groupby("case")["dsc"].mean() for name in two_methods}
    assert row["difference"] == pytest.approx((means["near"] - means["far"]).mean())
    assert row["p_value"] == row["p_holm"] == pytest.approx(wilcoxon(means["near"], means["far"]).pvalue)
    for picture in ("boxplots.png", "near/volumes.png", "far/volumes.png"):
        assert (output / picture).stat().st_size > 5000


def test_good_cases_are_scored_and_bad_ones_named(two_methods: dict[str, Path], tmp_path: Path) -> None:
    folder, truth = two_methods["near"], tmp_path / "data" / "truth"
    (folder / "case1.nii.gz").unlink()
    (folder / "case2.nii.gz").write_bytes((folder / "case2.nii.gz").read_bytes()[:60])
    write(folder / "case3.nii.gz", np.zeros((8, 24, 23), dtype=np.uint8), (1, 1, 2))
    write(folder / "case4.nii.gz", np.full((8, 24, 24), 7, dtype=np.uint8), (1, 1, 2))
    problems = evaluate_folders({"near": folder}, truth, tmp_path / "out", Rules(GENERIC), workers=1).problems
    said = "\n".join(problems)
    assert len(problems) == 4
    for words in ("no segmentation of case1", "case2.nii.gz", "case3.nii.gz.*grid differs", "case4.nii.gz.*\\[7\\]"):
        assert re.search(words, said)
    assert sorted(pandas.read_csv(tmp_path / "out" / "scores.csv")["case"].unique()) == [
        "case0",
        "case5",
        "case6",
        "case7",
    ]


def test_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    truth = write(tmp_path / "truth" / "a.nii.gz", np.ones((2, 3, 4), dtype=np.uint8)).parent
    for predictions, words in ((tmp_path / "absent", "no such folder"), (tmp_path / "empty", "no label map")):
        with pytest.raises(UserError, match=words):
            find_pairs(predictions, truth, Rules(GENERIC))
    with pytest.raises(UserError, match="dataset_json=PATH"):
        label_names(truth, None, "generic")
    with pytest.raises(UserError, match="protocol=abdomen"):
        Rules(GENERIC, "abdomen")
    with pytest.raises(UserError, match="generic, abdomen"):
        Rules(GENERIC, "abdominal")


def test_the_settings_choose_folders_and_rules(
    two_methods: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "data" / "truth"
    (tmp_path / "labels.json").write_text('{"labels": {"background": 0, "a": 1, "b": 2}}')
    settings = EvaluateSettings(
        predictions=two_methods["near"],
        truth=truth,
        output=tmp_path / "out",
        dataset_json=tmp_path / "labels.json",
        workers=1,
    )
    found = evaluate(settings, progress=False)
    assert capsys.readouterr() == ("", "")
    assert found.comparison is None
    table = found.scores["near"]
    assert table["case"].nunique() == 8
    assert {"dsc", "nsd", "hd95_mm", "volume_ml"} <= set(table.columns)
    evaluate(settings)
    assert "near: 8 cases" in capsys.readouterr().out


def test_predictions_may_be_one_folder_or_several(tmp_path: Path) -> None:
    for name in ("x", "y", "t"):
        (tmp_path / name).mkdir()
    x, y = tmp_path / "x", tmp_path / "y"
    several = f"{{a: {x}, b: {y}}}"
    for given, expected in ((str(x), {"x": x}), (several, {"a": x, "b": y})):
        overrides = [f"predictions={given}", f"truth={tmp_path / 't'}", "output=o"]
        assert settings_of(EvaluateSettings, overrides).methods == expected
    with pytest.raises(InvalidSettings, match=r"predictions\.b=.*nowhere: there is no such folder"):
        EvaluateSettings(predictions={"a": str(x), "b": str(tmp_path / "nowhere")}, truth=x, output=tmp_path / "o")


def test_statistics_by_hand() -> None:
    table = pandas.DataFrame({"case": ["x", "x", "y", "y"], "label": ["a", "b"] * 2, "dsc": [0.5, 0.7, 0.9, math.nan]})
    summary = summarize(table, ["dsc"]).set_index("label")
    assert summary.loc["a", "mean"] == pytest.approx(0.7)
    assert summary.loc["a", "sd"] == pytest.approx(math.sqrt(0.08))
    assert summary.loc["b", "cases"] == 1
    assert math.isnan(summary.loc["b", "ci_low"])
    assert summary.loc["mean", "mean"] == pytest.approx((0.6 + 0.9) / 2)
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = bootstrap_interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    few = compare_methods({"p": table, "q": table}, ["dsc"])
    assert few["p_value"].isna().all()
