"""Train nnU-Net itself as the first run of a study says: same plan, cases, iterations, schedule and mirroring.

python benchmarks/nnunet_training.py experiments/baseline_swaps --nnunet-bin ENVIRONMENT/bin --output scores.csv \
    paths.raw=RAW paths.preprocessed=PREPROCESSED

ENVIRONMENT has nnunetv2 2.8.1. nnU-Net preprocesses the dataset by our plan, trains on one CPU thread in float32 (it
has no mixed precision on a CPU) and segments the validation cases of the fold and the test images without mirroring.
It has no seed, so the trainings are numbered. A training that has written its scores is not repeated. The scores are
ours, as a table like scores.csv of a report; the method is called nnunet.
"""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path

import pandas

from umamba.cli.compose import settings_of
from umamba.cli.planned_runs import dataset_and_method
from umamba.datasets import RawCase, RawDataset, read_dataset
from umamba.evaluation import Rules, score_folder
from umamba.io.tabular import read_table, write_table
from umamba.planning import Plan, fold_cases, to_nnunet_plans
from umamba.reporting.results import METRICS, SCORE_COLUMNS, VALIDATION
from umamba.runs.cases import splits_file
from umamba.runs.preparation import plan_of
from umamba.settings import TrainSettings
from umamba.sweeps import read_study

CONFIGURATION = "3d_fullres"
# Run in nnU-Net's environment. The arguments are a JSON object.
SET_UP = """
import json, sys
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
given = json.loads(sys.argv[1])
torch.set_num_threads(1)
configure = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size
def configured(trainer):
    rotation, dummy, size, _ = configure(trainer)
    trainer.inference_allowed_mirroring_axes = axes = tuple(given["mirror"])
    return rotation, dummy, size, axes
nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size = configured
with open(given["plans"]) as plans, open(given["dataset"]) as dataset:
    plan = {**json.load(plans), "continue_training": False}
    trainer = nnUNetTrainer(plan, given["configuration"], 0, json.load(dataset), torch.device("cpu"))
"""
TRAIN = (
    SET_UP
    + """
trainer.num_epochs, trainer.num_iterations_per_epoch = given["epochs"], given["iterations"]
trainer.num_val_iterations_per_epoch = 1
trainer.run_training()
"""
)


def study_parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser of a study's folder, overrides of its first run, and nnU-Net's environment and folders."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder with sweep.yaml; its first run says what is trained")
    parser.add_argument("overrides", nargs="*", help="overrides of the run")
    parser.add_argument("--nnunet-bin", type=Path, required=True, help="folder bin of nnU-Net's environment")
    parser.add_argument("--scratch", type=Path, default=Path("nnunet_scratch"), help="nnU-Net's folders")
    return parser


def prepare(settings: TrainSettings, dataset: RawDataset, plan: Plan, scratch: Path, programs: Path) -> Path:
    """Let nnU-Net preprocess the dataset by our plan, unless that is done; return the folder of its plan."""
    raw, folder = scratch / "raw" / dataset.name, scratch / "preprocessed" / dataset.name
    if not (folder / "done").exists():
        raw.parent.mkdir(parents=True, exist_ok=True)
        if not raw.exists():
            raw.symlink_to(dataset.root.resolve(), target_is_directory=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "nnUNetPlans.json").write_text(json.dumps(to_nnunet_plans(plan, dataset.file_ending)))
        shutil.copy(dataset.root / "dataset.json", folder / "dataset.json")
        number = dataset.name.removeprefix("Dataset").split("_")[0]
        nnunet(scratch, programs / "nnUNetv2_extract_fingerprint", "-d", number, "-np", "1")
        nnunet(scratch, programs / "nnUNetv2_preprocess", "-d", number, "-c", CONFIGURATION, "-np", "1")
        train, held_out = split(settings, dataset)
        (folder / "splits_final.json").write_text(json.dumps([{"train": train, "val": held_out}]))
        (folder / "done").touch()
    return folder


def split(settings: TrainSettings, dataset: RawDataset) -> tuple[list[str], list[str]]:
    """Return the training and the validation cases of the fold."""
    names = [case.case_id for case in dataset.training]
    train, held_out = fold_cases(names, settings.fold)
    return list(train), list(held_out)


def nnunet(scratch: Path, *command: str | Path) -> None:
    """Run a command of nnU-Net on one thread."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    folders = {f"nnUNet_{name}": str(scratch / name) for name in ("raw", "preprocessed", "results")}
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**own, **threads, **folders, "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
    subprocess.run([str(part) for part in command], check=True, env=environment)


def train(settings: TrainSettings, folder: Path, scratch: Path, programs: Path) -> None:
    """Train nnU-Net once."""
    given = {
        "plans": str(folder / "nnUNetPlans.json"),
        "dataset": str(folder / "dataset.json"),
        "configuration": CONFIGURATION,
        "epochs": settings.trainer.max_epochs,
        "iterations": settings.train_batches,
        "mirror": settings.augmentation.mirrored_axes(3),
    }
    nnunet(scratch, programs / "python", "-c", TRAIN, json.dumps(given))


def scored(settings: TrainSettings, dataset: RawDataset, scratch: Path, programs: Path) -> pandas.DataFrame:
    """Segment the held-out cases with the trained network and return their scores: case, label, metrics."""
    held_out = set(split(settings, dataset)[1])
    groups: list[tuple[str, list[RawCase]]] = [
        ("", list(dataset.test)),
        (VALIDATION, [case for case in dataset.training if case.case_id in held_out]),
    ]
    rules = Rules(dataset.labels, settings.dataset.protocol, settings.dataset.tolerance_mm)
    parts = []
    for number, (ending, cases) in enumerate(groups):
        images, output = scratch / f"images_{number}", scratch / f"segmented_{number}"
        for path in (images, output):
            shutil.rmtree(path, ignore_errors=True)
        images.mkdir()
        for case in cases:
            for image in case.images:
                (images / image.name).symlink_to(image.resolve())
        command = ["-i", images, "-o", output, "-d", dataset.name, "-c", CONFIGURATION, "-f", "0", "--disable_tta"]
        nnunet(scratch, programs / "nnUNetv2_predict", *command, "-device", "cpu", "-npp", "1", "-nps", "1")
        truths = {case.case_id: case.label for case in cases if case.label is not None}
        table = score_folder(output, truths, rules, dataset.file_ending, workers=1)
        parts.append(table.assign(case=table["case"].astype(str) + ending))
    return pandas.concat(parts, ignore_index=True)


def main() -> None:
    """Train nnU-Net as often as the study has seeds, and write the scores of all trainings."""
    parser = study_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="CSV of the scores")
    arguments = parser.parse_intermixed_args()  # overrides may stand after the options
    study, scratch = read_study(arguments.study.parent, arguments.study.name), arguments.scratch.resolve()
    settings = settings_of(TrainSettings, (*study.runs[0], *arguments.overrides))
    name, _ = dataset_and_method(study.runs[0], settings)
    planned = plan_of(settings)
    dataset = read_dataset(planned.dataset.root)
    if splits_file(settings, planned) is not None:
        raise SystemExit("The dataset has a splits file of its own; this script knows only nnU-Net's split.")
    folder = prepare(settings, dataset, planned.plan, scratch, arguments.nnunet_bin)
    rows: list[tuple[object, ...]] = []
    for seed in study.seeds:
        part = scratch / f"scores_{seed}.csv"
        if not part.exists():
            shutil.rmtree(scratch / "results", ignore_errors=True)
            train(settings, folder, scratch, arguments.nnunet_bin)
            write_table(part, scored(settings, dataset, scratch, arguments.nnunet_bin))
        for values in read_table(part, ("case", "label")).to_dict("records"):
            found = [(metric, values[metric]) for metric in METRICS if pandas.notna(values.get(metric))]
            rows += [
                (name, "nnunet", str(settings.fold), seed, values["case"], values["label"], metric, value)
                for metric, value in found
            ]
    write_table(arguments.output, pandas.DataFrame(rows, columns=list(SCORE_COLUMNS)))


if __name__ == "__main__":
    main()
