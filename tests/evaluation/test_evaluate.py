"""From files to score tables: the official scripts' own tables, faults among good cases, comparisons of methods."""

import json
import math
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import SimpleITK as sitk
from PIL import Image as Picture
from scipy.stats import ttest_rel

from umamba.cli.compose import settings_of
from umamba.cli.main import main
from umamba.evaluation import Rules, instances, score, score_case
from umamba.evaluation.comparison import compare_methods
from umamba.evaluation.evaluate import evaluate, evaluate_folders, label_names
from umamba.evaluation.pairs import find_pairs
from umamba.evaluation.statistics import bootstrap_interval, holm, summarize
from umamba.io import UserError
from umamba.io.tabular import read_table
from umamba.io.voice import shown
from umamba.labels import LabelSet
from umamba.labels.instance_maps import interior_and_boundary
from umamba.settings import EvaluateSettings

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
    images = tmp_path / "images" if edge else None
    for case in kept if edge else []:
        write(tmp_path / "images" / f"{case}.png", np.zeros(arrays[f"{case}/gt"].shape, np.uint8))
    found = evaluate_folders({"x": tmp_path / "pred"}, tmp_path / "gt", tmp_path / "out", rules, images, workers=1)
    assert not found.problems
    assert len(list((tmp_path / "out").glob("overlays/*.png"))) == (3 if edge else 0), "numbered cells are drawn"
    expected = expected[~expected["names"].str.contains("large")].reset_index(drop=True)
    assert len(expected) >= 8
    assert_same(tmp_path / "out" / f"cells-{threshold}.csv", expected)


def test_whole_cells_from_files(tmp_path: Path) -> None:
    truth = np.zeros((30, 30), dtype=np.uint16)
    truth[4:10, 4:10], truth[14:24, 14:24] = 1, 2  # the interior of the first is 4 x 4 of 6 x 6 pixels
    write(tmp_path / "gt" / "a_label.tiff", truth)
    write(tmp_path / "pred" / "a.png", interior_and_boundary(truth))
    write(tmp_path / "images" / "a.png", np.zeros(truth.shape, np.uint8))
    f1 = {}
    for protocol in ("cell", "whole_cells"):
        settings = EvaluateSettings(
            predictions=tmp_path / "pred",
            truth=tmp_path / "gt",
            output=tmp_path / protocol,
            protocol=protocol,  # type: ignore[arg-type]
            images=tmp_path / "images",
            objects=True,
            workers=1,
        )
        found = evaluate(settings)
        assert not found.problems
        (table,) = found.scores.values()
        f1[protocol] = table["f1"].tolist()
        assert table["pq"].tolist() == [1.0]
        assert list((tmp_path / protocol / "overlays").glob("*.png"))
    assert f1 == {"cell": [0.5], "whole_cells": [1.0]}
    rules = Rules(label_names(tmp_path, None, "whole_cells"), "whole_cells", strict_official=True)
    with pytest.raises(UserError, match="protocol=whole_cells has no official script"):
        evaluate_folders({"x": tmp_path / "pred"}, tmp_path / "gt", tmp_path / "out", rules, workers=1)


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
    assert row["p_false"] == pytest.approx(ttest_rel(means["near"], means["far"]).pvalue / 2)
    assert not row["shown"], "one training of each method"
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


def test_pictures_have_no_millilitres(tmp_path: Path) -> None:
    for kind in ("labelsTs", "found"):
        (tmp_path / kind).mkdir()
        label = np.zeros((8, 8), dtype=np.uint8)
        label[2:6, 2:6] = 1
        Picture.fromarray(label).save(tmp_path / kind / "a.png")
    one = LabelSet(("a",), ((1,),))
    evaluate_folders({"a": tmp_path / "found"}, tmp_path / "labelsTs", tmp_path / "out", Rules(one, details=True))
    (row,) = pandas.read_csv(tmp_path / "out" / "scores.csv").to_dict("records")
    assert row["dsc"] == 1
    assert row["volume_error"] == 0
    assert np.isnan([row["volume_ml"], row["true_volume_ml"]]).all()
    assert not (tmp_path / "out" / "volumes.png").exists()


def test_the_protocol_abdomen_reads_the_labels_that_are_declared(tmp_path: Path) -> None:
    """Other labels would be scored as organs, and organs that are nowhere count as found."""
    references = tmp_path / "labelsTs"
    references.mkdir()
    organs = label_names(references, None, "abdomen")
    Rules(organs, "abdomen")
    names = {"background": 0, "Liver": 1} | {f"organ {value}": value for value in range(2, 14)}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": names}))
    assert label_names(references, None, "abdomen") == organs, "values decide, and the organs keep the paper's names"
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "Anterior": 1, "Posterior": 2}}))
    with pytest.raises(UserError, match=r"protocol=abdomen: needs the labels .* has Anterior, Posterior"):
        Rules(label_names(references, None, "abdomen"), "abdomen")


def test_the_folder_of_a_dataset_is_no_folder_of_references(tmp_path: Path) -> None:
    (tmp_path / "Dataset500_A" / "labelsTs").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Give truth=.*Dataset500_A/labelsTs, the folder of the references"):
        label_names(tmp_path / "Dataset500_A", None, "generic")


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
    few = compare_methods({"p": table, "q": table}, {"p": "p", "q": "q"}, ["dsc"])
    assert few["p_holm"].isna().all()
    assert not few["shown"].any()


def test_the_trainings_of_a_method_are_compared_together(
    two_methods: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "data" / "truth"
    for name in ("near", "far"):  # a second training, which also moves a case along another axis
        for path in two_methods[name].iterdir():
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            moved = np.roll(array, int(path.name[4]) % 2, axis=1)
            write(tmp_path / f"{name}_again" / path.name, moved, (1, 1, 2))
    (tmp_path / "labels.json").write_text('{"labels": {"background": 0, "a": 1, "b": 2}}')
    given = {name: [str(two_methods[name]), str(tmp_path / f"{name}_again")] for name in two_methods}
    listed = ",".join(f"{name}:[{','.join(folders)}]" for name, folders in given.items())
    overrides = [f"predictions={{{listed}}}", f"truth={truth}", f"output={tmp_path / 'out'}"]
    overrides += [f"dataset_json={tmp_path / 'labels.json'}", "workers=1", "margin=0.03"]
    settings = settings_of(EvaluateSettings, overrides)
    assert list(settings.methods) == ["near_1", "near_2", "far_1", "far_2"]
    found = evaluate(settings)
    assert list(found.scores) == ["near_1", "near_2", "far_1", "far_2"]
    assert found.comparison is not None
    row = found.comparison[(found.comparison["label"] == "mean") & (found.comparison["metric"] == "dsc")].iloc[0]
    assert (row["first"], row["second"], row["trainings_first"], row["trainings_second"]) == ("near", "far", 2, 2)
    means = {name: table.groupby("case")["dsc"].mean() for name, table in found.scores.items()}
    expected = (means["near_1"] + means["near_2"] - means["far_1"] - means["far_2"]).mean() / 2
    assert row["difference"] == pytest.approx(expected)
    assert row["sd_trainings"] > 0
    assert row["margin"] == 0.03
    assert f"DSC, near and far: {row['sentence']}" in " ".join(capsys.readouterr().out.split())


def write_missed(root: Path) -> dict[str, tuple[Path, Path]]:
    """Write ten references of one organ: nine are missed, the tenth is found 4 mm off."""
    pairs = {}
    for case in range(10):
        truth = np.zeros((24, 24, 24), dtype=np.uint8)
        truth[8:16, 8:16, 8:16] = 1
        found = np.roll(truth, 4, axis=2) if case == 9 else np.zeros_like(truth)
        name = f"{case:03d}.nii.gz"
        pairs[f"{case:03d}"] = (write(root / "pred" / name, found), write(root / "labelsTs" / name, truth))
    return pairs


def test_missed_structures_count_with_the_image_diagonal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_missed(tmp_path)
    rules = Rules(LabelSet(("organ",), ((1,),)), details=True)
    with shown():
        evaluate_folders({"m": tmp_path / "pred"}, tmp_path / "labelsTs", tmp_path / "out", rules, workers=1)
    summary = read_table(tmp_path / "out" / "summary.csv", ("label", "metric")).set_index("metric")
    diagonal = math.sqrt(3) * 24
    assert summary["cases"].to_dict() == {"dsc": 10, "nsd": 10, "hd95_mm": 1, "hd95_with_misses_mm": 10}
    assert summary.loc["hd95_mm", "mean"] == 4
    assert summary.loc["hd95_with_misses_mm", "mean"] == pytest.approx((9 * diagonal + 4) / 10)
    assert summary.loc["dsc", "mean"] == pytest.approx(0.05)
    assert summary.loc["nsd", "tolerance_mm"] == 2
    assert summary["tolerance_mm"].count() == 1
    said = capsys.readouterr().out
    assert "4.0000, n=1" in said
    assert f"{(9 * diagonal + 4) / 10:.4f} ± " in said
    assert "NSD at 2 mm" in " ".join(said.split())


def test_neither_map_has_the_label_and_a_false_one_counts(tmp_path: Path) -> None:
    empty, one = np.zeros((4, 6, 8), dtype=np.uint8), np.zeros((4, 6, 8), dtype=np.uint8)
    one[2, 2, 2] = 1
    rules = Rules(LabelSet(("organ",), ((1,),)), details=True)
    assert math.isnan(score_case(empty, empty, (3, 2, 1), rules)["organ"]["hd95_with_misses_mm"])
    for prediction, truth in ((one, empty), (empty, one)):
        found = score_case(prediction, truth, (3, 2, 1), rules)["organ"]
        assert found["hd95_with_misses_mm"] == pytest.approx(math.sqrt(12**2 + 12**2 + 8**2))
        assert math.isnan(found["hd95_mm"])
        assert found["dsc"] == found["nsd"] == 0


HOSTILE = ("NA", "[/red]", "$\\frac$", "mean", "=1+1", "a, b", 'the "left"', "cafe\u0301")


def test_any_name_of_a_label_or_case_is_scored_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = LabelSet(HOSTILE, tuple((value,) for value in range(1, len(HOSTILE) + 1)))
    cases = ("001", "1e3", "NA", "=x", "caf\u00e9", "a,b")
    array = np.arange(len(HOSTILE) + 1, dtype=np.uint8).reshape(1, 3, 3).repeat(4, 1).repeat(4, 2)
    for case in cases:
        write(tmp_path / "truth" / f"{case}.nii.gz", array)
        for method in ("m", "n"):
            write(tmp_path / method / f"{unicodedata.normalize('NFD', case)}.nii.gz", array)
    folders = {"[b]": tmp_path / "m", "n": tmp_path / "n"}
    with shown():
        found = evaluate_folders(folders, tmp_path / "truth", tmp_path / "out", Rules(labels, details=True), workers=1)
    assert not found.problems
    read = read_table(tmp_path / "out" / "n" / "scores.csv", ("case", "label"))
    assert read["case"].unique().tolist() == sorted(cases)
    assert read["label"].unique().tolist() == list(HOSTILE)
    assert set(read["dsc"]) == {1.0}
    comparison = read_table(tmp_path / "out" / "comparison.csv", ("label", "metric", "first", "second", "sentence"))
    assert comparison["label"].unique().tolist() == [*HOSTILE, "mean of labels"]
    assert set(comparison["cases"]) == {len(cases)}
    said = capsys.readouterr().out
    assert all(name in said for name in HOSTILE)
    assert "[b] - n" in said


def test_a_method_cannot_choose_another_folder(two_methods: dict[str, Path], tmp_path: Path) -> None:
    folders = {"..": two_methods["near"], "a/b": two_methods["far"]}
    with pytest.raises(UserError, match="cannot be the name of a file or folder"):
        evaluate_folders(folders, tmp_path / "data" / "truth", tmp_path / "out", Rules(GENERIC), workers=1)
    assert not (tmp_path / "out").exists()


def test_one_case_in_two_files_is_refused(two_methods: dict[str, Path], tmp_path: Path) -> None:
    write(two_methods["near"] / "case0.mha", np.zeros((8, 24, 24), dtype=np.uint8))
    with pytest.raises(UserError, match=r"case0\.mha and case0\.nii\.gz are one case"):
        find_pairs(two_methods["near"], tmp_path / "data" / "truth", Rules(GENERIC))


def test_an_image_too_large_for_a_rule_leaves_the_others_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "_LARGE", 400)
    for case, edge in (("large", 20), ("small", 12)):
        cells = np.zeros((edge, edge), dtype=np.uint8)
        cells[4:8, 4:8] = 1
        write(tmp_path / "gt" / f"{case}_label.png", cells)
        write(tmp_path / "pred" / f"{case}.png", cells)
    rules = Rules(label_names(tmp_path, None, "cell"), "cell", count_edge_cells=True)
    found = evaluate_folders({"x": tmp_path / "pred"}, tmp_path / "gt", tmp_path / "out", rules, workers=1)
    assert len(found.problems) == 1
    assert "large.png" in found.problems[0]
    assert "count_edge_cells=false" in found.problems[0]
    assert found.scores["x"]["case"].tolist() == ["small"]
    assert found.scores["x"]["f1"].tolist() == [1.0]


def test_an_unforeseen_error_of_one_case_leaves_the_others_scored(
    two_methods: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = score.score_files

    def fail(prediction: Path, truth: Path, rules: Rules) -> Any:
        if "case3" in prediction.name:
            raise MemoryError("3 GB")
        return original(prediction, truth, rules)

    monkeypatch.setattr(score, "score_files", fail)
    pairs, _ = find_pairs(two_methods["near"], tmp_path / "data" / "truth", Rules(GENERIC))
    table, problems = score.score_pairs(pairs, Rules(GENERIC), workers=1)
    assert table["case"].nunique() == 7
    assert problems == [f"{two_methods['near'] / 'case3.nii.gz'}: could not be scored (MemoryError: 3 GB)."]


def test_a_missing_image_leaves_all_methods_scored(two_methods: dict[str, Path], tmp_path: Path) -> None:
    write(tmp_path / "images" / "other_0000.nii.gz", np.zeros((8, 24, 24), dtype=np.uint8))
    truth, output = tmp_path / "data" / "truth", tmp_path / "out"
    found = evaluate_folders(two_methods, truth, output, Rules(GENERIC), tmp_path / "images", workers=1)
    assert list(found.scores) == ["near", "far"]
    assert not found.problems
    assert len(found.undrawn) >= 3, "the worst, median and best case of the methods"
    assert all("contains no image of case" in problem for problem in found.undrawn)
    assert (output / "comparison.csv").exists()


def test_images_on_another_grid_are_named_after_all_scores(
    two_methods: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in range(8):
        shape = (7, 20, 20) if case < 7 else (8, 24, 24)
        write(tmp_path / "images" / f"case{case}_0000.nii.gz", np.zeros(shape, dtype=np.int16), (1, 1, 2))
    (tmp_path / "data" / "dataset.json").write_text('{"labels": {"background": 0, "a": 1, "b": 2}}')
    given = ",".join(f"{name}:{folder}" for name, folder in two_methods.items())
    overrides = [f"predictions={{{given}}}", f"truth={tmp_path / 'data' / 'truth'}", "workers=1"]
    overrides += [f"output={tmp_path / 'out'}", f"images={tmp_path / 'images'}"]
    assert main(["evaluate", *overrides]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "These overlays could not be drawn; no score depends on them:" in said
    assert "could not be scored" not in said
    assert "case0_0000.nii.gz: its grid differs from that of" in said
    assert "shape (Z, Y, X) (7, 20, 20) against (8, 24, 24)" in said
    assert (tmp_path / "out" / "far" / "scores.csv").exists()
    assert (tmp_path / "out" / "comparison.csv").exists()
    drawn = {path.name.partition("_")[2] for path in (tmp_path / "out").glob("*/overlays/*.png")}
    assert drawn <= {"case7.png"}, "a case with a fitting image is drawn all the same"
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: contains no image"):
        evaluate_folders(
            *(two_methods, tmp_path / "data" / "truth", tmp_path / "again", Rules(GENERIC), tmp_path / "none"),
            workers=1,
        )
    assert not (tmp_path / "again").exists(), "refused before any work"


def test_overlays_of_images_with_a_time_axis(two_methods: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    steps = [sitk.GetImageFromArray(np.full((8, 24, 24), step, np.float32)) for step in range(2)]
    for step in steps:
        step.SetSpacing((1, 1, 2))
    for case in range(8):
        sitk.WriteImage(sitk.JoinSeries(steps), str(tmp_path / "images" / f"case{case}.nii.gz"))
    folders = {"near": two_methods["near"]}, tmp_path / "data" / "truth", tmp_path / "out"
    found = evaluate_folders(*folders, Rules(GENERIC), tmp_path / "images", workers=1)
    assert (found.problems, found.undrawn) == ((), ())
    assert len(list((tmp_path / "out" / "overlays").glob("*.png"))) == 3


def test_several_processes_without_a_common_case(two_methods: dict[str, Path], tmp_path: Path) -> None:
    for path in list(two_methods["near"].iterdir()):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    with pytest.raises(UserError, match=r"No case could be scored:\n.*there is no segmentation of case0"):
        evaluate_folders(
            {"near": two_methods["near"]}, tmp_path / "data" / "truth", tmp_path / "out", Rules(GENERIC), workers=2
        )


def test_labels_that_a_reference_does_not_carry_have_no_score(tmp_path: Path) -> None:
    truth = np.zeros((3, 8, 8), np.uint8)
    truth[1, 2:6, 2:4] = 1
    both = truth.copy()
    both[1, 2:6, 5:7] = 2
    for case, array in (("x", truth), ("y", both)):
        write(tmp_path / "labelsTs" / f"{case}.nii.gz", array)
        write(tmp_path / "p" / f"{case}.nii.gz", both)
    declared = {"labels": {"background": 0, "a": 1, "b": 2}, "annotated_labels": {"x": ["a"], "unseen": ["b"]}}
    (tmp_path / "dataset.json").write_text(json.dumps(declared))
    folders = [f"predictions={tmp_path / 'p'}", f"truth={tmp_path / 'labelsTs'}", f"output={tmp_path / 'out'}"]
    found = evaluate(settings_of(EvaluateSettings, [*folders, "workers=1"]), progress=False).scores["p"]
    dsc = found.set_index(["case", "label"])["dsc"]
    assert dsc["x", "a"] == dsc["y", "a"] == dsc["y", "b"] == 1
    assert math.isnan(dsc["x", "b"])  # 0 if the reference counted as complete
