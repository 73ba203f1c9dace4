"""The page of a report: its names, colours, plots and script, and every number of it against the CSVs beside it."""

import base64
import csv
import hashlib
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from umamba.records import RunFolder
from umamba.reporting import gather, write_report
from umamba.reporting.compare import claims_of, numbers
from umamba.reporting.names import DATASETS, METHODS, dataset_name, method_name
from umamba.reporting.results import Results
from umamba.settings.architecture import ARCHITECTURES
from umamba.sweeps import PlannedRun

ORGANS = ("Liver", "RAG")  # no reference has RAG
CASES = tuple(f"case_{number}" for number in range(7))


def value(method: str, seed: int, case: int, label: str) -> float:
    """Return the DSC of a case; UNETR finds a RAG where there is none."""
    if label == "RAG":
        return 0.0 if method == "unetr" else 1.0
    return round(0.7 + 0.1 * (method == "unet") + 0.01 * seed + 0.02 * math.sin(case), 4)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two methods with two trainings each on abdomen CT."""
    runs = []
    for method in ("unet", "unetr"):
        for seed in (0, 1):
            folder = RunFolder(tmp_path / method / str(seed))
            folder.path.mkdir(parents=True)
            scoring = {"protocol": "abdomen", "tolerance_mm": 2.0}
            folder.status_file.write_text(json.dumps({"state": "finished", "max_epochs": 2, "scoring": scoring}))
            folder.metrics.write_text("epoch,train/loss,time/iteration_s\n0,1.0,2.0\n1,0.5,4.0\n")
            with folder.scores.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("case", "label", "dsc", "nsd"))
                for number, case in enumerate(CASES):
                    for label in ORGANS:
                        dsc = value(method, seed, number, label)
                        writer.writerow((case, label, dsc, dsc if label == "RAG" else round(dsc * 0.9, 4)))
            runs.append(PlannedRun((), folder, "flare", method, "all", seed, 2, 100, "x"))
    return gather("table3", "Which is better?", runs, None)


class Page(HTMLParser):
    """Collects rows of cells with the attributes of their row and group, the points of the plots, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.group: dict[str, str | None] = {}
        self.table: dict[str, str | None] = {}
        self.rows: list[tuple[dict[str, str | None], dict[str, str | None], list[str]]] = []
        self.points: list[tuple[str, str, str]] = []  # link, words, position
        self.ticks: list[tuple[float, float]] = []  # position in percent, value
        self.scripts: list[str] = []
        self.open: str | None = None
        self.link: dict[str, str | None] = {}
        self.tick: dict[str, str | None] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a row, a cell, a point or a script."""
        found = dict(attrs)
        if tag == "table":
            self.table = found
        elif tag == "tbody":
            self.group = found
        elif tag == "tr":
            self.rows.append((self.group | self.table, found, []))
        elif tag in ("td", "th"):
            self.rows[-1][2].append("")
        elif tag == "a":
            self.link = found
        elif tag == "circle":
            self.points.append((str(self.link["href"]), str(self.link["aria-label"]), str(found["cx"])))
        elif tag == "text":
            self.tick = found
        elif tag == "script":
            self.scripts.append("")
        if tag in ("td", "th", "script", "text"):
            self.open = tag

    def handle_data(self, data: str) -> None:
        """Add text to the cell, the tick or the script that is open."""
        if self.open == "script":
            self.scripts[-1] += data
        elif self.open == "text" and self.tick.get("class") == "tick":
            self.ticks.append((float(str(self.tick["x"]).rstrip("%")), float(data)))
        elif self.open in ("td", "th"):
            self.rows[-1][2][-1] += data

    def handle_endtag(self, tag: str) -> None:
        """Close a cell, a tick or a script."""
        if tag == self.open:
            self.open = None


def written(results: Results, folder: Path) -> tuple[Page, str]:
    """Write the report and return its page, read and as text."""
    text = write_report(results, folder).read_text()
    return Page(text), text


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, read by the standard library."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_experiment_and_network_has_a_name_for_readers(project_dir: Path) -> None:
    experiments = {path.stem.split("_")[0] for path in (project_dir / "configs" / "experiment").glob("*.yaml")}
    assert experiments <= set(DATASETS)
    assert {name for name in ARCHITECTURES if name} == set(METHODS)
    assert [dataset_name("flare"), method_name("umamba_bot"), method_name("unet")] == [
        "Abdomen CT",
        "U-Mamba_Bot",
        "nnU-Net",
    ]


def test_names_date_and_tolerances_stand_in_the_page_and_the_tables(results: Results, tmp_path: Path) -> None:
    page, text = written(results, tmp_path)
    assert re.search(r'report of <time datetime="\d{4}-\d\d-\d\d">', text)
    assert "Abdomen CT" in text
    heads = [cells for _, _, cells in page.rows if "UNETR" in cells]
    assert heads
    (liver, *_) = [cells for _, row, cells in page.rows if cells[0].startswith("liver5 mm")]
    assert liver[0] == "liver5 mm"  # the tolerance that the paper gives the liver
    assert "NSD at 2 to 7 mm by label" in text
    for name in ("tables.md", "tables.tex"):
        table_text = (tmp_path / name).read_text().replace("\\", "")
        assert "Abdomen CT, test images" in table_text
        assert "nnU-Net" in table_text
        assert "unet" not in table_text
    assert {row["method"] for row in table(tmp_path / "numbers.csv")} == {"unet", "unetr"}  # keys stay as they were


def test_nothing_is_bold_for_an_organ_that_no_reference_has(results: Results, tmp_path: Path) -> None:
    assert results.absent("flare") == {"RAG"}
    found = {(n.label, n.metric, n.method): n for n in numbers(results)}
    claims = {(claim.label, claim.metric): claim for claim in claims_of(results)}
    assert claims["RAG", "dsc"].survives  # all 1 against all 0
    assert not found["RAG", "dsc", "unet"].best
    assert not found["RAG", "nsd", "unetr"].significant
    assert found["liver", "dsc", "unet"].best
    _, text = written(results, tmp_path)
    assert text.count("in no reference</small>") == 2  # DSC and NSD
    bold = re.findall(r'data-label="([^"]+)" data-metric="[^"]+"><a class="best"', text)
    assert set(bold) == {"liver", "average"}


def test_the_comparisons_of_the_page_equal_claims_csv(results: Results, tmp_path: Path) -> None:
    page, text = written(results, tmp_path)
    expected = [row for row in table(tmp_path / "claims.csv") if row["label"] == "average"]
    shown = [(row, cells) for outer, row, cells in page.rows if row.get("data-first")]
    assert len(expected) == len(shown) == 2
    for row, (attributes, cells) in zip(expected, shown, strict=True):
        assert (row["first"], row["second"]) == (attributes["data-first"], attributes["data-second"])
        assert cells[0] == f"nnU-Net and UNETR, {row['metric'].upper()}"
        n = {name: float(text) for name, text in row.items() if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text)}
        assert cells[1:] == [
            row["cases"],
            f"{row['trainings_first']} and {row['trainings_second']}",
            f"{n['difference']:+.4f}",
            f"{n['ci_low']:+.4f} to {n['ci_high']:+.4f}",
            f"{n['bootstrap_low']:+.4f} to {n['bootstrap_high']:+.4f}",
            f"{n['correlation']:.2f}",
            f"{n['p_false']:.3g}",
            f"{n['p_holm']:.3g}",
            f"{n['equivalent_within']:.4f}",
            f"{n['detectable']:.4f}",
        ]
        sentence = row["sentence"].replace("unetr", "UNETR").replace("unet", "nnU-Net")
        assert sentence in text


def test_the_rows_of_the_cases_equal_the_scores(results: Results, tmp_path: Path) -> None:
    page, _ = written(results, tmp_path)
    found = {}
    labels = ("liver", "RAG")
    for group, _, cells in page.rows:
        if "data-case" in group and len(cells) == 6 and cells[0] == group["data-case"]:
            for label, cell in zip(labels, cells[4:], strict=True):
                found[cells[0], cells[1], cells[2], cells[3], label, group["data-metric"]] = cell
    expected = {
        (row["case"], method_name(row["method"]), row["fold"], row["seed"], row["label"], row["metric"]): (
            f"{float(row['value']):.4f}"
        )
        for row in table(tmp_path / "scores.csv")
    }
    assert found == expected
    assert len(found) == 2 * 2 * len(CASES) * 2 * 2
    first = expected["case_3", "UNETR", "all", "1", "liver", "dsc"]
    assert first == f"{value('unetr', 1, 3, 'Liver'):.4f}"


def test_each_point_of_a_plot_lies_at_its_score_and_leads_to_its_case(results: Results, tmp_path: Path) -> None:
    page, text = written(results, tmp_path)
    assert len(page.points) == 2 * 2 * 2 * len(CASES)  # scores, methods, seeds
    ids = dict(re.findall(r'data-case="([^"]+)" id="([^"]+)"', text))
    assert set(ids) == set(CASES)
    second = next(place for place, tick in enumerate(page.ticks) if place and tick[0] == 0)
    ends = page.ticks[:second]  # of the first plot
    assert (ends[0][0], ends[-1][0]) == (0.0, 100.0)
    for link, words, position in page.points[: len(page.points) // 2]:
        case, method, rest = words.split(", ", 2)
        seed, score = re.findall(r"seed (\d+): ([\d.]+)", rest)[0]
        name = {"nnU-Net": "unet", "UNETR": "unetr"}[method]
        mean = sum(value(name, int(seed), CASES.index(case), label) for label in ORGANS) / 2
        assert float(score) == pytest.approx(mean, abs=5e-5)
        expected = 100 * (mean - ends[0][1]) / (ends[-1][1] - ends[0][1])
        assert float(position.rstrip("%")) == pytest.approx(expected, abs=0.01)
        assert link == f"#{ids[case]}"


def test_the_runs_of_a_method_have_lines_that_differ_in_the_key_of_the_curves(tmp_path: Path) -> None:
    runs = []
    for seed in range(4):
        folder = RunFolder(tmp_path / str(seed))
        folder.path.mkdir()
        folder.metrics.write_text("epoch,train/loss\n0,1.0\n1,0.5\n")
        runs.append(PlannedRun((), folder, "flare", "unet", "all", seed, 2, 100, "x"))
    _, text = written(gather("mine", "Which?", runs, None), tmp_path / "report")
    assert len(re.findall(r'stroke-dasharray="[^"]+"/></svg>nnU-Net, fold all, seed \d', text)) == 4
    assert len(set(re.findall(r'stroke-dasharray="([^"]+)"', text))) == 4


def test_the_only_script_is_the_one_that_the_policy_allows(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    bad = "</script><script>alert(1)</script>"
    folder.status_file.write_text(json.dumps({"state": "finished", "max_epochs": 1}))
    folder.scores.write_text(f'case,label,dsc\n"{bad}","{bad}",0.5\nb,a,0.25\n')
    folder.metrics.write_text("epoch,train/loss\n0,1.0\n")
    runs = [PlannedRun((), folder, bad, bad, "all", seed, 1, 1, "x") for seed in (0, 1)]
    page, text = written(gather(bad, bad, runs, None), tmp_path / "report")
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "'unsafe-inline'" not in text.split("script-src")[1].split('"')[0]


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours #rrggbb as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colours_of(block: str) -> dict[str, str]:
    """Return the variables of a block of the style sheet."""
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))


def test_every_text_has_enough_contrast_in_light_and_dark(project_dir: Path) -> None:
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # a known value
    style = (project_dir / "src" / "umamba" / "reporting" / "page.css").read_text()
    light, dark = (colours_of(block) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL))
    rules = re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgb|(?<!-)\bopacity", rules)  # all colours are variables, no text is faded
    texts = set(re.findall(r"[{;] (?:color): var\(--(\w+)\)", rules))
    texts |= set(re.findall(r"text[^{}]*\{[^}]*fill: var\(--(\w+)\)", rules))
    grounds = set(re.findall(r"background: var\(--(\w+)\)", rules))
    shapes = set(re.findall(r"(?:fill|stroke): var\(--(\w+)\)", rules)) - {"line"}  # grid lines are decoration
    assert texts == {"text", "quiet", "link", "good", "bad"}
    assert grounds == {"page", "panel"}
    for scheme in (light, light | dark):
        for ground in grounds:
            worst = min(texts, key=lambda name: contrast(scheme[name], scheme[ground]))
            assert contrast(scheme[worst], scheme[ground]) >= 4.5, (worst, ground)
            assert min(contrast(scheme[name], scheme[ground]) for name in shapes) >= 3
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)rem", style)]
    assert min(sizes) * 16 >= 13


def test_a_page_without_measured_runs_has_no_plot(tmp_path: Path) -> None:
    run = PlannedRun((), RunFolder(tmp_path / "none"), "flare", "unet", "all", 0, 2, 100, "x")
    page, text = written(gather("mine", "Which?", [run], None), tmp_path / "report")
    assert not page.points
    assert "<svg" not in text


def test_the_panel_of_a_case_holds_its_scores(results: Results, tmp_path: Path, browser: Callable[..., str]) -> None:
    path = write_report(results, tmp_path / "report")
    link = dict(re.findall(r'data-case="([^"]+)" id="([^"]+)"', path.read_text()))["case_3"]
    shown = browser(f"{path.as_uri()}#{link}")
    panel = shown.split('class="case"')[1].split("<details")[0]
    assert "hidden" not in panel.split(">")[0]
    assert "<h4>case_3</h4>" in panel
    cells = re.findall(r"<td>(\d\.\d{4})</td>", panel)
    expected = [value(m, s, 3, label) for m in ("unet", "unetr") for s in (0, 1) for label in ORGANS]
    assert cells[: len(expected)] == [f"{score:.4f}" for score in expected]
    chosen = re.findall(r'class="point chosen"[^>]*aria-label="([^,]+),', shown)
    assert chosen == ["case_3"] * 8  # two scores, two methods, two seeds
