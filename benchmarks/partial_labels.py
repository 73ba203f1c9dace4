"""What partly labelled hippocampus cases teach: half of the cases for each label, and a label that is added later.

python benchmarks/partial_labels.py --data RAW/Dataset004_Hippocampus --work DIR [--seeds 1] [-- trainer.max_epochs=40]

The training cases of fold 0 are divided in two halves, alternately by name: one is labelled for the anterior part only,
the other for the posterior part only. The validation cases of fold 0 keep both labels; they are predicted whole and
give the scores. What is trained, each with the same network, schedule and seed:

    full       all training cases with both labels
    partial    the halves, declared in annotated_labels
    exclusion  the same with the exclusion loss
    naive      the halves without the declaration: what a case does not carry is background (control)
    first      the half with the anterior part, a network of one label
    added      the half with the posterior part, with "first" as teacher
    tuned      the same without the teacher, from the weights of "first" (control)

Images are not copied. A run that is complete is not trained again. Everything behind -- goes to all trainings.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
import SimpleITK as sitk
from measuring import machine

from umamba.cli.compose import settings_of
from umamba.datasets import RawDataset, read_dataset
from umamba.io import write_image, write_json
from umamba.planning import fold_cases
from umamba.runs import train
from umamba.settings import TrainSettings

LABELS = ("Anterior", "Posterior")
BOTH = {"background": 0, "Anterior": 1, "Posterior": 2}
DEFAULTS = (
    *("architecture=unet", "logger=csv", "logger.panels_every=0", "trainer.max_epochs=30"),
    *("trainer.limit_train_batches=50", "data.val_iterations=5", "data.validate_cases_every=0"),
)


def main() -> None:
    """Train all arms for each seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the raw dataset of the hippocampus")
    parser.add_argument("--work", type=Path, required=True, help="folder of derived datasets and runs")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="further settings of all trainings, behind --")
    arguments = parser.parse_args()
    source = read_dataset(arguments.data)
    if source.labels.names != LABELS:
        parser.error(f"{source.root}: has the labels {', '.join(source.labels.names)}, not {', '.join(LABELS)}.")
    train_cases, val_cases = fold_cases([case.case_id for case in source.training], 0)
    halves = {"Anterior": sorted(train_cases)[::2], "Posterior": sorted(train_cases)[1::2]}
    roots = write_datasets(source, arguments.work / "raw", halves, val_cases)
    tables = [
        scores.assign(arm=arm, seed=seed)
        for seed in range(arguments.seeds)
        for arm, scores in trained(roots, arguments.work, seed, arguments.overrides).items()
    ]
    table = pandas.concat(tables, ignore_index=True)
    table.to_csv(arguments.work / "partial_labels.csv", index=False)
    print(
        f"{machine()}; {len(val_cases)} validation cases, {arguments.seeds} seed(s), {' '.join(arguments.overrides)}\n"
    )
    print(summary(table))


def write_datasets(
    source: RawDataset, raw: Path, halves: Mapping[str, Sequence[str]], val_cases: Sequence[str]
) -> dict[str, Path]:
    """Write the datasets of all arms, with one split each; their images are those of the source.

    Args:
        source: the hippocampus dataset.
        raw: folder of the datasets.
        halves: label -> training cases that carry it.
        val_cases: cases that carry both labels.

    Returns:
        Name -> folder.
    """
    one = {case: [label] for label, cases in halves.items() for case in cases}
    anterior, posterior = ({case: one[case] for case in halves[label]} for label in LABELS)
    arms: dict[str, tuple[Mapping[str, Sequence[str]], Mapping[str, int], bool]] = {
        "full": (dict.fromkeys(one, LABELS), BOTH, True),
        "partial": (one, BOTH, True),
        "naive": (one, BOTH, False),
        "first": (anterior, {"background": 0, "Anterior": 1}, True),
        "added": (posterior, BOTH, True),
        "tuned": (posterior, BOTH, False),
    }
    return {
        name: write_dataset(source, raw / f"Dataset{801 + number}_{name.title()}", carried, val_cases, labels, declared)
        for number, (name, (carried, labels, declared)) in enumerate(arms.items())
    }


def write_dataset(
    source: RawDataset,
    root: Path,
    carried: Mapping[str, Sequence[str]],
    val_cases: Sequence[str],
    labels: Mapping[str, int],
    declared: bool,
) -> Path:
    """Write a dataset whose label maps hold what the cases carry; validation cases carry all labels of the dataset."""
    known = [name for name in labels if name != "background"]
    kept = {**carried, **dict.fromkeys(val_cases, known)}
    cases = {case.case_id: case for case in source.training}
    entries = {}
    for case_id, names in kept.items():
        case, path = cases[case_id], root / "labelsTr" / f"{case_id}{source.file_ending}"
        entries[case_id] = {
            "images": [os.path.relpath(image, root.resolve()) for image in case.images],
            "label": path.relative_to(root).as_posix(),
        }
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            label = sitk.ReadImage(str(case.label))
            array = sitk.GetArrayFromImage(label)
            values = [BOTH[name] for name in names if name in labels]
            masked = sitk.GetImageFromArray(np.where(np.isin(array, values), array, 0).astype(np.uint8))
            masked.CopyInformation(label)
            write_image(path, masked)
    content = {
        "channel_names": dict(enumerate(source.channel_names)),
        "labels": labels,
        "numTraining": len(entries),
        "file_ending": source.file_ending,
        "dataset": entries,
        **({"annotated_labels": {case: list(names) for case, names in kept.items()}} if declared else {}),
    }
    if (root / "dataset.json").exists() and json.loads((root / "dataset.json").read_text()) != json.loads(
        json.dumps(content)
    ):
        raise SystemExit(f"{root}: was written for other cases. Give another --work.")
    write_json(root / "splits_final.json", [{"train": sorted(carried), "val": sorted(val_cases)}])
    write_json(root / "dataset.json", content)
    return root


def trained(roots: Mapping[str, Path], work: Path, seed: int, overrides: Sequence[str]) -> dict[str, pandas.DataFrame]:
    """Train all arms and return the scores of their validation cases."""

    def run(arm: str, root: Path, *own: str) -> pandas.DataFrame:
        paths = [f"paths.{name}={work / name}" for name in ("raw", "preprocessed", "runs")]
        free = [text for text in overrides if arm != "added" or not text.startswith("plan.")]  # that of "first"
        given = [f"dataset.root={root}", f"name={arm}", f"seed={seed}", *paths, *DEFAULTS, *free, *own]
        result = train(settings_of(TrainSettings, given), progress=False)
        print(f"{arm}, seed {seed}: {result.folder.path}", flush=True)
        checkpoints[arm] = result.checkpoint
        assert result.validation is not None
        return result.validation

    checkpoints: dict[str, Path] = {}
    found = {
        "full": run("full", roots["full"]),
        "partial": run("partial", roots["partial"]),
        "naive": run("naive", roots["naive"]),
        "first": run("first", roots["first"]),
    }
    found["added"] = run("added", roots["added"], f"teacher={checkpoints['first']}")
    found["exclusion"] = run("exclusion", roots["partial"], "recipe.loss.exclusion_weight=1")
    found["tuned"] = run("tuned", roots["tuned"], f"pretrained={checkpoints['first']}")
    return found


def summary(table: pandas.DataFrame) -> str:
    """Return mean DSC per arm and label, the share of full supervision, and what the added label cost the old one.

    Args:
        table: columns arm, seed, case, label, dsc.
    """
    means = table.groupby(["arm", "seed", "label"])["dsc"].mean().groupby(["arm", "label"]).mean().unstack("label")
    lines = ["| trained | " + " | ".join(LABELS) + " | of full |", "| --- " * 4 + "|"]
    for arm in ("full", "partial", "exclusion", "naive", "first", "added", "tuned"):
        row = means.loc[arm].reindex(list(LABELS))
        share = row.mean() / means.loc["full"].mean() if row.notna().all() else float("nan")
        lines.append("| " + " | ".join([arm, *(f"{value:.4f}" for value in row), f"{share:.1%}"]) + " |")
    lost = means.loc["first", "Anterior"] - means.loc["added", "Anterior"]
    forgotten = means.loc["first", "Anterior"] - means.loc["tuned", "Anterior"]
    share = means.loc["partial"].mean() / means.loc["full"].mean()
    return "\n".join(
        [
            *lines,
            "",
            f"Halves: {share:.1%} of full supervision (wanted: 97 % or more).",
            f"Old label after the new one: {-lost:+.4f} DSC (wanted: -0.01 or better); "
            f"without the teacher {-forgotten:+.4f}.",
        ]
    )


if __name__ == "__main__":
    main()
