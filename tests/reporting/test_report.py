"""A report against the files it was made from: every number of the page is parsed and compared with the CSVs."""

import csv
import json
import math
import re
import statistics
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from umamba.io.tabular import read_table
from umamba.records import RunFolder
from umamba.reporting import gather, numbers, write_report
from umamba.reporting.compare import claims_of, suitability_of
from umamba.sweeps import PlannedRun

ReadPage = Callable[[str], tuple[dict[tuple[str, ...], str], set[str], list[str]]]
Browser = Callable[..., str]
METHODS = ("unet", "umamba_bot", "umamba_enc", "unetr")
CASES = 8
PUBLISHED = """dataset,method,label,metric,mean,sd
toy,unet,average,dsc,0.7000,0.1000
toy,unetr,average,dsc,0.5000,0.2000
toy,unet,right kidney,dsc,0.6500,
"""


def scores(method: str, seed: int) -> dict[tuple[str, str], tuple[float, float | None]]:
    """Return (DSC, NSD) of each case and label; one label has no score in the first case."""
    rng = np.random.default_rng([METHODS.index(method), seed])
    base = 0.6 + 0.1 * METHODS.index(method)
    made: dict[tuple[str, str], tuple[float, float | None]] = {}
    for case in range(CASES):
        for label in ("RK", "liver"):
            value = round(float(np.clip(base + 0.05 * rng.standard_normal(), 0, 1)), 4)
            made[f"case_{case}", label] = (value, None if (case, label) == (0, "RK") else round(value * 0.9, 4))
    return made


def write_run(folder: Path, method: str, seed: int) -> None:
    """Write the files of a finished run."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"state": "finished", "max_epochs": 2, "parameters": 1234567}))
    (folder / "metrics.csv").write_text("epoch,train/loss,time/iteration_s\n0,1.0,2.0\n1,nan,4.0\n")
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "label", "dsc", "nsd"))
        for (case, label), (dsc, nsd) in scores(method, seed).items():
            writer.writerow((case, label, dsc, "" if nsd is None else nsd))


@pytest.fixture
def study(tmp_path: Path) -> tuple[list[PlannedRun], Path]:
    """Three methods with two seeds each that are done, and one that never ran."""
    runs = []
    for method in METHODS:
        for seed in (0, 1):
            folder = tmp_path / "runs" / method / f"seed_{seed}"
            runs.append(
                PlannedRun((f"experiment={method}",), RunFolder(folder), "toy", method, "all", seed, 2, 100, "x")
            )
            if method != "unetr":
                write_run(folder, method, seed)
    (tmp_path / "published.csv").write_text(PUBLISHED)
    return runs, tmp_path / "published.csv"


def test_every_number_of_the_page_equals_the_csvs(
    study: tuple[list[PlannedRun], Path], tmp_path: Path, read_page: ReadPage
) -> None:
    runs, published = study
    page = write_report(gather("toy", "Which?", runs, published), tmp_path / "report")
    shown, _, _ = read_page(page.read_text())
    with (tmp_path / "report" / "numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(shown)
    for row in rows:
        text = shown[row["dataset"], row["method"], row["label"], row["metric"]]
        if not row["mean"]:
            assert text.startswith("missing")
            assert row["runs_done"] == "0"
        else:
            mean, sd = re.findall(r"\d\.\d{4}", text)[:2]
            assert (mean, sd) == (f"{float(row['mean']):.4f}", f"{float(row['sd']):.4f}")
        if row["published_mean"]:
            assert f"paper {float(row['published_mean']):.4f}" in text
        if row["difference"]:
            assert f"{float(row['difference']):+.4f}" in text
    assert {row["method"] for row in rows if not row["mean"]} == {"unetr"}


def test_the_means_are_those_of_the_scores_files(study: tuple[list[PlannedRun], Path]) -> None:
    runs, published = study
    found = {(n.method, n.label, n.metric): n for n in numbers(gather("toy", "Which?", runs, published))}
    for method in METHODS[:3]:
        both = [scores(method, seed) for seed in (0, 1)]
        kidney = [value[0] for one in both for (_, label), value in one.items() if label == "RK"]
        number = found[method, "right kidney", "dsc"]
        assert number.mean == pytest.approx(statistics.mean(kidney))
        assert number.sd == pytest.approx(statistics.stdev(kidney))
        cases = [
            statistics.mean(v for v in (one[f"case_{case}", label][1] for label in ("RK", "liver")) if v is not None)
            for one in both
            for case in range(CASES)
        ]
        average = found[method, "average", "nsd"]
        assert average.mean == pytest.approx(statistics.mean(cases))
        assert average.cases == CASES
        by_seed = [statistics.mean(cases[:CASES]), statistics.mean(cases[CASES:])]
        assert average.seed_means == pytest.approx(tuple(by_seed))
    assert found["unet", "average", "dsc"].difference == pytest.approx(found["unet", "average", "dsc"].mean - 0.7)
    assert math.isnan(found["unetr", "average", "dsc"].mean)
    assert found["unetr", "average", "dsc"].published is not None


def test_every_pair_of_methods_is_compared_in_each_row(study: tuple[list[PlannedRun], Path]) -> None:
    runs, published = study
    results = gather("toy", "Which?", runs, published)
    claims = claims_of(results)
    assert len(claims) == 3 * 2 * 3  # pairs, metrics, two labels and the average
    for claim in claims:
        assert (claim.dataset, claim.seeds) == ("toy", (2, 2))
        lacks = (claim.label, claim.metric) == ("right kidney", "nsd")  # in every run
        assert (claim.n_cases, claim.left_out) == (CASES - 1 if lacks else CASES, 0)
    (liver,) = (c for c in claims if (c.a, c.b, c.label, c.metric) == ("unet", "umamba_enc", "liver", "dsc"))
    means = {
        method: np.mean(
            [[scores(method, seed)[f"case_{case}", "liver"][0] for case in range(CASES)] for seed in (0, 1)], axis=0
        )
        for method in METHODS
    }
    assert liver.mean_difference == pytest.approx(np.mean(means["unet"] - means["umamba_enc"]))
    assert liver.correlation == pytest.approx(np.corrcoef(means["unet"], means["umamba_enc"])[0, 1])
    # Holm: the smallest of the family's p values (two labels, three pairs) is multiplied by their number.
    family = [c for c in claims if c.metric == "dsc" and c.label != "average"]
    smallest = min(family, key=lambda claim: claim.p_false)
    assert smallest.p_holm == pytest.approx(min(1.0, 6 * 2 * smallest.p_false))


def test_one_training_of_each_method_shows_nothing_of_the_methods(
    study: tuple[list[PlannedRun], Path], tmp_path: Path
) -> None:
    runs, published = study
    results = gather("toy", "Which?", [run for run in runs if run.seed == 0], published)
    (claim,) = (
        c for c in claims_of(results) if (c.a, c.b, c.label, c.metric) == ("unet", "umamba_enc", "liver", "dsc")
    )
    values = [[scores(m, 0)[f"case_{case}", "liver"][0] for case in range(CASES)] for m in ("unet", "umamba_enc")]
    assert claim.p_false == pytest.approx(ttest_rel(*values).pvalue / 2)
    assert claim.p_holm < 0.05
    assert not claim.survives
    assert "one training does not show" in claim.sentence
    write_report(results, tmp_path / "report")
    assert "**" not in (tmp_path / "report" / "tables.md").read_text()


def test_a_bold_number_is_shown_to_be_better_than_all_others(
    study: tuple[list[PlannedRun], Path], tmp_path: Path
) -> None:
    runs, published = study
    results = gather("toy", "Which?", runs, published)
    page = write_report(results, tmp_path / "report")
    claims = claims_of(results)
    found = numbers(results, claims)
    bold = [n for n in found if n.best]
    assert bold, "0.8 and 0.7 differ by more than the noise of 0.05 in eight cases"
    for number in found:
        row = [c for c in claims if (c.label, c.metric) == (number.label, number.metric)]
        against = [c for c in row if number.method in (c.a, c.b)]
        assert number.best == (bool(against) and all(c.survives and c.better == number.method for c in against))
        star = next((c.survives for c in against if "unet" in (c.a, c.b) and number.method != "unet"), False)
        assert number.significant == star
    markdown, latex = ((page.parent / name).read_text() for name in ("tables.md", "tables.tex"))
    assert markdown.count("**") == 2 * latex.count(r"\textbf") == 2 * len(bold)
    assert page.read_text().count('class="best"') == len(bold)
    table = read_table(page.parent / "claims.csv", ("dataset", "label", "metric", "first", "second", "sentence"))
    assert table["p_false"].tolist() == pytest.approx([c.p_false for c in claims])
    assert table["sentence"].tolist() == [c.sentence for c in claims]


def test_the_suitability_of_a_dataset_by_hand(study: tuple[list[PlannedRun], Path], tmp_path: Path) -> None:
    runs, published = study
    results = gather("toy", "Which?", runs, published)
    means = {n.method: n.seed_means for n in numbers(results) if (n.label, n.metric) == ("average", "dsc")}
    within = math.sqrt(statistics.mean(statistics.variance(means[method]) for method in METHODS[:3]))
    between = statistics.stdev(statistics.mean(means[method]) for method in METHODS[:3])
    assert suitability_of(results, "toy", "dsc") == pytest.approx(between / within)
    assert math.isnan(suitability_of(gather("toy", "?", runs[::2], published), "toy", "dsc"))
    page = write_report(results, tmp_path / "report")
    for path in (page, page.parent / "tables.md"):
        text = unescape(path.read_text()).replace("\\", "")
        assert f"toy, DSC: the methods' means spread {between / within:.1f} times" in text


def test_the_margin_decides_what_is_called_equivalent(study: tuple[list[PlannedRun], Path], tmp_path: Path) -> None:
    runs, published = study
    results = gather("toy", "Which?", runs, published)
    for margin in (0.002, 0.9):
        page = write_report(results, tmp_path / f"{margin}", margin)
        table = read_table(page.parent / "claims.csv", ("dataset", "label", "metric", "first", "second", "sentence"))
        assert set(table["margin"]) == {margin}
        said = table["sentence"].str.contains("is within the margin")
        assert said.tolist() == (table["equivalent_within"] < margin).tolist()
        assert said.any() == (margin == 0.9)


def test_the_page_needs_no_network_and_its_links_lead_somewhere(
    study: tuple[list[PlannedRun], Path], tmp_path: Path, read_page: ReadPage
) -> None:
    runs, published = study
    page = write_report(gather("toy", "Which?", runs, published), tmp_path / "report")
    text = page.read_text()
    _, anchors, links = read_page(text)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert sum(link.startswith("data:") for link in links) == 1  # the only curve with values
    assert 'name="viewport"' in text
    assert "1,234,567" in text
    assert "6 of 8 runs are done" in text
    assert "10 min" in text  # 100 batches of 2 s and of 4 s: ten minutes a run
    cost = read_table(page.parent / "cost.csv", ("dataset", "method", "fold"))
    assert cost["method"].tolist() == [method for method in METHODS[:3] for _ in (0, 1)]
    assert set(cost["parameters"]) == {1234567}
    assert cost["hours"].tolist() == pytest.approx([600 / 3600] * 6)


def test_a_label_of_no_case_is_not_missing_and_overrides_are_named(
    study: tuple[list[PlannedRun], Path], tmp_path: Path, read_page: ReadPage
) -> None:
    runs, published = study
    rows = ("toy,unet,spleen,dsc,0.9000,", "toy,unetr,spleen,dsc,0.9000,", "toy,unet,average,f1,0.9000,")
    published.write_text("\n".join([PUBLISHED, *rows]))
    results = gather("toy", "Which?", runs, published, ["+smoke=true"])
    page = write_report(results, tmp_path / "report")
    shown, _, _ = read_page(page.read_text())
    cells = {method: shown["toy", method, "spleen", "dsc"].split(" paper")[0].strip() for method in METHODS}
    assert cells == {"unet": "no case", "umamba_bot": "no case", "umamba_enc": "no case", "unetr": "missing"}
    assert shown["toy", "unet", "average", "f1"].startswith("missing")  # it was not scored by F1
    for name in ("index.html", "tables.md", "tables.tex"):
        assert "Made with +smoke=true: small runs on phantoms" in (tmp_path / "report" / name).read_text()


def test_a_browser_shows_the_same_numbers_without_a_network(
    study: tuple[list[PlannedRun], Path], tmp_path: Path, read_page: ReadPage, browser: Browser
) -> None:
    def browsed(page: Path) -> tuple[str, int]:
        """Return a page as a browser has it, and how many addresses the page itself asked for."""
        log = tmp_path / f"{page.stem}.json"
        shown = browser(page.as_uri(), "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}")
        return shown, log.read_text().count('"initiator":"null"')  # a file's; the browser's own are "not an origin"

    runs, published = study
    page = write_report(gather("toy", "Which?", runs, published), tmp_path / "report")
    shown, asked = browsed(page)
    assert read_page(shown)[0] == read_page(page.read_text())[0]
    assert asked == 0
    needy = tmp_path / "needy.html"
    needy.write_text('<img src="http://localhost:9/x.png">')
    assert browsed(needy)[1] > 0


def test_tables_in_markdown_and_latex_hold_the_same_numbers(
    study: tuple[list[PlannedRun], Path], tmp_path: Path
) -> None:
    runs, published = study
    write_report(gather("toy", "Which?", runs, published), tmp_path / "report")
    markdown, latex = ((tmp_path / "report" / name).read_text() for name in ("tables.md", "tables.tex"))
    for number in numbers(gather("toy", "Which?", runs, published)):
        shown = "missing" if math.isnan(number.mean) else f"{number.mean:.4f}±{number.sd:.4f}"
        assert shown in markdown
        assert shown.replace("±", r"$\pm$") in latex
    assert "0.7000±0.1000" in markdown
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3


@pytest.mark.parametrize("with_reference", [True, False])
def test_the_star_is_explained_only_beside_the_reference(
    study: tuple[list[PlannedRun], Path], tmp_path: Path, with_reference: bool
) -> None:
    runs = [run for run in study[0] if with_reference or run.method != "unet"]
    page = write_report(gather("toy", "Which?", runs, None), tmp_path / "report")
    for path in (page, page.parent / "tables.md", page.parent / "tables.tex"):
        assert "Bold: shown to be better" in path.read_text()
        assert ("shown to differ from nnU-Net" in path.read_text()) == with_reference


def test_nothing_measured_is_all_missing(tmp_path: Path) -> None:
    (tmp_path / "published.csv").write_text(PUBLISHED)
    runs = [PlannedRun((), RunFolder(tmp_path / method), "toy", method, "all", 0, 2, 100, "x") for method in METHODS]
    page = write_report(gather("toy", "Which?", runs, tmp_path / "published.csv"), tmp_path / "report")
    assert page.read_text().count(">missing<") == 8  # two labels of four methods
