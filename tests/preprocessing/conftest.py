"""Small plans and datasets for the tests of preprocessing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.planning import Configuration, Intensity, Plan


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    """Return a function that makes a plan with one configuration from the values that preprocessing reads."""

    def make(
        spacing: tuple[float, ...],
        normalization: tuple[str, ...] = ("ZScoreNormalization",),
        use_mask: tuple[bool, ...] = (False,),
        transpose: tuple[int, ...] = (0, 1, 2),
        intensity: tuple[Intensity, ...] = (),
    ) -> Plan:
        dim = len(spacing)
        configuration = Configuration(
            name="2d" if dim == 2 else "3d_fullres",
            spacing=spacing,
            median_shape=(32.0,) * dim,
            patch_size=(16,) * dim,
            batch_size=2,
            batch_dice=False,
            normalization=normalization,
            use_mask_for_norm=use_mask,
            strides=((1,) * dim, (2,) * dim),
            kernel_sizes=((3,) * dim,) * 2,
            features_per_stage=(4, 8),
            encoder_blocks=(2, 2),
            decoder_blocks=(2,),
            residual_encoder=False,
        )
        order: Any = transpose
        back: Any = tuple(transpose.index(axis) for axis in range(3))
        return Plan(
            "Dataset001_Test",
            "nnunet",
            order,
            back,
            (1.0,) * 3,
            (32.0,) * 3,
            intensity,
            {configuration.name: configuration},
        )

    return make


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return a raw dataset of three cases with a border of zeros and labels 0, 1, 2."""
    root = tmp_path / "Dataset001_Test"
    rng = np.random.default_rng(0)
    for split in ("imagesTr", "labelsTr"):
        (root / split).mkdir(parents=True)
    for case_id in "abc":
        voxels = np.zeros((8, 20, 24), np.float32)
        voxels[1:-1, 2:-2, 3:-3] = rng.normal(100, 20, (6, 16, 18))
        label = np.zeros(voxels.shape, np.uint8)
        label[2:5, 5:11, 6:12] = 1
        label[2:5, 11:14, 6:12] = 2
        for folder, name, array in (("imagesTr", f"{case_id}_0000", voxels), ("labelsTr", case_id, label)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((1.0, 1.0, 2.0))
            sitk.WriteImage(image, str(root / folder / f"{name}.nii.gz"))
    declared = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(declared))
    return root
