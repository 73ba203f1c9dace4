"""Do expected scores hold? Coverage of intervals and risk-coverage curves on corrupted test images.

    python benchmarks/quality.py train  RAW_DATASET WORK      # five folds of U-Net and U-Mamba Bot, short
    python benchmarks/quality.py score  RAW_DATASET WORK      # calibrate, corrupt, predict, score, tables and plot

RAW_DATASET is Dataset004_Hippocampus with labels of its test images (labelsTs). Both steps continue where they stopped.
Three calibrations come from cross-validation: U-Net alone, Bot alone, and the pair of both of a fold. The networks of
each fold then segment every test image, clean and corrupted: noise, bias field, blur, slices without signal, mirrored
along each axis, and a wrong spacing in the header (the reference gets it, too). Nothing is learned from the corrupted
images. WORK/results.csv has a row for each prediction; WORK/results.md and WORK/results.png sum them up.
"""

import argparse
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import SimpleITK as sitk
import torch
import torchio
from measuring import machine

from umamba.cli.compose import settings_of
from umamba.evaluation import Rules, score_pairs
from umamba.evaluation.quality_estimates import estimate
from umamba.evaluation.quality_plots import plot_quality
from umamba.evaluation.risk_coverage import area, trust
from umamba.evaluation.statistics import with_case_means
from umamba.inference import Predictor
from umamba.inference.agreement import CaseSigns
from umamba.io.tabular import write_table
from umamba.io.voice import show_messages
from umamba.runs import train
from umamba.runs.calibration import calibrate
from umamba.runs.select import fold_checkpoints
from umamba.settings import CalibrateSettings, PredictionSettings, TrainSettings

NETWORKS = ("unet", "umamba_bot")
METHODS = {"U-Net": ("unet",), "U-Mamba Bot": ("umamba_bot",), "both": NETWORKS}
TOLERANCE_MM = 1.0
Corruption = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray, float]]


def through_torchio(transform: torchio.Transform) -> Corruption:
    """Return the corruption of an image (Z, Y, X) by a transform of TorchIO; the reference and spacing stay."""

    def corrupt(image: np.ndarray, label: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
        torch.manual_seed(seed)
        scaled = (image - image.mean()) / image.std()
        made = transform(scaled[None].astype(np.float32))[0]
        return made * image.std() + image.mean(), label, 1.0

    return corrupt


def without_slices(share: float) -> Corruption:
    """Return the corruption by slices without signal."""

    def corrupt(image: np.ndarray, label: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
        lost = np.random.default_rng(seed).permutation(len(image))[: max(1, round(share * len(image)))]
        found = image.copy()
        found[lost] = 0
        return found, label, 1.0

    return corrupt


def flipped(axis: int) -> Corruption:
    """Return the corruption by a mirrored image and reference."""
    return lambda image, label, seed: (np.flip(image, axis).copy(), np.flip(label, axis).copy(), 1.0)


CORRUPTIONS: dict[str, tuple[Corruption, ...]] = {
    "clean": (lambda image, label, seed: (image, label, 1.0),),
    "noise": tuple(through_torchio(torchio.RandomNoise(mean=0, std=(std, std))) for std in (0.3, 0.8)),
    "bias field": tuple(through_torchio(torchio.RandomBiasField(coefficients=c)) for c in (0.3, 0.6)),
    "blur": tuple(through_torchio(torchio.RandomBlur(std=(std, std))) for std in (1.0, 2.0)),
    "missing slices": (without_slices(0.1), without_slices(0.3)),
    "flip": (flipped(0), flipped(1), flipped(2)),
    "wrong spacing": tuple(lambda image, label, seed, f=f: (image, label, f) for f in (0.6, 1.6)),  # type: ignore[misc]
}


def main() -> None:
    """Train or score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("train", "score"))
    parser.add_argument("raw_dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--overrides", nargs="*", default=[], help="of each training, such as plan.batch_size=4")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    show_messages(logging.INFO)
    if arguments.step == "train":
        for fold in range(arguments.folds):
            for network in NETWORKS:
                train(settings_of(TrainSettings, overrides_of(arguments, network, fold)))
        return
    rows = [scored(arguments, method, networks) for method, networks in METHODS.items()]
    table = pandas.concat(rows, ignore_index=True)
    write_table(arguments.work / "results.csv", table)
    text = summary(table)
    (arguments.work / "results.md").write_text(text)
    both = table[(table["method"] == "both") & table["dsc"].notna()]
    plot_quality(both.assign(beyond=both["expected"].isna()), arguments.work / "results.png")
    print(text)


def overrides_of(arguments: argparse.Namespace, network: str, fold: int) -> list[str]:
    """Return the overrides of one training."""
    return [
        f"experiment=hippocampus_{network}",
        f"dataset.root={arguments.raw_dataset.absolute()}",
        f"paths.runs={arguments.work.absolute() / 'runs'}",
        f"paths.preprocessed={arguments.work.absolute() / 'preprocessed'}",
        f"trainer.max_epochs={arguments.epochs}",
        f"trainer.limit_train_batches={arguments.batches}",
        "predict.validation=false",
        f"fold={fold}",
        *arguments.overrides,
    ]


def corrupt_images(raw: Path, folder: Path, corruption: Corruption, seed: int) -> None:
    """Write corrupted test images and their references, unless the folder is there."""
    if folder.exists():
        return
    half_done = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(half_done, ignore_errors=True)
    for name in ("images", "labels"):
        (half_done / name).mkdir(parents=True)
    for number, file in enumerate(sorted((raw / "labelsTs").glob("[!.]*.nii.gz"))):
        case = file.name.removesuffix(".nii.gz")
        image = sitk.ReadImage(str(raw / "imagesTs" / f"{case}_0000.nii.gz"))
        voxels = sitk.GetArrayFromImage(image).astype(np.float64)
        array, truth, factor = corruption(voxels, sitk.GetArrayFromImage(sitk.ReadImage(str(file))), seed + number)
        files = {"images": (f"{case}_0000.nii.gz", array.astype(np.float32)), "labels": (f"{case}.nii.gz", truth)}
        for name, (target, content) in files.items():
            made = sitk.GetImageFromArray(content)
            made.CopyInformation(image)
            made.SetSpacing([factor * step for step in image.GetSpacing()])
            sitk.WriteImage(made, str(half_done / name / target))
    half_done.rename(folder)


def scored(arguments: argparse.Namespace, method: str, networks: tuple[str, ...]) -> pandas.DataFrame:
    """Calibrate a method, and return a row for each prediction of a test image."""
    work, raw = arguments.work, arguments.raw_dataset
    own = work / "-".join(networks)
    candidates = tuple(work / "runs" / f"hippocampus_{network}" / "3d_fullres" for network in networks)
    calibration = calibrate(
        CalibrateSettings(
            candidates=candidates,
            raw_dataset=raw,
            output=own / "calibration",
            tolerance_mm=TOLERANCE_MM,
            device=arguments.device,
        )
    ).calibration
    members = [fold_checkpoints(candidate, "last", 0) for candidate in candidates]
    settings = PredictionSettings(agreement=True)
    tables = []
    for fold in sorted(members[0]):
        predictor = Predictor.from_checkpoint([member[fold] for member in members], arguments.device)
        for kind, each in CORRUPTIONS.items():
            for severity, corruption in enumerate(each, start=1):
                name = f"{kind.replace(' ', '_')}_{severity}"
                images = work / "corrupted" / name
                corrupt_images(raw, images, corruption, seed=1000 * severity)
                output = own / f"fold_{fold}" / name
                segmentations = predictor.predict(images / "images", output, settings)
                truths = {path.name: images / "labels" / path.name for path in segmentations}
                pairs = {path.name.removesuffix(".nii.gz"): (path, truths[path.name]) for path in segmentations}
                scores, problems = score_pairs(pairs, Rules(predictor.labels, tolerance_mm=TOLERANCE_MM), workers=1)
                assert not problems, problems
                whole = with_case_means(scores, ["dsc", "nsd"])
                whole = whole[whole["label"] == calibration.overall]
                facts = {"method": method, "fold": fold, "corruption": kind, "severity": severity}
                for _, row in whole.iterrows():
                    signs = CaseSigns.read(output / "agreement" / f"{row['case']}.json")
                    *_, mean = estimate(
                        *(calibration, str(row["case"]), signs.labels, signs.distances, signs.differences)
                    )
                    expected, low, high = mean.scores.get("dsc", (np.nan,) * 3)
                    found = [own["confidence"] for own in signs.labels.values() if own["confidence"] is not None]
                    tables.append(
                        {
                            **facts,
                            **{"case": row["case"], "dsc": row["dsc"], "nsd": row["nsd"], "expected": expected},
                            **{"low": low, "high": high, "confidence": np.mean(found) if found else 0.0},
                            **{"disagreement": mean.signs["disagreement"], "reason": mean.reason},
                        }
                    )
    return pandas.DataFrame(tables)


def summary(table: pandas.DataFrame) -> str:
    """Return the tables of coverage and of areas in Markdown."""
    lines = [
        machine(),
        "",
        "Share of DSC in the 90 % interval, of the predictions with a number; in brackets, the share of all",
        "predictions that have none, because they are outside what was calibrated.",
    ]
    kinds = list(CORRUPTIONS)
    lines += ["", "| method | all | " + " | ".join(kinds) + " |", "| --- " * (len(kinds) + 2) + "|"]
    for method in METHODS:
        own = table[table["method"] == method]
        parts = [own, *(own[own["corruption"] == kind] for kind in kinds)]
        lines.append(f"| {method} | " + " | ".join(map(coverage, parts)) + " |")
    lines += ["", "Area under the risk-coverage curve (1 - DSC) over all predictions; lower is better.", ""]
    lines += [
        "| method | expected DSC | mean softmax confidence | random order | DSC itself | of the possible gain |",
        "| --- " * 6 + "|",
    ]
    for method in METHODS:
        own = table[(table["method"] == method) & table["dsc"].notna()]
        risk = 1 - own["dsc"].to_numpy()
        expected = area(trust(own["expected"].to_numpy(), own["disagreement"].to_numpy()), risk)
        confidence, best = area(own["confidence"].to_numpy(), risk), area(-risk, risk)
        gained, theirs = (100 * (risk.mean() - found) / (risk.mean() - best) for found in (expected, confidence))
        lines.append(
            f"| {method} | {expected:.4f} | {confidence:.4f} | {risk.mean():.4f} | {best:.4f} | "
            f"{gained:.0f} %, confidence {theirs:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def coverage(rows: pandas.DataFrame) -> str:
    """Return the share within the interval, and in brackets that without a number."""
    rows = rows[rows["dsc"].notna()]
    known = rows[rows["expected"].notna()]
    outside = f"({100 * (1 - len(known) / max(1, len(rows))):.0f} %)"
    if known.empty:
        return outside
    inside = (known["low"] <= known["dsc"]) & (known["dsc"] <= known["high"])
    return f"{100 * inside.mean():.0f} % {outside}"


if __name__ == "__main__":
    main()
