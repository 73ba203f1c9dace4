"""Does a classification head learn a planted class? AUC, calibration and DSC on real images, from one command.

python benchmarks/case_labels.py DATASET [--iterations 400] [--architecture unet] [--alone] [--seed 0]

DATASET is a folder in nnU-Net's layout, such as Dataset004_Hippocampus. Its copy gets two planted classes: `turned`,
whether image and label of the case are stored turned about their first axis by 180 degrees (half of the cases, by a
hash of their names; the geometry in the file does not say so), and `large`, whether the labelled volume is above the
median. The first one is a matter of orientation, which mirroring and rotation by large angles would wipe out, so that
both are off; scaling is off because it would change the volume. One network learns segmentation and classes together,
is predicted whole on the held-out cases of fold 0 and on the test images, and is scored. The table prints each score
with its 95 % interval.
"""

import argparse
import csv
import hashlib
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas
import SimpleITK as sitk
import torch
from measuring import machine

from umamba.io.voice import show_messages
from umamba.records.tables import main_score
from umamba.runs import train
from umamba.settings import (
    AugmentationSettings,
    DatasetSettings,
    DataSettings,
    HeadsSettings,
    LoggerSettings,
    PathsSettings,
    PlanSettings,
    TrainerSettings,
    TrainSettings,
)
from umamba.settings.training import AfterTrainingSettings

ENDING = ".nii.gz"


def plant(source: Path, target: Path) -> Path:
    """Copy a dataset with planted classes, and return the table of them."""
    volumes: dict[str, float] = {}
    for images, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")):
        for folder in (images, labels):
            (target / folder).mkdir(parents=True)
        for path in sorted((source / labels).glob(f"*{ENDING}")):
            case = path.name.removesuffix(ENDING)
            image, label = sitk.ReadImage(str(source / images / f"{case}_0000{ENDING}")), sitk.ReadImage(str(path))
            volumes[case] = float((sitk.GetArrayFromImage(label) > 0).sum()) * float(np.prod(label.GetSpacing()))
            for kind, name in ((image, f"{images}/{case}_0000{ENDING}"), (label, f"{labels}/{case}{ENDING}")):
                array = sitk.GetArrayFromImage(kind)
                stored = sitk.GetImageFromArray(np.ascontiguousarray(array[:, ::-1, ::-1]) if turned(case) else array)
                stored.CopyInformation(kind)
                sitk.WriteImage(stored, str(target / name))
    (target / "dataset.json").write_text((source / "dataset.json").read_text())
    median = float(np.median(list(volumes.values())))
    table = target / "classes.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "turned", "large"])
        writer.writerows([case, "yes" if turned(case) else "no", "yes" if volume > median else "no"]
                         for case, volume in volumes.items())  # fmt: skip
    return table


def turned(case: str) -> bool:
    """Return whether a case is stored turned."""
    return hashlib.sha256(case.encode()).digest()[0] % 2 == 1


def main() -> None:
    """Train, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--architecture", default="unet")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder that is kept; left out: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    show_messages(logging.INFO)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.output or Path(temporary)
        root = work / "raw" / arguments.dataset.name
        table = root / "classes.csv" if root.exists() else plant(arguments.dataset, root)
        epochs = 20
        settings = TrainSettings(
            name=f"case_labels_{arguments.architecture}_{arguments.seed}" + ("_alone" if arguments.alone else ""),
            dataset=DatasetSettings(root=root, tolerance_mm=1.0),
            paths=PathsSettings(raw=work / "raw", preprocessed=work / "preprocessed", runs=work / "runs"),
            plan=PlanSettings(features_per_stage=(8, 16, 32, 64), batch_size=2),
            architecture={"name": arguments.architecture},  # type: ignore[arg-type]
            heads=HeadsSettings(case=table, alone=arguments.alone),
            augmentation=AugmentationSettings(
                mirror={"axes": [], "p": 0.0},  # type: ignore[arg-type]
                scaling={"p": 0.0},  # type: ignore[arg-type]
            ),
            data=DataSettings(
                num_workers=0,
                prepare_workers=1,
                iterations_per_epoch=arguments.iterations // epochs,
                val_iterations=5,
                validate_cases_every=0,
            ),
            trainer=TrainerSettings(accelerator="cpu", max_epochs=epochs, precision="32-true"),
            logger=LoggerSettings(wandb=False, panels_every=0),
            predict=AfterTrainingSettings(tta=False, engine="torch"),
            seed=arguments.seed,
        )
        began = time.perf_counter()
        result = train(settings)
        minutes = (time.perf_counter() - began) / 60
        print(f"\n{machine()}; {arguments.architecture}, {arguments.iterations} steps, {minutes:.1f} minutes in all\n")
        print("| cases | task | class | metric | value | 95 % interval | number |\n" + "| --- " * 7 + "|")
        for kind, path in (("validation", result.folder.validation_classes), ("test", result.folder.classes)):
            for row in pandas.read_csv(path, keep_default_na=False).to_dict("records"):
                low, high = float(row["ci_low"]), float(row["ci_high"])
                cells = [kind, row["task"], row["class"], row["metric"], f"{row['value']:.3f}"]
                print("| " + " | ".join([*cells, f"{low:.3f} to {high:.3f}", str(row["cases"])]) + " |")
        for kind, scores in (("validation", result.validation), ("test", result.scores)):
            if scores is not None:
                print(f"\nDSC of the {kind} cases: {main_score(scores):.4f}")


if __name__ == "__main__":
    main()
