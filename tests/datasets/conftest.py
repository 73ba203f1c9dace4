"""A tiny dataset of two channels in nnU-Net's raw layout, valid until a test damages it."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

DATASET_JSON = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "liver": 1, "tumour": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def write_image(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 2.0)) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return its folder: cases a and b for training (a has the labels 0 to 2), c for test."""
    root = tmp_path / "Dataset001_Tiny"
    rng = np.random.default_rng(0)
    for split, case_id in (("Tr", "a"), ("Tr", "b"), ("Ts", "c")):
        for channel in range(2):
            voxels = rng.normal(size=(4, 6, 8)).astype(np.float32)
            write_image(root / f"images{split}" / f"{case_id}_{channel:04d}.nii.gz", voxels)
    for case_id in "ab":
        write_image(root / "labelsTr" / f"{case_id}.nii.gz", rng.integers(0, 3, (4, 6, 8)).astype(np.uint8))
    (root / "dataset.json").write_text(json.dumps(DATASET_JSON))
    return root
