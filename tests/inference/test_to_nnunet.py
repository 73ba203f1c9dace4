"""Export to nnU-Net: nnU-Net itself predicts with the folder what we predict.

The slow test runs nnU-Net in the Python that UMAMBA_NNUNET_PYTHON names, one of an environment with nnunetv2 2.8.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba.inference import load_checkpoint
from umamba.inference.to_nnunet import export_to_nnunet
from umamba.io import UserError
from umamba.networks import build_network
from umamba.planning import Configuration, Intensity, Plan

LABELS = {"labels": {"background": 0, "organ": 1, "lesion": 2}, "regions_class_order": None}


def checkpoint(path: Path, architecture: str, dim: int, **changes: Any) -> Path:
    """Write the checkpoint of a run with random weights, of two channels with anisotropic spacing."""
    kernels = ((1, 3, 3), (3, 3, 3), (3, 3, 3)) if dim == 3 else ((3, 3),) * 3
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2)) if dim == 3 else ((1, 1), (2, 2), (2, 2))
    configuration = Configuration(
        name="3d_fullres" if dim == 3 else "2d",
        spacing=(3.0, 1.2, 1.1)[3 - dim :],
        median_shape=(20.0, 40.0, 50.0)[3 - dim :],
        patch_size=(8, 32, 32)[3 - dim :],
        batch_size=2,
        batch_dice=False,
        normalization=("CTNormalization", "ZScoreNormalization"),
        use_mask_for_norm=(False, False),
        strides=strides,
        kernel_sizes=kernels,
        features_per_stage=(6, 8, 10),
        encoder_blocks=(2, 2, 2),
        decoder_blocks=(1, 1),
        residual_encoder=False,
    )
    intensity = Intensity(
        mean=20.0, median=20.0, std=60.0, min=-500.0, max=500.0, percentile_00_5=-90, percentile_99_5=140
    )
    plan = Plan(
        dataset_name="Dataset901_Export",
        rules="nnunet",
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        median_spacing=(3.0, 1.0, 1.0),
        median_shape=(20.0, 48.0, 55.0),
        intensity=(intensity, intensity),
        configurations={configuration.name: configuration},
    )
    torch.manual_seed(0)
    network = build_network({"name": architecture}, configuration, 2, 3)
    for name, parameter in network.named_parameters():  # nothing of the weights is zero or one
        if name.endswith(("norm.weight", "norm.bias", "conv.bias")):
            torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.3)
    record = {
        "format": 1,
        "plan": plan.to_json(),
        "configuration": configuration.name,
        "architecture": {"name": architecture},
        "labels": LABELS,
        "channel_names": ["CT", "MR"],
        "file_ending": ".nii.gz",
        "recipe": {},
        "mirror_axes": [dim - 1],
        **changes,
    }
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"umamba": json.loads(json.dumps(record)), "state_dict": weights}, path)
    return path


def predicted(folder: Path) -> list[np.ndarray]:
    """Return a folder's segmentations in the order of their names."""
    return [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))]


@pytest.fixture
def nnunet_python() -> Path:
    """Return a Python that has nnunetv2, or skip."""
    python = os.environ.get("UMAMBA_NNUNET_PYTHON")
    if python is None:
        pytest.skip("needs nnunetv2: UMAMBA_NNUNET_PYTHON=<environment>/bin/python")
    return Path(python)


def run(command: list[str], environment: dict[str, str]) -> str:
    """Run a command and return what it printed; fail with that if it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "plan", "patch", "tta"),
    [("unet", "2d", "[32,32]", True), ("unet", "3d_fullres", "[8,32,32]", False),
     ("resenc_unet", "3d_fullres", "[8,32,32]", False)],
)  # fmt: skip
def test_nnunet_predicts_what_a_run_predicted(
    nnunet_python: Path, tmp_path: Path, project_dir: Path, architecture: str, plan: str, patch: str, tta: bool
) -> None:
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    one_thread = {"OMP_NUM_THREADS": "1"}
    ours = {**os.environ, **folders, **one_thread, "nnUNet_results": str(tmp_path / "runs")}
    command = [sys.executable, str(project_dir / "train.py"), "dataset=phantom", "dataset.phantom.num_training=6"]
    command += [
        "dataset.phantom.num_test=2",
        "+dataset.phantom.voxel_mm=6.0",
        f"plan={plan}",
        f"plan.patch_size={patch}",
        "plan.batch_size=2",
    ]
    command += ["plan.features_per_stage=[8,16,32,32]", f"architecture={architecture}", "trainer.max_epochs=2"]
    command += ["trainer.limit_train_batches=80", "trainer.limit_val_batches=1", "trainer.precision=32-true"]
    run([*command, "logger=csv", "logger.panels_every=0", "name=exported", f"predict.tta={str(tta).lower()}"], ours)
    folder = tmp_path / "runs" / "exported" / plan / "fold_0" / "seed_0"
    export = [sys.executable, str(project_dir / "export.py"), f"checkpoint={folder / 'checkpoints' / 'last.ckpt'}"]
    assert "Exported" in run([*export, f"output={tmp_path / 'results'}"], ours)
    command = [str(nnunet_python.parent / "nnUNetv2_predict"), "-d", "Dataset900_Phantom", "-c", plan, "-f", "0"]
    command += ["-i", str(next((tmp_path / "raw").glob("*/imagesTs"))), "-o", str(tmp_path / "theirs")]
    command += ["-device", "cpu", "-npp", "1", "-nps", "1", *([] if tta else ["--disable_tta"])]
    run(command, {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | folders | one_thread)
    mine, other = predicted(folder / "predictions"), predicted(tmp_path / "theirs")
    assert len(mine) == len(other) == 2
    for own, theirs in zip(mine, other, strict=True):
        assert own.any()
        print(architecture, plan, "equal voxels:", (own == theirs).mean())
        assert (own == theirs).mean() >= 0.999


@pytest.mark.parametrize("architecture", ["unet", "resenc_unet"])
def test_what_is_exported_is_read_back(tmp_path: Path, architecture: str) -> None:
    file = checkpoint(tmp_path / "last.ckpt", architecture, 3)
    folder = export_to_nnunet(file, tmp_path / "results")
    assert folder == tmp_path / "results/Dataset901_Export/nnUNetTrainer__nnUNetPlans__3d_fullres"
    ours, theirs = load_checkpoint(file), load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    for key in ("labels", "channel_names", "file_ending", "architecture", "mirror_axes"):
        assert theirs["umamba"][key] == ours["umamba"][key]
    ours["umamba"]["plan"]["configurations"]["3d_fullres"]["residual_encoder"] = architecture == "resenc_unet"
    assert theirs["umamba"]["plan"] == ours["umamba"]["plan"]
    assert theirs["state_dict"].keys() == ours["state_dict"].keys()
    assert all(torch.equal(theirs["state_dict"][key], value) for key, value in ours["state_dict"].items())


def test_regions_and_folds(tmp_path: Path) -> None:
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    file = checkpoint(tmp_path / "last.ckpt", "unet", 2, labels=regions, mirror_axes=[])
    folder = export_to_nnunet(file, tmp_path / "results")
    assert export_to_nnunet(file, tmp_path / "results", fold=3) == folder
    exported = torch.load(folder / "fold_3" / "checkpoint_final.pth", weights_only=True)
    assert exported["inference_allowed_mirroring_axes"] is None
    assert exported["init_args"]["fold"] == 3
    assert json.loads((folder / "dataset.json").read_text())["regions_class_order"] == [1, 2]
    with pytest.raises(UserError, match="is there already"):
        export_to_nnunet(file, tmp_path / "results", fold=3)
    other = checkpoint(tmp_path / "other.ckpt", "unet", 2)
    with pytest.raises(UserError, match=r"dataset\.json: is of another plan or dataset"):
        export_to_nnunet(other, tmp_path / "results", fold=1)
    with pytest.raises(UserError, match="fold=-1"):
        export_to_nnunet(file, tmp_path / "results", fold=-1)


def test_other_architectures_are_refused_in_one_message(tmp_path: Path, project_dir: Path) -> None:
    file = checkpoint(tmp_path / "last.ckpt", "umamba_bot", 2)
    command = [sys.executable, str(project_dir / "export.py"), f"checkpoint={file}", f"output={tmp_path / 'results'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "architecture umamba_bot; nnU-Net itself has unet and resenc_unet only" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()
