"""Time and memory of scoring 13 organs, compared with the official scripts in the same run.

python benchmarks/evaluation.py --cases 4

Whole commands are measured, from NIfTI files to CSV, on phantoms of 512 x 512 x 100 voxels with 13 labels. The official
side does what the two scripts of U-Mamba's repository do, one after the other and case by case: nibabel reads both
files as floating-point numbers; the first script computes the Dice of each organ, the second DeepMind's surface
distances and the share within the organ's tolerance. It needs nibabel and surface-distance, which
`pip install -e '.[dev]'` installs.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from measuring import machine, measure
from scipy import ndimage

from umamba.evaluation.protocols import ABDOMEN_ORGANS

EVALUATE = Path(__file__).resolve().parents[1] / "evaluate.py"
SHAPE = (100, 512, 512)
OFFICIAL = """
import sys
from pathlib import Path
import nibabel, numpy as np, pandas
import surface_distance as sd
from umamba.evaluation.protocols import ABDOMEN_ORGANS
metric, predictions, truths, output = sys.argv[1:]
rows = []
for path in sorted(Path(predictions).iterdir()):
    image = nibabel.load(Path(truths) / path.name)
    spacing = image.header.get_zooms()
    truth = np.uint8(image.get_fdata())
    prediction = np.uint8(nibabel.load(path).get_fdata())
    row = {"Name": path.name}
    for label, (name, tolerance) in enumerate(ABDOMEN_ORGANS, start=1):
        voxels = [np.sum(array == label) for array in (truth, prediction)]
        if not all(voxels):
            row[f"{name}_{metric}"] = float(not any(voxels))
            continue
        if name in ("Aorta", "IVC", "Esophagus"):
            places = np.where(truth == label)[2]
            first, last = places.min(), places.max()
            true, predicted = truth[:, :, first:last] == label, prediction[:, :, first:last] == label
        else:
            true, predicted = truth == label, prediction == label
        if metric == "DSC":
            score = sd.compute_dice_coefficient(true, predicted)
        else:
            distances = sd.compute_surface_distances(true, predicted, spacing)
            score = sd.compute_surface_dice_at_tolerance(distances, tolerance)
        row[f"{name}_{metric}"] = round(score, 4)
    rows.append(row)
pandas.DataFrame(rows).to_csv(output, index=False)
"""


def write_cases(root: Path, count: int) -> None:
    """Write label maps of 13 ellipsoids of the organs' sizes, and predictions with rough borders."""
    volumes_ml = (1500, 160, 200, 80, 90, 70, 5, 5, 40, 35, 300, 70, 160)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij", sparse=False)).astype(np.float32)
    spacing = np.array((2.5, 0.75, 0.75), dtype=np.float32)
    for case in range(count):
        generator = np.random.default_rng(case)
        truth = np.zeros(SHAPE, dtype=np.uint8)
        for label, volume in sorted(enumerate(volumes_ml, start=1), key=lambda pair: -pair[1]):
            stretch = generator.uniform(0.7, 1.4, 3)
            radii = (volume * 1000 * 3 / (4 * np.pi * stretch.prod())) ** (1 / 3) * stretch / spacing
            centre = [generator.uniform(min(r, s / 2), max(s - r, s / 2)) for r, s in zip(radii, SHAPE, strict=True)]
            distance = sum(((grid[axis] - centre[axis]) / radii[axis]) ** 2 for axis in range(3))
            truth[distance < 1] = label
        shifts = np.stack([ndimage.zoom(generator.normal(0, 1.5, (5, 9, 9)), np.array(SHAPE) / (5, 9, 9), order=1)
                           for _ in range(3)])  # fmt: skip
        moved = [np.clip(np.round(grid[a] + shifts[a]), 0, SHAPE[a] - 1).astype(np.int16) for a in range(3)]
        for folder, array in (("truth", truth), ("prediction", truth[tuple(moved)])):
            (root / folder).mkdir(exist_ok=True)
            image = sitk.GetImageFromArray(array)
            image.SetSpacing([float(value) for value in spacing[::-1]])
            sitk.WriteImage(image, str(root / folder / f"case_{case}.nii.gz"), useCompression=True)


def main() -> None:
    """Write the cases, run both sides, compare their tables and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4, help="number of cases")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="benchmark_") as scratch:
        root = Path(scratch)
        write_cases(root, arguments.cases)
        folders = [str(root / "prediction"), str(root / "truth")]
        theirs = [
            measure([sys.executable, "-c", OFFICIAL, metric, *folders, str(root / f"{metric}.csv")], dict(os.environ))
            for metric in ("DSC", "NSD")
        ]
        command = [sys.executable, str(EVALUATE), f"predictions={folders[0]}", f"truth={folders[1]}"]
        ours = measure(
            [*command, f"output={root / 'ours'}", "protocol=abdomen", "strict_official=true"], dict(os.environ)
        )
        for metric in ("DSC", "NSD"):
            first, second = (
                np.genfromtxt(path, delimiter=",", skip_header=1)[..., 1:]
                for path in (root / f"{metric}.csv", root / "ours" / f"{metric}.csv")
            )
            print(f"{metric}: largest difference of {first.size} scores {np.abs(first - second).max():.1e}")
    seconds, peak = sum(each.seconds for each in theirs), max(each.peak_gb for each in theirs)
    print(f"{arguments.cases} cases, {len(ABDOMEN_ORGANS)} organs   two scripts      ours     ratio")
    print(f"  whole command (s)      {seconds:12.2f} {ours.seconds:9.2f} {seconds / ours.seconds:9.1f}")
    print(f"  peak memory (GB)       {peak:12.2f} {ours.peak_gb:9.2f} {peak / ours.peak_gb:9.1f}")


if __name__ == "__main__":
    main()
