"""What a cascade adds agrees with nnU-Net's own code: changed shapes of labels, and labels on the second stage's grid.

The environment variable UMAMBA_NNUNET_PYTHON names the Python of an environment with nnunetv2 2.8.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.morphology import ball

from umamba.inference import decide_labels
from umamba.labels import LabelSet
from umamba.labels.masks import one_hot
from umamba.patches.previous_stage import SHAPE_CHANGES
from umamba.preprocessing import resample_image

SCRIPT = """
import sys
import numpy as np, torch
from batchgeneratorsv2.transforms.nnunet import random_binary_operator as own
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from skimage.morphology import ball

given, out = dict(np.load(sys.argv[1])), {}
mask = torch.from_numpy(given["mask"])
for radius in given["radii"]:
    for name in ("dilation", "erosion", "closing", "opening"):
        changed = getattr(own, f"binary_{name}_torch")(mask, torch.from_numpy(ball(radius, dtype=bool)))
        out[f"{name} {radius}"] = changed.numpy()
for name in ("cubes", "slices"):
    spacing = given[f"{name} spacing"].tolist()
    shape, how = given["shape"].tolist(), {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    logits = resample_data_or_seg_to_shape(given["logits"], shape, spacing, spacing, **how)
    out[name] = logits.argmax(0)
out["one hot"] = convert_labelmap_to_one_hot(given["labels"], [1, 2], np.float32)
np.savez(sys.argv[2], **out)
"""


@pytest.mark.slow
def test_it_agrees_with_nnunet(tmp_path: Path) -> None:
    python = os.environ.get("UMAMBA_NNUNET_PYTHON")
    if python is None:
        pytest.skip("needs nnunetv2: UMAMBA_NNUNET_PYTHON=<environment>/bin/python")
    rng = np.random.default_rng(0)
    mask = gaussian_filter(rng.standard_normal((24, 26, 30)), 2) > 0.02
    radii = (1.0, 1.4, 2.0, 2.7, 5.2, 8.0)
    logits = gaussian_filter(rng.standard_normal((3, 12, 20, 18)), (0, 2, 2, 2)).astype(np.float32)
    shape, spacings = (31, 41, 37), {"cubes": (2.0, 2.0, 2.0), "slices": (7.0, 2.0, 2.0)}
    labels = rng.integers(-1, 3, (4, 5, 6)).astype(np.int16)
    np.savez(
        tmp_path / "given.npz",
        mask=mask,
        radii=radii,
        logits=logits,
        shape=shape,
        labels=labels,
        **{f"{name} spacing": np.array(spacing) for name, spacing in spacings.items()},  # type: ignore[arg-type]
    )
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [python, str(tmp_path / "script.py"), str(tmp_path / "given.npz"), str(tmp_path / "theirs.npz")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "theirs.npz") as file:
        theirs = dict(file)

    organs = LabelSet(("liver", "spleen"), ((1,), (2,)))
    for radius in radii:
        for name, change in zip(("dilation", "erosion", "closing", "opening"), SHAPE_CHANGES, strict=True):
            np.testing.assert_array_equal(change(mask, ball(radius, dtype=bool)), theirs[f"{name} {radius}"])
    for name, spacing in spacings.items():
        resampled = torch.from_numpy(resample_image(logits, shape, spacing, spacing, order=1))
        found = decide_labels(3, resampled.__getitem__, organs).numpy()
        assert (found == theirs[name]).mean() > 0.9999  # but for rounding
    assert (theirs["cubes"] != theirs["slices"]).any()
    np.testing.assert_array_equal(one_hot(labels, organs), theirs["one hot"])
