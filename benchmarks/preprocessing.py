"""Time and memory of preparing a dataset, compared with nnU-Net in the same run.

python benchmarks/preprocessing.py --nnunet-bin ENVIRONMENT/bin --dataset PATH/Dataset004_Hippocampus
python benchmarks/preprocessing.py --nnunet-bin ENVIRONMENT/bin --phantoms 6

ENVIRONMENT has nnunetv2 2.8.1. Measured for the 3d_fullres configuration, with the same number of processes:

    whole command       nnUNetv2_plan_and_preprocess, and prepare.py, which also checks the dataset's integrity
    preprocessing alone nnU-Net's preprocess_dataset, and prepare_store, timed around the call in a fresh process
    CPU time            of the whole command's process tree; other work on the machine affects it less than the time
    peak memory         of the whole command's process tree: proportional set size, sampled near its peak (Linux)

All files are read once before, so that neither side waits for the disk.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from measuring import Measured, machine, measure
from scipy import ndimage

from umamba.datasets.phantom import phantom_case

PREPARE = Path(__file__).resolve().parents[1] / "prepare.py"
_ORGANS, _CUT = 5, 12  # organs of the phantom, and slices of a part of an organ
NNUNET_ALONE = """
import sys, time
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
if __name__ == "__main__":
    start = time.perf_counter()
    preprocess_dataset(int(sys.argv[1]), "nnUNetPlans", ("3d_fullres",), (int(sys.argv[2]),), show_progress_bar=False)
    print("seconds", time.perf_counter() - start)
"""
OURS_ALONE = """
import sys, time
from pathlib import Path
from umamba.datasets import read_dataset
from umamba.planning import Plan
from umamba.io import read_json
from umamba.preprocessing import prepare_store
if __name__ == "__main__":
    root, plan, out, processes = sys.argv[1:]
    dataset = read_dataset(Path(root))
    plan = Plan.from_json(read_json(Path(plan))["plan"])
    start = time.perf_counter()
    prepare_store(dataset, "benchmark", plan, "3d_fullres", Path(out), int(processes))
    print("seconds", time.perf_counter() - start)
"""


def seconds_said(measured: Measured) -> float:
    """Return the seconds that one of the two snippets printed."""
    return float(next(line for line in measured.output.splitlines() if line.startswith("seconds")).split()[1])


def write_phantoms(root: Path, count: int, slices: int = 100, classes: int = 6) -> None:
    """Write abdomen phantoms of 512 x 512 voxels a slice; their spacings differ, so that all are resampled.

    Args:
        root: the raw dataset's folder.
        count: number of cases.
        slices: of each case.
        classes: background included; beyond 6, organs are cut at planes of constant Z, and the parts differ by 40 HU.
    """
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        coarse = phantom_case(0, index)
        shape = (slices, 512, 512)
        zoom = np.array(shape) / coarse.image.shape
        image = ndimage.zoom(coarse.image.astype(np.float32), zoom, order=1)
        image += np.random.default_rng(index).normal(0, 12, shape).astype(np.float32)
        label = ndimage.zoom(coarse.label, zoom, order=0)
        if classes > _ORGANS + 1:
            cut_organs(image, label, classes)
        spacing_xyz = (0.7 + 0.04 * index, 0.7 + 0.04 * index, 1.8 + 0.1 * index)
        for name, array in (
            (f"imagesTr/phantom_{index}_0000", np.round(image).astype(np.int16)),
            (f"labelsTr/phantom_{index}", label),
        ):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing(spacing_xyz)
            sitk.WriteImage(volume, str(root / f"{name}.nii.gz"), useCompression=True)
    labels = {"background": 0, **{f"organ {value}": value for value in range(1, classes)}}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": count, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))


def cut_organs(image: np.ndarray, label: np.ndarray, classes: int) -> None:
    """Cut the organs of a phantom into parts in place, each with a label and an intensity of its own."""
    parts = -(-(classes - 1) // _ORGANS)
    for start in range(0, len(label), _CUT):
        part = (start // _CUT) % parts
        for organ in range(1, _ORGANS + 1):
            own = part - (organ + _ORGANS * part >= classes)  # the last part of some organs has no label left
            inside = label[start : start + _CUT] == organ
            label[start : start + _CUT][inside] = organ + _ORGANS * own
            image[start : start + _CUT][inside] += 40 * own


def compare(raw: Path, scratch: Path, nnunet_bin: Path, processes: int, python: str) -> None:
    """Run both sides on a raw dataset and print the figures."""
    number = str(int(raw.name[7:10]))
    for path in raw.rglob("*.nii.gz"):
        path.read_bytes()
    environment = os.environ | {
        "nnUNet_raw": str(raw.parent),
        "nnUNet_preprocessed": str(scratch / "nnunet"),
        "nnUNet_results": str(scratch / "results"),
    }
    plan_and_preprocess = [str(nnunet_bin / "nnUNetv2_plan_and_preprocess"), "-d", number, "-c", "3d_fullres"]
    theirs = measure([*plan_and_preprocess, "-npfp", str(processes), "-np", str(processes)], environment)
    alone = [str(nnunet_bin / "python"), "-c", NNUNET_ALONE, number, str(processes)]
    theirs_alone = seconds_said(measure(alone, environment))

    own = [python, str(PREPARE), f"dataset.root={raw}", f"data.prepare_workers={processes}"]
    ours = measure([*own, f"paths.preprocessed={scratch / 'ours'}"], dict(os.environ))
    (store,) = (scratch / "ours" / raw.name).glob("3d_fullres_*/store.json")
    alone = [python, "-c", OURS_ALONE, str(raw), str(store), str(scratch / "alone"), str(processes)]
    ours_alone = seconds_said(measure(alone, dict(os.environ)))

    print(f"{raw.name}, {processes} process(es)        nnU-Net      ours     ratio")
    for title, first, second, unit in (
        ("whole command", theirs.seconds, ours.seconds, "s"),
        ("preprocessing alone", theirs_alone, ours_alone, "s"),
        ("CPU time", theirs.cpu_seconds, ours.cpu_seconds, "s"),
        ("peak memory", theirs.peak_gb, ours.peak_gb, "GB"),
    ):
        print(f"  {title:24} {first:12.2f} {second:9.2f} {unit:2} {first / second:6.1f}")


def main() -> None:
    """Parse the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet-bin", type=Path, required=True, help="bin folder of an environment with nnunetv2")
    parser.add_argument("--dataset", type=Path, help="raw dataset in a folder named DatasetNNN_NAME")
    parser.add_argument("--phantoms", type=int, default=0, help="number of CT-sized phantoms to compare on")
    parser.add_argument("--processes", type=int, default=2, help="worker processes of each side")
    arguments = parser.parse_args()
    if not arguments.dataset and not arguments.phantoms:
        parser.error("give --dataset, --phantoms, or both")
    print(machine())
    scratch = Path(tempfile.mkdtemp(prefix="benchmark_"))
    try:
        if arguments.dataset:
            raw = arguments.dataset.absolute()
            compare(raw, scratch / "dataset", arguments.nnunet_bin, arguments.processes, sys.executable)
        if arguments.phantoms:
            raw = scratch / "raw" / "Dataset901_CTPhantoms"
            write_phantoms(raw, arguments.phantoms)
            compare(raw, scratch / "phantoms", arguments.nnunet_bin, arguments.processes, sys.executable)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
