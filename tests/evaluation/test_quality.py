"""What is expected of segmentations: a number with its interval where something was learned, and a reason elsewhere."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from umamba.evaluation.quality import (
    FORMAT,
    Calibration,
    calibrate_labels,
    out_of_sample,
)
from umamba.evaluation.quality_estimates import estimate, quality_table, worst_first
from umamba.io import UserError
from umamba.io.tabular import read_table, write_table

NEAR = {"spacing": 0.1, "field_of_view": 0.2, "intensities": 0.0}


def scored(cases: int = 120, seed: int = 0) -> pandas.DataFrame:
    """Return cases of two labels; the second one was found in half of the cases."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(cases):
        for label in ("liver", "tumour"):
            disagreement = float(generator.beta(1.5, 8))
            dsc = float(np.clip(1 - disagreement + generator.normal(0, 0.05), 0, 1))
            missed = label == "tumour" and number % 2 == 1
            rows.append(
                {
                    **{"case": f"case{number:03d}", "label": label, "dsc": dsc, "nsd": dsc**2},
                    "disagreement": math.nan if missed else disagreement,
                    "entropy": math.nan if missed else disagreement / 2,
                    "confidence": math.nan if missed else float(generator.uniform(0.5, 1)),
                }
            )
    return pandas.DataFrame(rows)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """What is learned from these cases."""
    return Calibration(
        format=FORMAT,
        coverage=0.9,
        views="networks",
        networks=5,
        identities=("a", "b"),
        names=("liver", "tumour"),
        tile_step_size=0.5,
        tta=False,
        tile_scale=1,
        rules="Protocol generic.",
        cases=120,
        unlike=0,
        spacing=0.3,
        field_of_view=0.5,
        intensities=0.0,
        labels=calibrate_labels(scored(), ("liver", "tumour"), {}, 0.9),
    )


def signs(liver: float | None, tumour: float | None) -> dict[str, dict[str, float | None]]:
    return {
        name: {"disagreement": value, "entropy": None if value is None else value / 2}
        for name, value in (("liver", liver), ("tumour", tumour))
    }


def test_each_label_and_the_mean_are_learned(calibration: Calibration) -> None:
    liver, tumour, mean = calibration.labels
    assert (liver.label, tumour.label, mean.label) == ("liver", "tumour", "mean")
    assert calibration.overall == "mean"
    assert (liver.cases, tumour.cases, mean.cases) == (120, 60, 120)
    assert (liver.found, tumour.found) == (1.0, 0.5)
    table = scored()
    means = table.groupby("case")["dsc"].mean()
    assert mean.usual == pytest.approx(np.quantile(means, 0.1))
    assert liver.usual == pytest.approx(np.quantile(table[table["label"] == "liver"]["dsc"], 0.05))
    assert [fit.metric for fit in liver.fits] == ["dsc", "nsd"]


def test_an_expected_score_and_its_interval(calibration: Calibration) -> None:
    liver, tumour, mean = estimate(calibration, "x", signs(0.05, 0.3), NEAR, [], review_below=0.8)
    expected, low, high = liver.scores["dsc"]
    assert expected == pytest.approx(0.95, abs=0.04)
    assert low < expected < high
    assert liver.scores["nsd"][0] == pytest.approx(0.95**2, abs=0.06)
    assert tumour.scores["dsc"][0] == pytest.approx(0.7, abs=0.1)
    assert mean.scores["dsc"][0] == pytest.approx(1 - 0.175, abs=0.06)
    assert (liver.review, tumour.review) == (False, True)
    assert liver.reason == "mean DSC 0.950 between 5 networks"
    assert "expected DSC below" in tumour.reason
    (strict, *_) = estimate(calibration, "x", signs(0.05, 0.3), NEAR, [], review_below=0.99)
    assert strict.review


def test_no_number_outside_of_what_was_calibrated(calibration: Calibration) -> None:
    def reasons(
        own: dict[str, dict[str, float | None]], far: dict[str, float] = NEAR, unlike: list[str] | None = None
    ) -> list[str]:
        found = estimate(calibration, "x", own, far, unlike or [])
        return [each.reason if not each.scores else "" for each in found]

    assert reasons(signs(0.05, 0.05)) == ["", "", ""]
    assert reasons(signs(0.05, 0.05), {**NEAR, "spacing": 0.39}) == ["", "", ""]
    (reason, *others) = reasons(signs(0.05, 0.05), {**NEAR, "spacing": math.log(3)})
    assert reason == (
        "outside what was calibrated: spacing a factor of 3 from the median of training, at most 1.35 in the "
        "calibrated cases"
    )
    assert others == [reason] * 2
    assert reasons(signs(0.05, 0.05), {}) != ["", "", ""]  # what is not known is not near
    unlike = "intensities 0 to 9, training's foreground -90 to 250"
    assert reasons(signs(0.05, 0.05), NEAR, [unlike]) == [f"outside what was calibrated: {unlike}"] * 3
    seen = replace(calibration, unlike=3)  # some calibrated images were unlike, too, so that the distances decide
    assert estimate(seen, "x", signs(0.05, 0.05), NEAR, [unlike])[0].scores
    assert not estimate(seen, "x", signs(0.05, 0.05), {**NEAR, "intensities": 0.2}, [unlike])[0].scores
    liver, tumour, _ = reasons(signs(0.99, 0.05))
    assert liver.startswith("outside what was calibrated: mean DSC 0.010 between 5 networks")
    assert tumour == ""


def test_a_label_that_is_not_found(calibration: Calibration) -> None:
    liver, tumour, mean = estimate(calibration, "x", signs(None, None), NEAR, [])
    assert not any(each.scores for each in (liver, tumour, mean))
    assert (liver.review, tumour.review) == (True, False)  # every case has a liver, every second one a tumour
    assert liver.reason == "not found, but in 100 % of the calibrated cases it was"
    liver, _, mean = estimate(calibration, "x", signs(0.1, None), NEAR, [])
    assert mean.scores["dsc"][0] == pytest.approx(liver.scores["dsc"][0], abs=0.1)


def test_those_to_look_at_come_first(calibration: Calibration) -> None:
    cases = {"good": (0.02, 0.02), "fair": (0.1, 0.1), "bad": (0.3, 0.3), "lost": (0.99, 0.99)}
    found = [own for case, both in cases.items() for own in estimate(calibration, case, signs(*both), NEAR, [])]
    found += estimate(calibration, "alien", signs(0.02, 0.02), NEAR, ["spacing 9 mm"])
    found += estimate(calibration, "strange", signs(0.4, 0.4), NEAR, ["spacing 9 mm"])
    found += estimate(calibration, "zero", signs(None, None), NEAR, [])
    assert worst_first(found, "mean") == ["zero", "lost", "strange", "alien", "bad", "fair", "good"]


def test_the_table(calibration: Calibration, tmp_path: Path) -> None:
    found = estimate(calibration, "=1+1", signs(0.05, None), NEAR, [])
    write_table(tmp_path / "quality.csv", quality_table(found))
    read = read_table(tmp_path / "quality.csv", ("case", "label", "reason"))
    assert list(read.columns) == [
        *("case", "label", "expected_dsc", "dsc_low", "dsc_high", "expected_nsd", "nsd_low", "nsd_high"),
        *("disagreement", "entropy", "review", "reason"),
    ]
    assert list(read["case"]) == ["=1+1"] * 3
    assert read["expected_dsc"][0] == pytest.approx(found[0].scores["dsc"][0])
    assert math.isnan(read["expected_dsc"][1])
    assert read["review"].tolist() == [0, 0, 0]


def test_other_cases_are_estimated(calibration: Calibration) -> None:
    rest = out_of_sample(scored(), calibration.names, {}, 0.9)
    mean = rest[rest["label"] == "mean"]
    assert sorted(mean["case"]) == [f"case{number:03d}" for number in range(120)]
    inside = (mean["low"] <= mean["dsc"]) & (mean["dsc"] <= mean["high"])
    assert 0.8 <= inside.mean() <= 1
    few = out_of_sample(scored(8), calibration.names, {}, 0.9)
    assert few.empty
    assert {"expected", "low", "high", "beyond"} <= set(few.columns)


def test_one_label_has_no_mean() -> None:
    table = scored()
    (liver,) = calibrate_labels(table[table["label"] == "liver"], ("liver",), {}, 0.9)
    assert liver.label == "liver"


def test_a_calibration_comes_back(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    calibration.write(path, {"checked": {"coverage": 0.91}})
    assert Calibration.read(path) == calibration


DAMAGE: list[tuple[str, Any]] = [
    ("format", 2),
    ("coverage", 1.5),
    ("views", "cows"),
    ("tta", "yes"),
    ("names", [1, 2]),
    ("labels", "none"),
    ("labels", [{"label": "liver"}]),
    ("spacing", -1),
]


@pytest.mark.parametrize(("name", "value"), DAMAGE)
def test_a_damaged_calibration_is_refused(calibration: Calibration, tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "quality.json"
    calibration.write(path, {})
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, name: value}))
    with pytest.raises(UserError, match=rf"quality\.json: .*{name}.*umamba calibrate"):
        Calibration.read(path)


def test_a_damaged_curve_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    first, *others = calibration.labels
    dsc, nsd = first.fits
    for wrong in (replace(dsc, weights=(1.0,)), replace(dsc, metric="f1")):
        broken = replace(calibration, labels=(replace(first, fits=(wrong, nsd)), *others))
        broken.write(tmp_path / "quality.json", {})
        with pytest.raises(UserError, match="of liver is damaged"):
            Calibration.read(tmp_path / "quality.json")
    (tmp_path / "quality.json").write_text("[]")
    with pytest.raises(UserError, match="umamba calibrate wrote"):
        Calibration.read(tmp_path / "quality.json")
