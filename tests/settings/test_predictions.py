"""The folders that `umamba evaluate` compares: one, one for each method, or several trainings of a method."""

from pathlib import Path

import pytest

from umamba.cli.compose import settings_of
from umamba.settings import EvaluateSettings, InvalidSettings


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


def test_folders_of_trainings_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    for name in ("near", "far"):
        (tmp_path / name).mkdir()
    near, far = str(tmp_path / "near"), str(tmp_path / "far")
    for predictions, words in (
        ({"a": [near, far], "a_1": far}, "two folders would be called a_1"),
        ({"a": [near, near], "b": far}, "is given twice"),
        ({"a": [], "b": far}, "must be a folder, or a list"),
        ({"a": [near, f"{far}/x"], "b": far}, r"predictions\.a=.*/x: there is no such folder"),
    ):
        with pytest.raises(InvalidSettings, match=words):
            EvaluateSettings(predictions=predictions, truth=tmp_path, output=tmp_path / "o")
