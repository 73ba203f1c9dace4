"""describe.py: a plan from the paper's table, a plans file, a dataset or a checkpoint; and what is missing, named."""

from pathlib import Path

import pytest

from umamba.cli.compose import settings_of
from umamba.cli.describe import main
from umamba.datasets import write_phantom
from umamba.io import UserError
from umamba.io.voice import shown
from umamba.runs.network_at_plan import network_at_plan
from umamba.settings import DescribeSettings


def asked(*overrides: str) -> DescribeSettings:
    """Compose what `umamba describe` takes."""
    return settings_of(DescribeSettings, overrides)


@pytest.mark.parametrize("columns", [None, "80", "200"])
def test_an_experiment_without_its_dataset(
    columns: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is whole in 80 columns, and redirected, where no width is known."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    with shown():
        main(asked("experiment=flare_umamba_enc", f"paths.raw={tmp_path}"))
    said = capsys.readouterr().out
    lines = said.splitlines()
    table = lines[: next(index for index, line in enumerate(lines) if line.startswith("Forward pass"))]
    assert max(map(len, lines)) <= 80
    assert "…" not in said
    said = " ".join(said.split())
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in table if line.strip()}
    assert rows["encoder.mamba_layers.0"].startswith("1,720,320 x 32 tokens 9,")
    assert rows["encoder.mamba_layers.5"].startswith("320 x 210 channels ")
    assert rows["encoder.stages.1"].startswith("64 x 40 x 112 x 96 389,952 334.71 ")
    assert rows["all"].startswith("42,842,798 ")
    assert "spacing of 2.5 x 0.8 x 0.8 mm" in said
    assert "Here: 2 2 2 1 1 1 and 2 2 2 1 1." in said


@pytest.mark.parametrize(
    ("experiment", "channels", "classes", "patch"),
    [
        ("amos_unet", 1, 14, (48, 160, 224)),
        ("amos2d_unet", 1, 14, (320, 320)),
        ("endovis_umamba_bot", 3, 8, (384, 640)),
        ("cell_umamba_enc", 3, 3, (512, 512)),
    ],
)
def test_rows_of_table_2(tmp_path: Path, experiment: str, channels: int, classes: int, patch: tuple[int, ...]) -> None:
    chosen = network_at_plan(asked(f"experiment={experiment}", f"paths.raw={tmp_path}"))
    found = (chosen.in_channels, chosen.num_classes, chosen.configuration.patch_size)
    assert found == (channels, classes, patch)
    assert "assumed" in chosen.origin


def test_a_plans_file_a_checkpoint_and_a_dataset(
    reference_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = reference_dir / "inference" / "residual_3d"
    of_file = asked(
        "architecture=resenc_unet",
        f"plan.from_file={results / 'plans.json'}",
        "num_classes=3",
    )
    of_checkpoint = asked(f"checkpoint={results}")
    one, other = network_at_plan(of_file), network_at_plan(of_checkpoint)
    assert (one.configuration, one.in_channels) == (other.configuration, other.in_channels)
    assert (one.num_classes, one.architecture) == (other.num_classes, other.architecture)
    root = write_phantom(tmp_path / "Dataset900_Phantom", num_training=5, num_test=0, seed=0, voxel_mm=8.0)
    paths = [f"paths.raw={tmp_path}", f"paths.preprocessed={tmp_path / 'preprocessed'}"]
    with shown():
        main(asked(f"dataset.root={root}", *paths, "architecture=unet"))
    assert f"Plan: dataset {root}" in " ".join(capsys.readouterr().out.split())


def test_what_is_missing_is_named(reference_dir: Path) -> None:
    plans = reference_dir / "inference" / "residual_3d" / "plans.json"
    with pytest.raises(UserError, match="num_classes: give the number of labels"):
        network_at_plan(asked(f"plan.from_file={plans}", "dataset.root=nowhere"))
    with pytest.raises(UserError, match=r"dataset\.root=nowhere.*checkpoint=FILE"):
        network_at_plan(asked("dataset.root=nowhere"))
