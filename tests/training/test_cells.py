"""From numbered cells to the F1 of the cells: what stands in the scores of a run on a folder of instances."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk

from umamba.evaluation.instances import score_cells
from umamba.pipeline import prepare
from umamba.run import run_training
from umamba.records import RunFolder

PICTURES = [
    *("dataset.kind=nnunet", "dataset.protocol=cell", "plan=2d", "plan.patch_size=[32,32]"),
    *("plan.features_per_stage=[8,16,16]", "plan.strides=[[1,1],[2,2],[2,2]]"),
    "plan.kernel_sizes=[[3,3],[3,3],[3,3]]",
]


@pytest.mark.filterwarnings("ignore")
def test_scores_are_of_the_instances(make_config: Callable[..., Any], shared_dir: Path, tmp_path: Path) -> None:
    source, root = shared_dir / "data" / "Dataset703_Nuclei", tmp_path / "Nuclei"
    for split, count in (("Tr", 5), ("Ts", 2)):
        # The smallest ones.
        for image in sorted((source / f"images{split}").iterdir(), key=lambda path: path.stat().st_size)[:count]:
            for kind, name in (("images", image.name), ("instances", f"{image.stem}_label.tiff")):
                (root / f"{kind}{split}").mkdir(parents=True, exist_ok=True)
                shutil.copy(source / f"{kind}{split}" / name, root / f"{kind}{split}" / name)
    config = make_config(*PICTURES, f"dataset.root={root}", f"paths.preprocessed={tmp_path / 'made'}")
    folder = RunFolder(tmp_path / "run")
    run_training(config, prepare(config), folder)
    for table, predictions, split, count in (
        ("scores.csv", "predictions", "Ts", 2),
        ("validation.csv", "validation", "Tr", 1),
    ):
        with (folder.path / table).open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        for row in rows:
            assert row["label"] == "cells"
            predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(folder.path / predictions / f"{row['case']}.png")))
            true = sitk.ReadImage(str(source / f"instances{split}" / f"{row['case']}_label.tiff"))
            expected = score_cells(predicted, sitk.GetArrayFromImage(true))
            assert float(row["f1"]) == pytest.approx(expected.f1)
