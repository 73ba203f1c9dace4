"""Whether `umamba audit` finds planted label faults: AUROC of the order of cases, for each kind of fault.

python benchmarks/label_audit.py --raw FOLDER/Dataset004_Hippocampus --work DIR [--experiment hippocampus_unet]
python benchmarks/label_audit.py --raw FOLDER/Dataset703_Nuclei --work DIR --experiment nuclei_unet

1. A copy of the dataset is made in which 5 % of the training cases have a fault: swap, shift by 2, dilate, drop a part,
   in turn. The networks are trained on this copy, because nobody audits labels that are known to be right.
2. The folds are trained, and each predicts its validation cases. A run that is finished is not trained again. Words
   after -- are further overrides of `umamba train`, such as -- trainer.max_epochs=20 predict.probabilities=true.
3. The copy is audited as a user would do it: DIR/audit_planted. The original labels are audited with the same
   segmentations: DIR/audit_untouched shows what is found in the data as they were published.
4. For each kind, the fault is planted into 5 % of the cases, drawn again --repeats times, all other labels as they were
   published, and the cases are ranked. The table has the mean and the smallest AUROC, and the kind that was named most
   often. The segmentations stay those of step 2, because a network never saw the labels of its validation cases.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from measuring import machine

from umamba.datasets import RawCase, RawDataset, read_dataset
from umamba.datasets.numbered_instances import classes_of_instances, holds_instances
from umamba.evaluation.audit import CaseFacts, inspect_labels
from umamba.evaluation.audit_ranking import rank_cases
from umamba.evaluation.label_faults import FAULTS, Fault, auroc, plant_fault
from umamba.io import Geometry, make_folder, read_json, read_label, write_json, write_segmentation
from umamba.runs.label_audit import audit
from umamba.runs.out_of_fold import out_of_fold, vote
from umamba.settings import AuditSettings

SEED = 1


def main() -> None:
    """Plant, train, audit, and print the table."""
    own, further = sys.argv[1:], []
    if "--" in own:
        own, further = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="the dataset as it was published")
    parser.add_argument("--work", type=Path, required=True, help="folder of copies, runs and results")
    parser.add_argument("--experiment", default="hippocampus_unet", help="a file of configs/experiment")
    parser.add_argument("--share", type=float, default=0.05, help="share of the cases that get a fault")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], help="other DIRs whose networks vote, too")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args(own)
    work = make_folder(arguments.work)
    raw = classes_of_instances(arguments.raw, work / "classes", 2) if holds_instances(arguments.raw) else arguments.raw
    original = read_dataset(raw.absolute())
    copy = faulty_copy(original, work / "raw", arguments.share)
    planted = read_json(copy / "faults.json")
    runs = (trained(copy, work, arguments.experiment, arguments.folds, further), *map(runs_of, arguments.beside))
    print(f"{machine()}; {original.name}, {len(original.training)} cases, {arguments.experiment} {' '.join(further)}\n")
    found = audit(AuditSettings(runs=runs, raw_dataset=copy, output=work / "audit_planted"))
    scores = {each.case: each.score for each in found.ranked}
    positive = set(planted) & set(scores)
    ranks = {each.case: rank for rank, each in enumerate(found.ranked, start=1)}
    print(f"Planted before training: AUROC {auroc(scores, positive):.3f} of {len(positive)} in {len(scores)} cases")
    for case in sorted(positive, key=lambda case: ranks[case]):
        named = found.ranked[ranks[case] - 1].main.kind
        print(f"  rank {ranks[case]:4d}  {scores[case]:6.1f}  {planted[case]:6s}  named {named:9s}  {case}")
    untouched = audit(AuditSettings(runs=runs, raw_dataset=original.root, output=work / "audit_untouched"))
    print(f"\nIn the published labels, {untouched.review} cases are listed for review: {untouched.page}\n")
    print("| fault | AUROC, mean | smallest | cases each time | named most often |")
    print("| --- | --- | --- | --- | --- |")
    segmented = out_of_fold(runs, original)
    facts = {each.case: each.facts for each in untouched.ranked}
    for fault in FAULTS:
        areas, named, count = replanted(original, segmented, facts, fault, arguments)
        often = ", ".join(f"{kind} {times}" for kind, times in named.most_common(2))
        print(f"| {fault} | {np.mean(areas):.3f} | {min(areas):.3f} | {count} | {often} |", flush=True)


def faulty_copy(dataset: RawDataset, folder: Path, share: float) -> Path:
    """Write a copy of a dataset with a fault in some labels, and faults.json: case -> fault. Images are linked."""
    root = folder / dataset.name
    if (root / "faults.json").exists():
        return root
    rng = np.random.default_rng(SEED)
    count = max(len(FAULTS), round(share * len(dataset.training)))
    chosen = rng.choice(len(dataset.training), count, replace=False).tolist()
    faults: dict[str, Fault] = {}
    for name in ("imagesTr", "labelsTr"):
        make_folder(root / name)
    for position, case in enumerate(dataset.training):
        for image in case.images:
            linked(image, root / "imagesTr" / image.name)
        assert case.label is not None
        target = root / "labelsTr" / case.label.name
        labels, geometry = label_map(case.label)
        fault = FAULTS[chosen.index(position) % len(FAULTS)] if position in chosen else None
        if fault is not None and can_have(labels, fault):
            write_segmentation(target, plant_fault(labels, fault, rng), geometry)
            faults[case.case_id] = fault
        else:
            linked(case.label, target)
    linked(dataset.root / "dataset.json", root / "dataset.json")
    write_json(root / "faults.json", faults)
    return root


def label_map(file: Path) -> tuple[np.ndarray, Geometry]:
    """Return a label map (Z, Y, X) as integers, which a file may store as floats, and its geometry."""
    read = read_label(file)
    return read.array[0].astype(np.int32), read.geometry


def can_have(labels: np.ndarray, fault: Fault) -> bool:
    """Return whether a label map has what a fault needs."""
    return len(set(np.unique(labels).tolist()) - {0}) >= (2 if fault == "swap" else 1)


def linked(source: Path, target: Path) -> None:
    """Link a file, unless the link exists."""
    if not target.exists():
        os.symlink(source.absolute(), target)


def trained(root: Path, work: Path, experiment: str, folds: int, further: list[str]) -> Path:
    """Train the folds, and return runs/<experiment>/<configuration>."""
    for fold in range(folds):
        command = [sys.executable, "-m", "umamba", "train", f"experiment={experiment}", f"dataset.root={root}"]
        command += [f"fold={fold}", "name=audit", "dataset.protocol=generic", "logger=csv", "predict.validation=true"]
        command += [f"paths.runs={work / 'runs'}", f"paths.preprocessed={work / 'preprocessed'}", *further]
        subprocess.run(command, check=True)
    return runs_of(work)


def runs_of(work: Path) -> Path:
    """Return runs/<experiment>/<configuration> of a work folder."""
    (configuration,) = (path for path in (work / "runs" / "audit").iterdir() if path.is_dir())
    return configuration


def replanted(
    dataset: RawDataset,
    segmented: dict[str, tuple[Path, ...]],
    facts: dict[str, CaseFacts],
    fault: Fault,
    arguments: argparse.Namespace,
) -> tuple[list[float], Counter[str], int]:
    """Plant a fault into other cases again and again; return each AUROC, the named kinds, and how many cases."""
    rng = np.random.default_rng([SEED, FAULTS.index(fault)])
    cases = {case.case_id: case for case in dataset.training if case.case_id in facts}
    able = [name for name, case in cases.items() if case.label and can_have(label_map(case.label)[0], fault)]
    count = max(1, round(arguments.share * len(cases)))
    areas, named = [], Counter[str]()
    for _ in range(arguments.repeats):
        chosen = set(rng.choice(able, count, replace=False).tolist())
        now = dict(facts)
        for name in sorted(chosen):
            label = cases[name].label
            assert label is not None
            (given, geometry), file = label_map(label), make_folder(arguments.work / "planted") / label.name
            write_segmentation(file, plant_fault(given, fault, rng), geometry)
            maps = vote(RawCase(name, (), file), segmented[name], dataset.labels, dataset.file_ending)
            now[name] = inspect_labels(maps.given, maps.predicted.array[0], maps.margin, dataset.labels.ignore)
        ranked = rank_cases(now)
        areas.append(auroc({each.case: each.score for each in ranked}, chosen))
        named.update(each.main.kind for each in ranked if each.case in chosen)
    return areas, named, count


if __name__ == "__main__":
    main()
