"""Validation scores: every case counts once, tables name their split and rules, and no epoch repeats old values."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from umamba.io.voice import shown
from umamba.planning import split_folds
from umamba.records import RunFolder
from umamba.records.tables import main_score, read_metrics, read_scores, write_scores
from umamba.runs.score import pool_folds, table_of_test_images
from umamba.runs.whole_run import RunResult, _outcome
from umamba.settings import TrainSettings


def fold_of(root: Path, fold: int | str, cases: dict[str, float]) -> RunFolder:
    """Write the validation scores of a fold."""
    folder = RunFolder(root / f"fold_{fold}" / "seed_0")
    write_scores(
        folder.validation_scores,
        pandas.DataFrame({"case": list(cases), "label": "NA", "dsc": list(cases.values())}),
    )
    return folder


def test_a_case_of_two_folds_counts_once(tmp_path: Path, messages: pytest.LogCaptureFixture) -> None:
    fold_of(tmp_path, 10, {"002": 0.0, "005": 0.0})  # beyond the splits: random cases
    fold_of(tmp_path, 0, {"001": 0.5, "002": 0.7})
    folder = fold_of(tmp_path, 2, {"003": 0.9})
    pooled = pool_folds(folder, "Protocol generic: NSD at 2 mm.")
    assert pooled is not None
    assert pooled["case"].tolist() == ["001", "002", "003"]
    assert pooled["fold"].tolist() == ["0", "0", "2"]
    assert "Fold 10 is left out of the cross-validation: 1 of its cases, such as 002," in messages.text
    read = read_scores(folder.cross_validation_scores)
    assert read["label"].tolist() == ["NA"] * 3
    assert read["dsc"].mean() == pytest.approx(0.7)


def test_a_fold_and_a_random_split_are_no_cross_validation(tmp_path: Path) -> None:
    folder = fold_of(tmp_path, 0, {"a": 0.5})
    fold_of(tmp_path, 7, {"a": 0.5, "b": 1.0})
    assert pool_folds(folder) is None
    assert not folder.cross_validation_scores.exists()


def test_tables_of_test_images_name_split_and_tolerance(make_settings: Callable[..., TrainSettings]) -> None:
    table = table_of_test_images(
        pandas.DataFrame({"case": ["a"], "label": ["x"], "dsc": [1.0]}), make_settings("dataset.tolerance_mm=1.5")
    )
    assert str(table.title) == "Test images: 1 cases"
    assert str(table.caption) == "Protocol generic: NSD at 1.5 mm."


def test_the_mean_of_a_notice_is_that_of_the_tables(tmp_path: Path) -> None:
    rows = [("x", "a", 0.2), ("x", "b", 0.4), ("y", "a", 1.0), ("y", "b", math.nan)]
    scores = pandas.DataFrame(rows, columns=["case", "label", "dsc"])
    assert _outcome(RunResult(RunFolder(tmp_path), None, scores)) == "Test images: DSC 0.650"
    assert main_score(scores) == pytest.approx(0.65)


def test_names_that_are_markup_end_no_run(
    make_settings: Callable[..., TrainSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("[/case]", label, 0.5) for label in ("[/red]", "[bold", ":smile:", "\x1b[2J")]
    scores = pandas.DataFrame(rows, columns=["case", "label", "dsc"])
    with shown():
        logging.getLogger("umamba.test").info(table_of_test_images(scores, make_settings()))
    said = capsys.readouterr().out
    assert all(name in said for name in ("[/red]", "[bold", ":smile:", r"\x1b[2J"))
    assert "\x1b" not in said


def test_epochs_without_validation_have_no_values_of_validation(small_fit: Callable[..., RunFolder]) -> None:
    folder = small_fit("trainer.max_epochs=3", "+trainer.check_val_every_n_epoch=2")
    rows = read_metrics(folder.metrics)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [bool(row["train/loss"]) for row in rows] == [True] * 3
    for name in ("val/loss", "val/patch_dice", "val/ema_patch_dice"):
        assert [bool(row.get(name)) for row in rows] == [False, True, False], name


def test_folds_of_the_plan_are_disjoint() -> None:
    held_out = [case for fold in split_folds([f"{number:03d}" for number in range(11)]) for case in fold["val"]]
    assert len(held_out) == len(set(held_out)) == 11
