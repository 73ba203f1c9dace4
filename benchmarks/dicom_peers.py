"""Read segmentations and contours in DICOM by other programs and compare each voxel's place in the patient.

    python benchmarks/dicom_peers.py make FOLDER    # here: series in 48 orders of axes, oblique, tilted, their results
    python benchmarks/dicom_peers.py read FOLDER    # where these are: dcmqi dcmrtstruct2nii 'pydicom<3' SimpleITK

`read` needs nothing of this project. It prints for each program and kind of series in how many of them each label has
exactly the voxels of the truth, at the same places (in mm, within 0.001).
"""

import importlib.util
import itertools
import json
import logging
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {1: "liver", 2: "left kidney", 3: "blob"}


def make(folder: Path) -> None:
    """Write the series of the tests with their results and their truth.

    Args:
        folder: a new folder.
    """
    tests = Path(__file__).resolve().parents[1] / "tests" / "inference" / "test_dicom_results.py"
    spec = importlib.util.spec_from_file_location("dicom_results", tests)
    assert spec is not None
    assert spec.loader is not None
    known: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(known)
    cases = itertools.product(range(24), known.EULER, (0.0, 15.0), (False, True))
    for number, (axes, obliquity, tilt, backwards) in enumerate(cases):
        own = folder / f"{number:03d}"
        directions = known.turned(known.RIGHT_ANGLES[axes], obliquity)
        series = known.Series(own / "series", directions, tilt, backwards)
        for form in ("dicom_seg", "rtstruct"):
            series.write(form, known.MARKER)
        truth = {
            "axes": series.axes.tolist(),
            "positions": [position.tolist() for position in series.positions],
            "spacing": known.SPACING,
            "tilt": tilt,
            "labels": known.MARKER.tolist(),
        }
        (own / "truth.json").write_text(json.dumps(truth))
    print(f"{number + 1} series in {folder}")


def centres(truth: dict[str, Any], label: int) -> np.ndarray:
    """Return the places of a label's voxels, (N, 3) in mm."""
    z, y, x = np.nonzero(np.array(truth["labels"]) == label)
    (along, down), (height, width) = np.array(truth["axes"]), truth["spacing"]
    return np.array(truth["positions"])[z] + x[:, None] * width * along + y[:, None] * height * down


def places(file: Path) -> np.ndarray:
    """Return the places of an image's non-zero voxels, (N, 3) in mm."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(file))
    indices = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1].tolist()
    return np.array([image.TransformIndexToPhysicalPoint(index) for index in indices])


def compared(found: np.ndarray, wanted: np.ndarray) -> str:
    """Return how two sets of places compare."""
    if len(found) != len(wanted):
        return f"{len(found)} voxels instead of {len(wanted)}"
    distances = np.linalg.norm(found[:, None] - wanted[None], axis=2)
    same = max(distances.min(0).max(), distances.min(1).max()) < 1e-3
    return "exact" if same else "as many voxels, elsewhere"


def by_dcmqi(own: Path) -> dict[int, Path]:
    """Convert a segmentation by dcmqi's segimage2itkimage."""
    program = Path(sys.executable).with_name("segimage2itkimage")
    (own / "dcmqi").mkdir(exist_ok=True)
    files = ["--inputDICOM", own / "dicom_seg.dcm", "--outputDirectory", own / "dcmqi", "--outputType", "nrrd"]
    subprocess.run([program, *files, "--prefix", "p"], check=True, capture_output=True)
    return {number: own / "dcmqi" / f"p-{number}.nrrd" for number in NAMES}


def by_dcmrtstruct2nii(own: Path) -> dict[int, Path]:
    """Convert contours by dcmrtstruct2nii."""
    from dcmrtstruct2nii import dcmrtstruct2nii

    dcmrtstruct2nii(str(own / "rtstruct.dcm"), str(own / "series"), str(own / "nii"))
    found = sorted((own / "nii").glob("mask_*"))
    return {number: next(file for file in found if name.split()[-1] in file.name) for number, name in NAMES.items()}


def read(folder: Path) -> None:
    """Print how other programs read the results.

    Args:
        folder: that `make` filled.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    counts: Counter[tuple[str, str, str]] = Counter()
    for own in sorted(path.parent for path in folder.glob("*/truth.json")):
        truth = json.loads((own / "truth.json").read_text())
        for name, convert in (("dcmqi", by_dcmqi), ("dcmrtstruct2nii", by_dcmrtstruct2nii)):
            files = convert(own)
            results = {compared(places(files[label]), centres(truth, label)) for label in NAMES}
            kind = "tilted" if truth["tilt"] else "not tilted"
            counts[name, kind, "; ".join(sorted(results))] += 1
    for (name, kind, result), count in sorted(counts.items()):
        print(f"{name}, {kind}: {count} series {result}")


if __name__ == "__main__":
    {"make": make, "read": read}[sys.argv[1]](Path(sys.argv[2]))
