"""A report of names that mean something to its formats, and of labels and cases that are spelt in several ways."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from umamba.io.tabular import read_table
from umamba.records import RunFolder
from umamba.records.tables import write_scores
from umamba.reporting import gather, write_report
from umamba.reporting.results import label_name, label_names
from umamba.sweeps import PlannedRun

ReadPage = Callable[[str], tuple[dict[tuple[str, ...], str], set[str], list[str]]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("RK", "right kidney"), ("Gall_bladder", "gallbladder"), ("Postcava", "IVC"), ("tumour", "tumour")],
)
def test_labels_get_the_papers_names(name: str, expected: str) -> None:
    assert label_name(name) == expected


LABELS = ("NA", "nan", "=1+1", "a|b", "<b>", "L", "l", "average", "50%_$", "caf\u00e9")
DATASET, METHOD = '<i>&"x', "#m_1 {x}|\\input $\\frac$"


def hostile_study(tmp_path: Path) -> list[PlannedRun]:
    """Write two runs whose dataset, method, labels and cases have names that mean something to the report's formats."""
    runs: list[PlannedRun] = []
    for method, case in (("unet", "cafe\u0301"), (METHOD, "caf\u00e9")):
        folder = RunFolder(tmp_path / "runs" / f"{len(runs)}")
        folder.path.mkdir(parents=True)
        scoring = {"protocol": "generic", "tolerance_mm": 1.5}
        folder.status_file.write_text(json.dumps({"state": "finished", "max_epochs": 1, "scoring": scoring}))
        folder.metrics.write_text("epoch,train/loss\n0,1.0\n")
        rows = [(name, label, index / 10) for index, label in enumerate(LABELS) for name in ("001", "1e3", case)]
        rows = [row for row in rows if row[:2] != ("001", "L")]
        write_scores(folder.scores, pandas.DataFrame(rows, columns=["case", "label", "dsc"]))
        runs.append(PlannedRun((), folder, DATASET, method, "all", 0, 1, 1, "x"))
    return runs


def test_any_name_stands_in_every_table_as_it_is(tmp_path: Path, read_page: ReadPage) -> None:
    page = write_report(gather("<s>", "A & B?", hostile_study(tmp_path), None), tmp_path / "report")
    cells, anchors, found = read_page(page.read_text())
    shown = ["average (label)" if label == "average" else label for label in LABELS]
    for method in ("unet", METHOD):
        for index, label in enumerate(shown):
            counted = " (n=2)" if label == "L" else ""
            text = cells[DATASET, method, label, "dsc"]
            assert "".join(text.split()) == f"{index / 10:.4f}±0.0000{counted}".replace(" ", "")
        # One case lacks "L" (0.5), so its mean is over nine labels.
        expected = ((4.5 - 0.5) / 9 + 2 * 0.45) / 3
        assert cells[DATASET, method, "average", "dsc"].startswith(f"{expected:.4f}")
    links = [link for link in found if link.startswith("#")]
    assert {link[1:] for link in links} <= anchors
    assert not [link for link in links if set(link) & set(' <>&"|')]
    table = read_table(tmp_path / "report" / "numbers.csv", ("dataset", "method", "label", "metric", "split", "rules"))
    assert set(table["label"]) == {*shown, "average"}
    assert set(table["dataset"]) == {DATASET}
    assert set(table["method"]) == {"unet", METHOD}
    assert set(table["split"]) == {"test"}
    assert set(table["rules"]) == {"Protocol generic: NSD at 1.5 mm."}
    for raw in ("<i>", "<b>", "<s>"):
        assert raw not in page.read_text()
    assert "NSD at 1.5 mm" in page.read_text()


def test_a_case_has_one_spelling_in_all_runs(tmp_path: Path) -> None:
    runs = hostile_study(tmp_path)
    scores = gather("s", "", runs, None).scores
    assert scores["case"].unique().tolist() == ["001", "1e3", "cafe\u0301"]
    assert set(scores.groupby("case")["method"].nunique()) == {2}
    rows = [(name, "a", 1.0) for name in ("caf\u00e9", "cafe\u0301")]  # one run has both: two cases
    write_scores(runs[1].folder.scores, pandas.DataFrame(rows, columns=["case", "label", "dsc"]))
    assert gather("s", "", runs, None).scores["case"].nunique() == 4


def test_any_name_is_text_in_markdown_and_latex(tmp_path: Path) -> None:
    write_report(gather("<s>", "A & B?", hostile_study(tmp_path), None), tmp_path / "report")
    markdown, latex = ((tmp_path / "report" / name).read_text() for name in ("tables.md", "tables.tex"))
    rows = [re.split(r"(?<!\\)\|", line) for line in markdown.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {4, 5}  # averages: one metric; labels: two methods
    assert r"a\|b" in markdown
    assert "<b>" not in markdown
    assert "test images" in markdown
    assert r"\#m\_1 \{x\}\textbar{}\textbackslash{}input \$\textbackslash{}frac\$" in latex
    assert r"50\%\_\$" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\") and not line.startswith("%")]
    assert {line.count(" & ") for line in body} == {1, 2}


def test_labels_that_differ_are_never_pooled() -> None:
    assert label_names(["RK", "right kidney"]) == {"RK": "RK", "right kidney": "right kidney"}
    assert label_names(["L", "l", "NA"]) == {"L": "L", "l": "l", "NA": "NA"}
    assert label_names(["Tumour"], {"tumour"}) == {"Tumour": "tumour"}
    assert label_names(["average", "average (label)"]) == {
        "average": "average (label)",
        "average (label)": "average (label) (label)",
    }


def test_runs_of_different_rules_are_said_to_differ(tmp_path: Path) -> None:
    runs = hostile_study(tmp_path)
    scoring = {"protocol": "abdomen", "tolerance_mm": 2.0}
    runs[1].folder.set_status(scoring=scoring)
    rules = gather("s", "", runs, None).rules(DATASET)
    assert rules.startswith("These runs were scored by different rules: Protocol generic: NSD at 1.5 mm.")
    assert rules.endswith("Protocol abdomen: NSD at 2 to 7 mm by label.")
