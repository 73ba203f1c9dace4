"""The committed tables of the paper's claims are those of its printed numbers; each probability is SciPy's."""

import csv
import math
import re
import runpy
from pathlib import Path
from typing import Any

import pandas
import pytest
from scipy import stats

from umamba.io.tabular import read_table
from umamba.reporting.published_claims import CASES, COLUMNS, CORRELATIONS

TEXTS = ("dataset", "label", "metric", "method", "other", "sd_source")
# The tables by organ, and the table that prints the deviations of their averages.
ORGANS = {
    "table5_organs_ct": "table3_organs_3d",
    "table6_organs_mr": "table3_organs_3d",
    "table7_organs_mr_2d": "table4_2d",
}


def printed(project_dir: Path, study: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Return the rows of a published.csv by dataset, method, label and metric."""
    with (project_dir / "experiments" / study / "published.csv").open(newline="") as file:
        return {
            tuple(row[key] for key in ("dataset", "method", "label", "metric")): row for row in csv.DictReader(file)
        }


@pytest.fixture(scope="module")
def script(project_dir: Path) -> dict[str, Any]:
    """Return the names of the script that makes the files."""
    return runpy.run_path(str(project_dir / "benchmarks" / "published_claims.py"))


@pytest.mark.parametrize("study", ["table3_organs_3d", "table4_2d", *ORGANS])
def test_each_probability_is_that_of_the_printed_numbers(project_dir: Path, study: str) -> None:
    table = read_table(project_dir / "experiments" / study / "claims.csv", TEXTS)
    assert list(table.columns) == list(COLUMNS)
    own, averages = printed(project_dir, study), printed(project_dir, ORGANS.get(study, study))
    expected = set()
    for (dataset, method, label, metric), row in own.items():
        for (other_dataset, other, *rest), theirs in own.items():
            same = (other_dataset, *rest) == (dataset, label, metric)
            if same and method.startswith("umamba") and not other.startswith("umamba"):
                higher = float(row["mean"]) > float(theirs["mean"])
                if higher and not (study in ORGANS and label == "average"):
                    expected |= {(dataset, label, metric, method, other, cases) for cases in CASES[dataset]}
    assert {
        tuple(row) for row in table[["dataset", "label", "metric", "method", "other", "cases"]].to_numpy()
    } == expected
    for row in table.to_dict("records"):
        values = own[row["dataset"], row["method"], row["label"], row["metric"]]
        others = own[row["dataset"], row["other"], row["label"], row["metric"]]
        sds = [
            float(values_of["sd"] or averages[row["dataset"], name, "average", row["metric"]]["sd"])
            for values_of, name in ((values, row["method"]), (others, row["other"]))
        ]
        assert [row["sd_method"], row["sd_other"]] == sds
        assert row["sd_source"] == ("printed" if values["sd"] else "average over organs")
        difference = float(values["mean"]) - float(others["mean"])
        n = row["cases"]
        for r in CORRELATIONS:
            error = math.sqrt((sds[0] ** 2 + sds[1] ** 2 - 2 * sds[0] * sds[1] * r) / n)
            assert row[f"p_false_r{r}"] == pytest.approx(stats.t.sf(difference / error, n - 1), abs=1e-6)
        if -1 < row["r_needed"] <= 1:
            error = math.sqrt((sds[0] ** 2 + sds[1] ** 2 - 2 * sds[0] * sds[1] * row["r_needed"]) / n)
            assert stats.t.sf(difference / error, n - 1) == pytest.approx(0.05, abs=1e-3)


def test_the_files_are_those_that_the_script_makes(project_dir: Path, script: dict[str, Any], tmp_path: Path) -> None:
    script["main"](tmp_path)
    for study in script["STUDIES"]:
        committed = project_dir / "experiments" / study
        made, kept = (read_table(folder / "claims.csv", TEXTS) for folder in (tmp_path / study, committed))
        pandas.testing.assert_frame_equal(made, kept)
        text = (committed / "claims.md").read_text()
        assert (tmp_path / study / "claims.md").read_text() == text
        for line in (line for line in text.splitlines() if " over " in line and line.startswith("| ")):
            assert len(re.findall(r"\d %|< 0\.1 %", line)) == 4


def test_the_papers_claims_over_nnunet_in_plain_numbers(project_dir: Path) -> None:
    """Table 3, computed by hand: on CT no claim over nnU-Net holds at any correlation to 0.9; on MR all do at 0.9."""
    table = read_table(project_dir / "experiments" / "table3_organs_3d" / "claims.csv", TEXTS)
    over = table[table["other"] == "unet"].set_index(["dataset", "metric", "method"]).sort_index()
    assert (over.loc["flare", "p_false_r0.9"] > 0.05).all()
    assert (over.loc["amos", "p_false_r0.9"] < 0.05).all()
    assert over.loc[("flare", "dsc", "umamba_bot"), "p_false_r0.9"] == pytest.approx(0.0926, abs=1e-4)
