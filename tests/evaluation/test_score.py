"""Scores of cases and folders, their table and the choice of cases to draw."""

import io
import math
from pathlib import Path

import numpy as np
import pandas
import pytest
import SimpleITK as sitk
from rich.console import Console

from umamba.evaluation import Rules, score_case, score_folder, score_table, worst_median_best
from umamba.evaluation.score import _COMPARED, score_files
from umamba.evaluation.terminal_table import score_tables
from umamba.io import UserError
from umamba.labels import LabelSet

PLAIN = LabelSet(("a", "b", "c"), ((1,), (2,), (3,)))
REGIONS = LabelSet(("whole", "core"), ((1, 2), (2,)), region_order=(1, 2))


def slow_dice(prediction: np.ndarray, truth: np.ndarray, values: tuple[int, ...]) -> float:
    """Return the DSC by its definition, over sets of voxels."""
    first, second = ({i for i, value in enumerate(array.ravel()) if value in values} for array in (prediction, truth))
    return 2 * len(first & second) / (len(first) + len(second)) if first or second else math.nan


@pytest.mark.parametrize("labels", [PLAIN, REGIONS])
def test_dice_by_its_definition(labels: LabelSet) -> None:
    generator = np.random.default_rng(0)
    highest = labels.all_values[-1]
    prediction, truth = generator.integers(0, highest + 1, (2, 4, 5, 6)).astype(np.uint8)
    scores = score_case(prediction, truth, (1, 1, 1), Rules(labels, tolerance_mm=1.0))
    for name, values in zip(labels.names, labels.values, strict=True):
        assert scores[name]["dsc"] == pytest.approx(slow_dice(prediction, truth, values))


def test_absent_labels() -> None:
    truth = np.zeros((3, 4, 5), dtype=np.uint8)
    prediction = truth.copy()
    truth[1, 1, 1], prediction[1, 2, 2] = 1, 2
    scores = score_case(prediction, truth, (1, 1, 1), Rules(PLAIN, tolerance_mm=5.0))
    assert scores["a"] == scores["b"] == {"dsc": 0.0, "nsd": 0.0}
    assert math.isnan(scores["c"]["dsc"])
    assert math.isnan(scores["c"]["nsd"])


def test_ignored_voxels_count_nowhere() -> None:
    labels = LabelSet(("a",), ((1,),), ignore=2)
    truth = np.zeros((1, 8, 8), dtype=np.uint8)
    truth[:, :4, :4] = 1
    truth[:, 5:] = 2
    prediction = (truth > 0).astype(np.uint8)
    assert score_case(prediction, truth, (1, 1, 1), Rules(labels, tolerance_mm=1.0)) == {"a": {"dsc": 1.0, "nsd": 1.0}}


def test_tolerances_by_name() -> None:
    truth = np.zeros((9, 16, 16), dtype=np.uint8)
    truth[2:7, 3:12, 3:12] = 1
    prediction = np.roll(truth, 2, axis=1)
    truth[:2], prediction[:2] = 2, 2
    strict = score_case(prediction, truth, (1, 1, 1), Rules(PLAIN, tolerance_mm={"a": 1.0, "b": 1.0, "c": 1.0}))
    lenient = score_case(prediction, truth, (1, 1, 1), Rules(PLAIN, tolerance_mm={"a": 3.0, "b": 1.0, "c": 1.0}))
    assert strict["a"]["nsd"] < 1 == lenient["a"]["nsd"]
    assert strict["b"] == lenient["b"]


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 2.0)) -> Path:
    """Write a label map."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def test_folder(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    truths, arrays = {}, {}
    for case in ("x", "y"):
        prediction, truth = generator.integers(0, 4, (2, 4, 6, 7)).astype(np.uint8)
        truths[case] = write(tmp_path / "truth" / f"{case}.nii.gz", truth)
        write(tmp_path / "prediction" / f"{case}.nii.gz", prediction)
        arrays[case] = (prediction, truth)
    output = tmp_path / "scores.csv"
    scores = score_folder(
        tmp_path / "prediction", truths, Rules(PLAIN, tolerance_mm=1.0), ".nii.gz", output=output, workers=2
    )
    assert list(scores.columns) == ["case", "label", "dsc", "nsd"]
    assert list(zip(scores["case"], scores["label"], strict=True)) == [(c, n) for c in "xy" for n in "abc"]
    pandas.testing.assert_frame_equal(pandas.read_csv(output), scores)
    expected = score_case(*arrays["y"], (2, 1, 1), Rules(PLAIN, tolerance_mm=1.0))
    assert scores["nsd"][3] == pytest.approx(expected["a"]["nsd"])


def test_every_bad_file_is_named_and_nothing_written(tmp_path: Path) -> None:
    array = np.ones((3, 4, 5), dtype=np.uint8)
    truths = {
        case: write(tmp_path / "truth" / f"{case}.nii.gz", array)
        for case in ("good", "size", "value", "huge", "absent")
    }
    write(tmp_path / "good.nii.gz", array)
    write(tmp_path / "size.nii.gz", array[:, :-1])
    write(tmp_path / "value.nii.gz", array * 9)
    write(tmp_path / "huge.nii.gz", array.astype(np.uint32) * 4_000_000_000)
    with pytest.raises(UserError) as raised:
        score_folder(tmp_path, truths, Rules(PLAIN), ".nii.gz", output=tmp_path / "scores.csv", workers=1)
    for part in (
        "size.nii.gz",
        "shape",
        "value.nii.gz",
        "[9]",
        "absent.nii.gz",
        "value 4000000000, but labels are 32767",
    ):
        assert part in str(raised.value)
    assert "good" not in str(raised.value)
    assert not (tmp_path / "scores.csv").exists()


def test_natural_images_are_slabs_one_pixel_thick(tmp_path: Path) -> None:
    truth = np.zeros((60, 60), dtype=np.uint8)
    truth[10:50, 10:50] = 1
    paths = [tmp_path / "truth.png", tmp_path / "case.png"]
    for path, array in zip(paths, (truth, np.roll(truth, 10, axis=1)), strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    scores = score_folder(tmp_path, {"case": paths[0]}, Rules(LabelSet(("a",), ((1,),))), ".png", workers=1)
    assert scores["nsd"][0] == pytest.approx(0.81, abs=0.01)  # official-quirks: a 40 px square moved by 10


def table_of(dsc: dict[str, tuple[float, float]]) -> pandas.DataFrame:
    """Return scores of two labels for each case."""
    rows = [(case, label, value, value) for case, pair in dsc.items() for label, value in zip("ab", pair, strict=True)]
    return pandas.DataFrame(rows, columns=["case", "label", "dsc", "nsd"])


def test_table_leaves_absent_labels_out() -> None:
    scores = table_of({"x": (0.5, 0.9), "y": (0.7, math.nan)})
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(score_table(scores))
    text = console.export_text()
    assert "0.6000 ± 0.1414" in text  # label a
    assert "0.9000" in text  # label b: one case
    assert "0.7000 ± 0.0000" in text  # the means of x and y are both 0.7


def test_many_metrics_are_shown_with_all_digits_in_80_characters() -> None:
    values = {name: 0.8123 + number / 1000 for number, name in enumerate(_COMPARED)}
    scores = pandas.DataFrame([{"case": case, "label": "a", **values} for case in ("x", "y")])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(score_tables(scores, rules="The rules."))
    text = console.export_text()
    assert all(f"{value:.4f}" in text for value in values.values())
    assert text.count("The rules.") == 1


def test_worst_median_best() -> None:
    values = {"p": 0.4, "q": 0.9, "r": 0.1, "s": math.nan}
    scores = table_of({case: (value, value) for case, value in values.items()})
    assert worst_median_best(scores) == {"worst": "r", "median": "p", "best": "q"}
    assert worst_median_best(scores[scores["case"].isin(["p", "q"])]) == {"worst": "p", "best": "q"}
    assert worst_median_best(scores[scores["case"] == "p"]) == {"best": "p"}
    assert worst_median_best(scores[scores["case"] == "s"]) == {}


def test_a_reference_stored_in_another_orientation(tmp_path: Path) -> None:
    prediction, truth = np.random.default_rng(2).integers(0, 4, (2, 4, 6, 7)).astype(np.uint8)
    path = write(tmp_path / "p.nii.gz", prediction)
    expected = score_files(path, write(tmp_path / "t.nii.gz", truth), Rules(PLAIN, tolerance_mm=1.0))
    turned = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "t.nii.gz")), "PSR")
    sitk.WriteImage(turned, str(tmp_path / "turned.nii.gz"))
    assert score_files(path, tmp_path / "turned.nii.gz", Rules(PLAIN, tolerance_mm=1.0)) == expected
    image = sitk.GetImageFromArray(truth)
    image.SetSpacing((1.0, 1.0, 2.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # a header that is wrong, because the voxels are not turned
    sitk.WriteImage(image, str(tmp_path / "wrong.nii.gz"))
    with pytest.raises(UserError, match="direction"):
        score_files(path, tmp_path / "wrong.nii.gz", Rules(PLAIN, tolerance_mm=1.0))
