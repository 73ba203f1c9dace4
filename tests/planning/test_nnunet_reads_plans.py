"""nnU-Net loads a plans file that this project wrote and builds the same network from it.

The environment variable UMAMBA_NNUNET_PYTHON names the Python of an environment with nnunetv2 2.8. Without it the test
uses its own Python, or is skipped if that does not have nnunetv2.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from umamba.labels import LabelSet
from umamba.networks import build_network, official_state_dict
from umamba.planning import Fingerprint, Plan, plan_dataset, to_nnunet_plans

SCRIPT = """
import sys, torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

plans, dataset, out = sys.argv[1:]
manager = PlansManager(plans)
dataset = __import__("json").load(open(dataset))
heads = manager.get_label_manager(dataset).num_segmentation_heads
built = {"reader": manager.image_reader_writer_class.__name__, "transpose": manager.transpose_forward}
for name in manager.available_configurations:
    entry = manager.get_configuration(name)
    if entry.previous_stage_name is not None:
        built["cascade"] = {
            "previous_stage": entry.previous_stage_name,
            "next": manager.get_configuration("3d_lowres").next_stage_names,
            "channels": determine_num_input_channels(manager, entry, dataset), "patch_size": list(entry.patch_size),
            "spacing": list(entry.spacing), "batch_dice": entry.batch_dice, "batch_size": entry.batch_size,
        }
        continue
    torch.manual_seed(0)
    network = get_network_from_plans(
        entry.network_arch_class_name, entry.network_arch_init_kwargs, entry.network_arch_init_kwargs_req_import,
        len(dataset["channel_names"]), heads, deep_supervision=False,
    ).eval()
    image = torch.randn(1, len(dataset["channel_names"]), *entry.patch_size)
    resampling = [entry.resampling_fn_data, entry.resampling_fn_seg, entry.resampling_fn_probabilities]
    assert all(callable(function) for function in resampling) and entry.preprocessor_class is not None
    with torch.no_grad():
        built[name] = {
            "state": network.state_dict(), "image": image, "logits": network(image), "batch_size": entry.batch_size,
            "spacing": list(entry.spacing), "batch_dice": entry.batch_dice, "schemes": entry.normalization_schemes,
        }
torch.save(built, out)
"""
DATASET = {
    "channel_names": {"0": "CT", "1": "MR"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "numTraining": 40,
    "file_ending": ".nii.gz",
}


@pytest.fixture(scope="module")
def nnunet_python() -> str:
    """Return a Python that has nnunetv2, or skip."""
    python = os.environ.get("UMAMBA_NNUNET_PYTHON")
    if python is None and importlib.util.find_spec("nnunetv2") is None:
        pytest.skip("needs nnunetv2: UMAMBA_NNUNET_PYTHON=<environment>/bin/python")
    return python or sys.executable


def planned(rules: str) -> Plan:
    """Return a plan of an anisotropic dataset with all three configurations, small enough to run."""
    intensity = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5"), 1.0)
    fingerprint = Fingerprint.from_json(
        {
            "spacings": [[3.0, 0.8, 0.8]] * 40,
            "shapes_after_crop": [[60, 256, 256]] * 40,
            "foreground_intensity_properties_per_channel": {"0": intensity, "1": intensity},
            "median_relative_size_after_cropping": 1.0,
        }
    )
    small: dict[str, Any] = {"features_per_stage": [4, 6, 8, 10]}
    return plan_dataset(
        fingerprint,
        dataset_name="Dataset040_Both",
        channel_names=tuple(DATASET["channel_names"].values()),  # type: ignore[attr-defined]
        num_training=40,
        num_label_entries=LabelSet.from_json(DATASET["labels"], None).num_entries,  # type: ignore[arg-type]
        rules=rules,
        overrides={
            "2d": {**small, "patch_size": [64, 48], "strides": [[1, 1], [2, 2], [2, 2], [2, 2]]},
            "3d_fullres": {**small, "patch_size": [8, 32, 48], "strides": [[1] * 3, [1, 2, 2], [2] * 3, [1, 2, 2]]},
            "3d_lowres": {
                **small,
                "patch_size": [16, 32, 32],
                "spacing": [3.0, 2.0, 2.0],
                "strides": [[1] * 3, [1, 2, 2], [2] * 3, [2] * 3],
            },
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "architecture"), [("nnunet", "unet"), ("resenc_m", "resenc_unet")])
def test_nnunet_builds_the_same_network(nnunet_python: str, tmp_path: Path, rules: str, architecture: str) -> None:
    plan = planned(rules)
    plans, dataset, script, out = (
        tmp_path / name for name in ("nnUNetPlans.json", "dataset.json", "load.py", "out.pt")
    )
    plans.write_text(json.dumps(to_nnunet_plans(plan)))
    dataset.write_text(json.dumps(DATASET))
    script.write_text(SCRIPT)
    command = [nnunet_python, str(script), str(plans), str(dataset), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    built = torch.load(out, weights_only=False)
    assert built.pop("reader") == "SimpleITKIO"
    assert list(built.pop("transpose")) == list(plan.transpose_forward)
    cascade = plan.configuration("3d_cascade_fullres")
    assert built.pop("cascade") == {
        "previous_stage": cascade.previous_stage,
        "next": [cascade.name],
        "channels": cascade.input_channels(2, LabelSet.from_json(DATASET["labels"])),  # type: ignore[arg-type]
        "patch_size": list(cascade.patch_size),
        "spacing": list(cascade.spacing),
        "batch_dice": cascade.batch_dice,
        "batch_size": cascade.batch_size,
    }
    assert set(built) == set(plan.configurations) == {"2d", "3d_fullres", "3d_lowres"}
    for name, theirs in built.items():
        configuration = plan.configuration(name)
        assert theirs["batch_size"] == configuration.batch_size
        assert theirs["spacing"] == list(configuration.spacing)
        assert theirs["batch_dice"] == configuration.batch_dice
        assert theirs["schemes"] == ["CTNormalization", "ZScoreNormalization"]
        network = build_network({"name": architecture}, configuration, 2, 3, deep_supervision=False).eval()
        network.load_state_dict(official_state_dict(theirs["state"]), strict=True)
        with torch.no_grad():
            logits = network(theirs["image"])
        torch.testing.assert_close(logits, theirs["logits"], rtol=1e-4, atol=1e-5)
