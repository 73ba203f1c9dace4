"""plan=paper against Table 2 of the paper as printed, with its one misprint."""

import json
from pathlib import Path
from typing import Any

import pytest

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.planning import Fingerprint, PaperSetting, paper_setting, plan_dataset, planned_configuration
from umamba.planning.paper import TABLE_2

# Patch size, batch size, stages and poolings as printed; the poolings of the first row are printed as (3, 3, 5).
PRINTED: dict[str, tuple[Any, ...]] = {
    "Abdomen CT": ((40, 224, 192), 2, 6, (3, 5, 5)),
    "3D Abdomen MR": ((48, 160, 224), 2, 6, (3, 5, 5)),
    "2D Abdomen MR": ((320, 320), 30, 7, (6, 6)),
    "Endoscopy": ((384, 640), 13, 7, (6, 6)),
    "Microscopy": ((512, 512), 12, 8, (7, 7)),
}


@pytest.mark.parametrize("setting", TABLE_2, ids=lambda setting: setting.title)
def test_the_rows_are_the_printed_ones(setting: PaperSetting) -> None:
    poolings = tuple(sum(step == 2 for step in axis) for axis in zip(*setting.strides, strict=True))
    row = (setting.patch_size, setting.batch_size, len(setting.strides), poolings)
    assert row == PRINTED[setting.title]


@pytest.mark.parametrize(
    ("dataset", "configuration", "title"),
    [
        ("Dataset701_AbdomenCT", None, "Abdomen CT"),
        ("Dataset702_AbdomenMR", None, "3D Abdomen MR"),
        ("Dataset702_AbdomenMR", "2d", "2D Abdomen MR"),
        ("Dataset017_Endovis17", None, "Endoscopy"),
        ("NeurIPSCell", "2d", "Microscopy"),
    ],
)
def test_the_folder_names_the_row(dataset: str, configuration: str | None, title: str) -> None:
    assert paper_setting(dataset, configuration).title == title


@pytest.mark.parametrize(
    ("dataset", "configuration"), [("Dataset004_Hippocampus", None), ("Dataset701_AbdomenCT", "2d")]
)
def test_a_dataset_without_a_row_is_named(dataset: str, configuration: str | None) -> None:
    with pytest.raises(UserError, match=rf"plan\.paper: .* no row for {dataset[11:]}.*AbdomenMR 2d"):
        paper_setting(dataset, configuration)


@pytest.mark.parametrize("setting", TABLE_2, ids=lambda setting: setting.title)
@pytest.mark.parametrize("rules", ["umamba", "nnunet"])
def test_pinned_rows_give_the_forks_plans_by_any_rules(shared_dir: Path, setting: PaperSetting, rules: str) -> None:
    table = json.loads((shared_dir / "reference" / "planner" / "table2.json").read_text())
    name = next(row["fingerprint"] for row in table["rows"] if row["row"] == setting.title)
    record = table["datasets"][name]
    content = dict(record["fingerprint"])
    cases = [case for case in content.pop("cases") for _ in range(case.get("count", 1))]
    content |= {"spacings": [case["spacing"] for case in cases], "shapes_after_crop": [case["shape"] for case in cases]}
    plan = plan_dataset(
        Fingerprint.from_json(content),
        dataset_name=name,
        channel_names=tuple(record["dataset"]["channel_names"].values()),
        num_training=record["dataset"]["numTraining"],
        num_label_entries=LabelSet.from_json(record["dataset"]["labels"], None).num_entries,
        rules=rules,
        overrides={setting.configuration: setting.pinned()},
    )
    configuration = plan.configuration(setting.configuration)
    wanted = record["expected"]["umamba_fork_2024"][setting.configuration]
    assert configuration.patch_size == tuple(wanted["patch_size"]) == setting.patch_size
    assert configuration.batch_size == wanted["batch_size"] == setting.batch_size
    assert [list(kernel) for kernel in configuration.kernel_sizes] == wanted["kernel_sizes"]
    assert [list(stride) for stride in configuration.strides] == wanted["strides"]
    assert list(configuration.features_per_stage) == wanted["features_per_stage"]


@pytest.mark.parametrize(
    ("dataset", "paper", "configuration", "name"),
    [
        ("Dataset701_AbdomenCT", True, None, "3d_fullres"),
        ("Dataset702_AbdomenMR", True, None, "3d_fullres"),
        ("Dataset702_AbdomenMR", True, "2d", "2d"),
        ("Dataset704_Endovis17", True, None, "2d"),
        ("Dataset004_Hippocampus", False, "3d_lowres", "3d_lowres"),
    ],
)
def test_the_planned_configuration_is_known_without_data(
    dataset: str, paper: bool, configuration: str | None, name: str
) -> None:
    assert planned_configuration(dataset, paper, configuration) == name


def test_the_planned_configuration_needs_a_name_or_a_row() -> None:
    with pytest.raises(UserError, match=r"plan\.configuration is not given\. Choose one of 2d, 3d_fullres, 3d_lowres"):
        planned_configuration("Dataset702_AbdomenMR", False, None)
    with pytest.raises(UserError, match="no row for Hippocampus"):
        planned_configuration("Dataset004_Hippocampus", True, None)
