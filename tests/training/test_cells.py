"""A run on a folder of numbered cells: its score tables hold the F1 of the cells."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk

from umamba.evaluation.instances import score_cells
from umamba.records import RunFolder
from umamba.runs import prepare, run
from umamba.settings import TrainSettings

PICTURES = [
    *("dataset.kind=nnunet", "dataset.protocol=cell", "plan=2d", "plan.patch_size=[32,32]"),
    *("plan.features_per_stage=[8,16,16]", "plan.strides=[[1,1],[2,2],[2,2]]"),
    "plan.kernel_sizes=[[3,3],[3,3],[3,3]]",
]


@pytest.mark.filterwarnings("ignore")
def test_scores_are_of_the_instances(
    make_settings: Callable[..., TrainSettings], shared_dir: Path, tmp_path: Path
) -> None:
    source, root = shared_dir / "data" / "Dataset703_Nuclei", tmp_path / "Nuclei"
    for split, count in (("Tr", 5), ("Ts", 2)):
        # The smallest images keep the test short.
        for image in sorted((source / f"images{split}").iterdir(), key=lambda path: path.stat().st_size)[:count]:
            for kind, name in (("images", image.name), ("instances", f"{image.stem}_label.tiff")):
                (root / f"{kind}{split}").mkdir(parents=True, exist_ok=True)
                shutil.copy(source / f"{kind}{split}" / name, root / f"{kind}{split}" / name)
    settings = make_settings(*PICTURES, f"dataset.root={root}", f"paths.preprocessed={tmp_path / 'made'}")
    folder = RunFolder(tmp_path / "run")
    run(settings, prepare(settings), folder)
    for table, predictions, split, count in (
        (folder.scores, folder.predictions, "Ts", 2),
        (folder.validation_scores, folder.validation, "Tr", 1),
    ):
        with table.open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        for row in rows:
            assert row["label"] == "cells"
            predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(predictions / f"{row['case']}.png")))
            true = sitk.ReadImage(str(source / f"instances{split}" / f"{row['case']}_label.tiff"))
            expected = score_cells(predicted, sitk.GetArrayFromImage(true))
            assert float(row["f1"]) == pytest.approx(expected.f1)
