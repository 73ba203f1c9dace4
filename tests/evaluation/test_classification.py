"""Scores of classes agree with torchmetrics and with arithmetic by hand; their tables and plots are written."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, multiclass_auroc, multiclass_calibration_error

from umamba.evaluation.classification import auc, auc_interval, score_classes, score_task, write_class_scores
from umamba.evaluation.evaluate import evaluate
from umamba.io import UserError
from umamba.labels.case_classes import CaseTask
from umamba.settings import EvaluateSettings, InvalidSettings

GRADE = CaseTask("grade", ("low", "mid", "high"))


def random_cases(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return true classes and probabilities that know something of them; some probabilities are equal."""
    generator = np.random.default_rng(3)
    truth = generator.integers(0, 3, count)
    logits = generator.standard_normal((count, 3)).round(1) + 1.2 * np.eye(3)[truth]
    exponent = np.exp(logits)
    return truth, exponent / exponent.sum(axis=1, keepdims=True)


def value(scores: pandas.DataFrame, metric: str, name: str = "") -> float:
    (found,) = scores.loc[(scores["metric"] == metric) & (scores["class"] == name), "value"]
    return float(found)


def test_several_classes_score_as_in_torchmetrics() -> None:
    truth, probabilities = random_cases()
    scores = score_task(GRADE, truth, probabilities)
    given = torch.from_numpy(probabilities), torch.from_numpy(truth)
    each = multiclass_auroc(*given, num_classes=3, average="none")
    for number, name in enumerate(GRADE.classes):
        assert value(scores, "auc", name) == pytest.approx(float(each[number]), abs=1e-6)
    assert value(scores, "auc", "mean") == pytest.approx(float(each.mean()), abs=1e-6)
    expected = multiclass_calibration_error(*given, num_classes=3, n_bins=10, norm="l1")
    assert value(scores, "ece") == pytest.approx(float(expected), abs=1e-6)
    assert value(scores, "accuracy") == pytest.approx((probabilities.argmax(1) == truth).mean())
    by_hand = [sum((p - (k == t)) ** 2 for k, p in enumerate(row)) for t, row in zip(truth, probabilities, strict=True)]
    assert value(scores, "brier") == pytest.approx(np.mean(by_hand))
    assert (scores["ci_low"] <= scores["value"]).sum() >= 6  # the calibration error of a sample is biased upwards
    assert (scores["cases"] == 60).all()


def test_two_classes_have_one_auc() -> None:
    truth, probabilities = random_cases()
    kept, pair = truth < 2, probabilities[:, :2] / probabilities[:, :2].sum(axis=1, keepdims=True)
    scores = score_task(CaseTask("side", ("left", "right")), truth[kept], pair[kept])
    expected = binary_auroc(torch.from_numpy(pair[kept, 1]), torch.from_numpy(truth[kept]))
    assert list(scores.loc[scores["metric"] == "auc", "class"]) == ["right"]
    assert value(scores, "auc", "right") == pytest.approx(float(expected), abs=1e-6)


def test_the_interval_of_the_auc_is_that_of_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(1.0, 1.0, 30), generator.normal(0.0, 1.0, 40)

    def plain(first: np.ndarray, second: np.ndarray) -> float:
        return float(((first[:, None] > second) + 0.5 * (first[:, None] == second)).mean())

    assert auc(positive, negative) == pytest.approx(plain(positive, negative))
    other = np.random.default_rng(99)
    samples = [plain(other.choice(positive, 30), other.choice(negative, 40)) for _ in range(4000)]
    assert auc_interval(positive, negative) == pytest.approx(np.quantile(samples, (0.025, 0.975)), abs=0.012)


def test_a_class_without_cases_has_no_auc_and_a_single_case_no_interval() -> None:
    scores = score_task(GRADE, np.array([0]), np.array([[0.5, 0.3, 0.2]]))
    assert scores.loc[scores["metric"] == "auc", "value"].isna().all()
    assert scores["ci_low"].isna().all()
    assert value(scores, "brier") == pytest.approx(0.25 + 0.09 + 0.04)


def test_tables_are_joined_by_case(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predicted, truth = tmp_path / "predicted.csv", tmp_path / "truth.csv"
    predicted.write_text(
        "case,side,side=left,side=right\na,left,0.9,0.1\nb,left,0.8,0.2\nc,right,0.3,0.7\nd,left,0.6,0.4\n"
    )
    truth.write_text("case,age,side\nd,40,right\nc,50,right\nb,60,left\na,70,left\nz,80,left\n")
    scores = write_class_scores([predicted], truth, tmp_path / "out" / "classes.csv")
    assert value(scores, "auc", "right") == 1.0
    assert value(scores, "accuracy") == 0.75
    assert (tmp_path / "out" / "classes.png").stat().st_size > 1000
    assert len(pandas.read_csv(tmp_path / "out" / "classes.csv")) == len(scores)
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / "classes.csv").write_text(predicted.read_text())
    found = evaluate(EvaluateSettings(predictions=folder, truth=truth, output=tmp_path / "scored"), progress=False)
    assert not found.problems
    written = (tmp_path / "scored" / "classes.csv").read_text()
    assert written == (tmp_path / "out" / "classes.csv").read_text()
    truth.write_text("case,side\na,left\nb,up\nc,right\n")
    only, _ = score_classes([predicted], truth)
    assert set(only["cases"]) == {2}
    assert "side: up is no class of the network" in caplog.text
    truth.write_text("case,side\nz,left\n")
    with pytest.raises(UserError, match="no case has a class"):
        score_classes([predicted], truth)
    truth.write_text("case,grade\na,left\n")
    with pytest.raises(UserError, match="has no column side"):
        score_classes([predicted], truth)
    with pytest.raises(UserError, match="no such file"):
        score_classes([tmp_path / "none.csv"], truth)


def test_folds_are_scored_together_and_each_case_once(tmp_path: Path) -> None:
    truth, first, second = (tmp_path / name for name in ("truth.csv", "first.csv", "second.csv"))
    truth.write_text("case,side\na,left\nb,right\nc,left\n")
    head = "case,side,side=left,side=right\n"
    first.write_text(f"{head}a,left,0.9,0.1\nb,left,0.8,0.2\n")
    second.write_text(f"{head}b,right,0.0,1.0\nc,left,0.7,0.3\n")
    scores, used = score_classes([first, second], truth)
    assert used["side"][1].tolist() == [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]
    assert value(scores, "auc", "right") == 0.5  # b is above a and below c
    second.write_text("case,side,side=left,side=up\nc,left,0.7,0.3\n")
    with pytest.raises(UserError, match="has other classes"):
        score_classes([first, second], truth)


@pytest.mark.parametrize("replaced", ["predicted", "predicted of a method", "truth", "classes"])
def test_scores_do_not_replace_a_table_that_they_read(tmp_path: Path, replaced: str) -> None:
    table = "case,side,side=left,side=right\na,left,0.9,0.1\nb,right,0.2,0.8\n"
    for name in ("m", "n"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "classes.csv").write_text(table)
    truth = tmp_path / "truth" / "classes.csv"
    truth.parent.mkdir()
    truth.write_text("case,side\na,left\nb,left\n")
    (tmp_path / "link").symlink_to(tmp_path / "m")
    given: dict[str, dict[str, Any]] = {
        "predicted": {"predictions": tmp_path / "m", "truth": truth, "output": tmp_path / "link"},
        "predicted of a method": {
            "predictions": {"n": str(tmp_path / "m"), "m": str(tmp_path / "n")},
            "truth": truth,
            "output": tmp_path,
        },
        "truth": {"predictions": tmp_path / "m", "truth": truth, "output": truth.parent},
        "classes": {"predictions": tmp_path / "m", "truth": tmp_path, "classes": truth, "output": truth.parent},
    }
    before = {path: path.read_text() for path in tmp_path.glob("*/*")}
    with pytest.raises(
        UserError, match=r"the scores would replace .*classes\.csv, which holds predicted or true classes"
    ):
        evaluate(EvaluateSettings(**given[replaced]), progress=False)
    assert {path: path.read_text() for path in tmp_path.glob("*/*")} == before


def test_keys_of_segmentations_are_refused_beside_a_table_of_classes(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("case,side\na,left\n")
    folders: dict[str, Any] = {"predictions": tmp_path, "truth": truth, "output": tmp_path / "out"}
    given: dict[str, Any] = {"images": tmp_path, "objects": True, "dataset_json": truth, "tolerance_mm": 1.0}
    with pytest.raises(InvalidSettings) as raised:
        EvaluateSettings(**folders, **given, protocol="whole_cells")
    for name in (*given, "protocol"):
        assert f"{name}: truth={truth} is a table of classes; segmentations are not scored" in str(raised.value)
    assert "margin:" not in str(raised.value)
    assert EvaluateSettings(**folders, workers=1).truth == truth
