"""What the loss of single components is worth: recall of planted lesions at equal numbers of false ones.

python benchmarks/planted_lesions.py data/raw/Dataset004_Hippocampus work [--seeds 3] [--weight 1] [--contrast 0.5 1.5]
    [train overrides ...]

Lesions of 10 to 200 voxels, brighter or darker than their surroundings by --contrast standard deviations of the volume
(a range), are planted in the training volumes of a 3D dataset (zero to five in a volume, the same for every seed); they
are the only label. Every fifth volume is a test case. The same network is trained with recipe.loss.component_weight=0
and with --weight, predicts the test cases with probabilities, and is scored by `umamba evaluate objects=true`. The
table shows the mean recall over the seeds at each number of false lesions for each case (FROC), and the difference.
Further overrides go to each training, such as architecture=unet trainer.max_epochs=30.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import SimpleITK as sitk
from measuring import machine
from scipy import ndimage

from umamba.io import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
SMALLEST, LARGEST, MOST = 10, 200, 5  # voxels, voxels, lesions in a volume


def main() -> None:
    """Plant, train, predict, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--contrast", type=float, nargs=2, default=(0.5, 1.5))
    arguments, overrides = parser.parse_known_args()
    work = arguments.work.resolve()
    raw = work / "raw" / "Dataset990_PlantedLesions"
    if not (raw / "dataset.json").exists():
        shutil.rmtree(raw, ignore_errors=True)
        plant_dataset(arguments.dataset, raw, tuple(arguments.contrast))
    tables = {
        weight: [froc_of(work, raw, weight, seed, overrides) for seed in range(arguments.seeds)]
        for weight in (0.0, arguments.weight)
    }
    without, with_it = (np.array([table["sensitivity"] for table in tables[weight]]) for weight in tables)
    rates = tables[0.0][0]["false_per_case"]
    counts = tables[0.0][0].iloc[0]
    print(f"{machine()}; {counts['objects']} lesions in {counts['cases']} test cases, {arguments.seeds} seed(s)\n")
    print(
        f"| false lesions for each case | recall without | with weight {arguments.weight:g} | difference, each seed |"
    )
    print("| --- | --- | --- | --- |")
    for rate, old, new in zip(rates, without.T, with_it.T, strict=True):
        each = ", ".join(f"{b - a:+.3f}" for a, b in zip(old, new, strict=True))
        print(f"| {rate} | {old.mean():.3f} | {new.mean():.3f} | {new.mean() - old.mean():+.3f} ({each}) |")


def plant_dataset(source: Path, target: Path, contrast: tuple[float, float]) -> None:
    """Write a dataset in nnU-Net's raw layout with planted lesions; dataset.json comes last."""
    images = sorted((source / "imagesTr").glob("*_0000.nii.gz"))
    for kind in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (target / kind).mkdir(parents=True)
    for number, path in enumerate(images):
        split = "Ts" if number % 5 == 0 else "Tr"
        volume = sitk.ReadImage(str(path))
        voxels = sitk.GetArrayFromImage(volume).astype(np.float32)
        array, label = plant(voxels, np.random.default_rng([0, number]), contrast)
        for kind, made in (("images", array), ("labels", label)):
            image = sitk.GetImageFromArray(made)
            image.CopyInformation(volume)
            name = path.name if kind == "images" else path.name.replace("_0000", "")
            sitk.WriteImage(image, str(target / f"{kind}{split}" / name))
    content = read_json(source / "dataset.json")
    training = len(list((target / "labelsTr").iterdir()))
    write_json(
        target / "dataset.json",
        {**content, "labels": {"background": 0, "lesion": 1}, "numTraining": training, "name": target.name},
    )


def plant(array: np.ndarray, rng: np.random.Generator, contrast: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume (Z, Y, X) with lesions and their labels, uint8; lesions do not touch each other.

    Args:
        array: the volume.
        rng: draws the lesions.
        contrast: smallest and largest difference to the surroundings, in standard deviations of the volume.
    """
    label, deviation = np.zeros(array.shape, dtype=np.uint8), float(array.std())
    for _ in range(int(rng.integers(MOST + 1))):
        # The voxels of a smooth random field that lie nearest to its place make a lesion of an uneven shape.
        size = round(float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))))
        place = [int(rng.integers(4, max(5, edge - 4))) for edge in array.shape]
        away = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(np.indices(array.shape), place, strict=True)))
        rough = ndimage.gaussian_filter(rng.standard_normal(array.shape), 1.5)
        height = away + rough * (0.8 / rough.std())
        within = height <= np.partition(height, size, axis=None)[size - 1]
        parts = ndimage.label(within, np.ones((3, 3, 3)))[0]
        lesion = parts == np.bincount(parts[within]).argmax()  # the largest part, a few voxels smaller at most
        near = ndimage.binary_dilation(lesion, iterations=2)
        if lesion.sum() < SMALLEST or label[near].any():
            continue
        change = rng.choice((-1, 1)) * rng.uniform(*contrast) * deviation
        array = array + change * ndimage.gaussian_filter(lesion.astype(np.float32), 0.5)
        label[lesion] = 1
    return array.astype(np.float32), label


def froc_of(work: Path, raw: Path, weight: float, seed: int, overrides: list[str]) -> pandas.DataFrame:
    """Train, predict the test cases with probabilities, score them, and return froc.csv; what exists is kept."""
    name = f"weight_{weight:g}"
    out = work / f"{name}_seed_{seed}"
    paths = [f"paths.{kind}={work / kind}" for kind in ("raw", "preprocessed", "runs")]
    _run(
        "train.py", f"dataset.root={raw}", f"name={name}", f"seed={seed}", f"recipe.loss.component_weight={weight:g}",
        "predict.validation=false", "logger.wandb=false", *paths, *overrides,
    )  # fmt: skip
    run = next((work / "runs" / name).glob(f"*/fold_*/seed_{seed}"))
    _run(
        "predict.py", f"checkpoint={run / 'checkpoints' / 'last.ckpt'}", f"input={raw / 'imagesTs'}",
        f"output={out}", "probabilities=true", "previews=0",
    )  # fmt: skip
    _run(
        "evaluate.py", f"predictions={out}", f"truth={raw / 'labelsTs'}", f"output={out / 'scores'}", "objects=true",
    )  # fmt: skip
    return pandas.read_csv(out / "scores" / "froc.csv")


def _run(*command: str) -> None:
    subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], check=True)


if __name__ == "__main__":
    main()
