"""The published numbers against the paper's text, against arithmetic, and against each other."""

import csv
import re
from collections import defaultdict
from pathlib import Path

import pytest

METHODS = ("nnU-Net", "SegResNet", "UNETR", "SwinUNETR", "U-Mamba_Bot", "U-Mamba_Enc")
KEYS = dict(zip(METHODS, ("unet", "segresnet", "unetr", "swinunetr", "umamba_bot", "umamba_enc"), strict=True))
ORGANS = {"table5_organs_ct": "flare", "table6_organs_mr": "amos", "table7_organs_mr_2d": "amos2d"}
# Values that the paper prints differently in two tables: (dataset, method, metric) -> summary, organ-wise.
CONTRADICTIONS = {("flare", "segresnet", "dsc"): (0.7927, 0.7926), ("flare", "segresnet", "nsd"): (0.8257, 0.8258)}


def published(project_dir: Path, study: str) -> list[dict[str, str]]:
    """Return the rows of a study's published.csv."""
    with (project_dir / "experiments" / study / "published.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def organ_columns(project_dir: Path, study: str) -> dict[tuple[str, str], dict[str, float]]:
    """Return {(method, metric): {organ or average: value}}."""
    columns: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in published(project_dir, study):
        columns[row["method"], row["metric"]][row["label"]] = float(row["mean"])
    return columns


@pytest.mark.parametrize("study", ORGANS)
def test_averages_are_the_means_of_the_organs(project_dir: Path, study: str) -> None:
    columns = organ_columns(project_dir, study)
    assert len(columns) == 12
    for key, values in columns.items():
        average = values.pop("average")
        assert len(values) == 13, key
        # Both are rounded to four decimals, so that they may differ by one unit of the last.
        assert sum(values.values()) / 13 == pytest.approx(average, abs=1.0001e-4), key


def test_summaries_equal_the_organ_tables_but_for_what_is_listed(project_dir: Path) -> None:
    summaries = {
        (row["dataset"], row["method"], row["metric"]): float(row["mean"])
        for study in ("table3_organs_3d", "table4_2d")
        for row in published(project_dir, study)
    }
    found = {}
    for study, dataset in ORGANS.items():
        for (method, metric), values in organ_columns(project_dir, study).items():
            pair = (summaries[dataset, method, metric], values["average"])
            if pair[0] != pair[1]:
                found[dataset, method, metric] = pair
    assert found == CONTRADICTIONS
    readme = (project_dir / "experiments" / "README.md").read_text()
    for pair in found.values():
        assert all(f"{value:.4f}" in readme for value in pair)


def test_the_second_best_on_cells_is_not_the_one_marked(project_dir: Path) -> None:
    cells = {row["method"]: float(row["mean"]) for row in published(project_dir, "table4_2d") if row["metric"] == "f1"}
    assert sorted(cells, key=lambda method: -cells[method])[:3] == ["umamba_enc", "segresnet", "umamba_bot"]


def test_the_printed_pooling_of_ct_does_not_give_its_stages(project_dir: Path) -> None:
    for row in published(project_dir, "table2_plans"):
        pooling = [int(number) for number in row["pooling_per_axis"].split("x")]
        assert max(pooling) + 1 == int(row["stages"]), row["dataset"]
        patch = [int(number) for number in row["patch_size"].split("x")]
        # An axis is halved while its half stays at four voxels or more.
        rule = [next(n for n in range(12) if size / 2 ** (n + 1) < 4) for size in patch]
        if row["dataset"] == "flare":
            assert pooling == [3, 3, 5]
            assert min(rule[1:]) >= 5
        else:
            assert all(printed <= most for printed, most in zip(pooling, rule, strict=True))


def lines_of_table(text: str, number: int) -> list[str]:
    """Return the body of a table of the paper's text, markup taken off."""
    body = text.split(f"**Table {number}.**")[1]
    rows = re.search(r"\n((?:[^\n]*\t[^\n]*\n?)+)", body)
    assert rows is not None
    return re.sub(r"</?b>", "", rows[1]).splitlines()


def test_tables_three_and_four_equal_the_papers(project_dir: Path, shared_dir: Path) -> None:
    text = (shared_dir / "paper" / "u-mamba.txt").read_text()
    for study, number, datasets in (
        ("table3_organs_3d", 3, ("flare", "amos")),
        ("table4_2d", 4, ("amos2d", "endovis", "cell")),
    ):
        ours = defaultdict(list)
        for dataset in datasets:
            for row in published(project_dir, study):
                if row["dataset"] == dataset:
                    ours[row["method"]].append(f"{row['mean']}±{row['sd']}")
        theirs = {KEYS[line.split("\t")[0]]: line.split("\t")[1:] for line in lines_of_table(text, number)[2:]}
        assert ours == theirs


@pytest.mark.parametrize(("study", "number"), [(study, 5 + index) for index, study in enumerate(ORGANS)])
def test_organ_tables_equal_the_papers(project_dir: Path, shared_dir: Path, study: str, number: int) -> None:
    body = lines_of_table((shared_dir / "paper" / "u-mamba.txt").read_text(), number)[2:]
    columns = organ_columns(project_dir, study)
    ours = [
        [label, *(columns[method, metric][label] for method in KEYS.values() for metric in ("dsc", "nsd"))]
        for label in next(iter(columns.values()))
    ]
    theirs = [[line.split("\t")[0], *map(float, line.split("\t")[1:])] for line in body]
    assert [str(row[0]).casefold() for row in ours] == [str(row[0]).casefold() for row in theirs]
    assert [row[1:] for row in ours] == [row[1:] for row in theirs]


def test_plans_equal_table_two(project_dir: Path, shared_dir: Path) -> None:
    body = lines_of_table((shared_dir / "paper" / "u-mamba.txt").read_text(), 2)[1:]
    theirs = [[re.sub(r"[() ]", "", cell).replace(",", "x") for cell in line.split("\t")[1:]] for line in body]
    ours = [list(row.values())[2:] for row in published(project_dir, "table2_plans")]
    assert ours == theirs
