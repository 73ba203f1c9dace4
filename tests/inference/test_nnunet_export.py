"""Export to nnU-Net: nnU-Net predicts the same with the exported folder.

The slow test runs nnU-Net in the Python that UMAMBA_NNUNET_PYTHON names, one of an environment with nnunetv2 2.8.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from umamba.inference import Predictor, export_to_nnunet
from umamba.inference.onnx_export import export_to_onnx
from umamba.inference.verify import verify
from umamba.io import UserError
from umamba.networks import build_network
from umamba.planning import Configuration, Intensity, Plan
from umamba.records import read_checkpoint
from umamba.runs import predict
from umamba.runs.probe import probe
from umamba.settings import PredictionSettings, PredictSettings, ProbeSettings, VerifySettings

LABELS = {"labels": {"background": 0, "organ": 1, "lesion": 2}, "regions_class_order": None}


def checkpoint(
    path: Path,
    architecture: str,
    dim: int,
    *,
    learn: Callable[..., None] | None = None,
    cascade: bool = False,
    **changes: Any,
) -> Path:
    """Write the checkpoint of a run of two channels with anisotropic spacing; its weights are random, or trained."""
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
    if cascade:
        first = replace(configuration, name="3d_lowres", spacing=(4.0, 2.0, 2.0))
        plan = replace(plan, configurations={**plan.configurations, first.name: first})
        configuration = plan.configuration("3d_cascade_fullres")
    torch.manual_seed(0)
    network = build_network(architecture, configuration, 4 if cascade else 2, 3)
    for name, parameter in network.named_parameters():  # so that no weight is exactly zero or one
        if name.endswith(("norm.weight", "norm.bias", "conv.bias")):
            torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.3)
    if learn is not None:
        learn(network, configuration.patch_size, 2, threshold=0.7, steps=100)
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
    """Return a Python that has nnunetv2, or skip the test."""
    python = os.environ.get("UMAMBA_NNUNET_PYTHON")
    if python is None:
        pytest.skip("needs nnunetv2: UMAMBA_NNUNET_PYTHON=<environment>/bin/python")
    return Path(python)


def write_images(folder: Path) -> Path:
    """Write two smooth images of two channels that fade to their border; their spacing and size are not the plan's."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for case, shape in (("a", (14, 44, 60)), ("b", (9, 50, 38))):
        fading = np.prod(
            np.meshgrid(*(np.sin(np.pi * np.linspace(0, 1, n + 2)[1:-1]) for n in shape), indexing="ij"), 0
        )
        for channel in (0, 1):
            noise = gaussian_filter(rng.normal(size=shape), (1, 3, 3))
            image = sitk.GetImageFromArray((fading * noise / noise.std() * 120 + 20).astype(np.float32))
            image.SetSpacing((0.9, 1.0, 2.5))
            sitk.WriteImage(image, str(folder / f"{case}_{channel:04d}.nii.gz"))
    return folder


def learn_cascade(
    network: torch.nn.Module, patch: tuple[int, ...], channels: int, *, threshold: float, steps: int
) -> None:
    """Teach a network to find bright voxels (1) of the first channel, and elsewhere label 2 of the first stage."""
    generator = np.random.default_rng(1)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(steps):
        smooth = gaussian_filter(generator.normal(size=(2, channels + 1, *patch)), (0, 0, 1, 3, 3))
        noise = torch.from_numpy(smooth / smooth.std()).float()
        stage = noise[:, channels:]
        image = torch.cat([noise[:, :channels], (stage > threshold).float(), (stage < -threshold).float()], 1)
        label = torch.where(image[:, 0] > threshold, 1, 2 * (image[:, -1] > 0))
        loss = torch.nn.functional.cross_entropy(network(image)[0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def write_first_stage(folder: Path, images: Path) -> Path:
    """Write blobs of labels 1 and 2 as the segmentations of the first stage."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    for path in sorted(images.glob("*_0000.nii.gz")):
        image = sitk.ReadImage(str(path))
        noise = gaussian_filter(rng.normal(size=image.GetSize()[::-1]), (1, 4, 4))
        labels = sitk.GetImageFromArray(((noise > 0) + (noise > noise.std())).astype(np.uint8))
        labels.CopyInformation(image)
        sitk.WriteImage(labels, str(folder / path.name.replace("_0000", "")))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "configuration", "tta"),
    [
        ("unet", "2d", False),
        ("unet", "3d_fullres", False),
        ("unet", "3d_fullres", True),
        ("resenc_unet", "3d_fullres", False),
        ("unet", "3d_cascade_fullres", False),
    ],
)
def test_nnunet_predicts_what_we_predict(
    nnunet_python: Path, tmp_path: Path, learn: Callable[..., None], architecture: str, configuration: str, tta: bool
) -> None:
    dim, cascade = 2 if configuration == "2d" else 3, "cascade" in configuration
    changes: dict[str, Any] = {"mirror_axes": list(range(dim))} if tta else {}
    teach = learn_cascade if cascade else learn
    file = checkpoint(tmp_path / "last.ckpt", architecture, dim, learn=teach, cascade=cascade, **changes)
    images = write_images(tmp_path / "images")
    first = write_first_stage(tmp_path / "first", images) if cascade else None
    predictor = Predictor.from_checkpoint(file, device="cpu", precision="32-true")
    predictor.predict(images, tmp_path / "ours", PredictionSettings(tta=tta, previous_stage=first))
    export_to_nnunet(file, tmp_path / "results")
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | folders
    command = [str(nnunet_python.parent / "nnUNetv2_predict"), "-i", str(images), "-o", str(tmp_path / "theirs")]
    command += ["-d", "901", "-c", configuration, "-f", "0", "-device", "cpu"]
    command += [] if first is None else ["-prev_stage_predictions", str(first)]
    command += ["-npp", "1", "-nps", "1", *([] if tta else ["--disable_tta"])]
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = predicted(tmp_path / "ours"), predicted(tmp_path / "theirs")
    assert len(ours) == len(theirs) == 2
    for mine, other in zip(ours, theirs, strict=True):
        print(f"{architecture} {configuration} tta={tta}: {(mine == other).mean():.5%} of the voxels are equal")
        assert (mine == other).mean() >= 0.999
        assert min((mine == value).mean() for value in (0, 1, 2)) > 0.01  # all labels are there


@pytest.mark.parametrize("architecture", ["unet", "resenc_unet"])
def test_a_cascade_is_exported_and_read_back(tmp_path: Path, architecture: str) -> None:
    file = checkpoint(tmp_path / "last.ckpt", architecture, 3, cascade=True)
    folder = export_to_nnunet(file, tmp_path / "results")
    plans = json.loads((folder / "plans.json").read_text())["configurations"]
    assert plans["3d_lowres"]["next_stage"] == "3d_cascade_fullres"
    assert plans["3d_cascade_fullres"]["previous_stage"] == "3d_lowres"
    ours, theirs = read_checkpoint(file), read_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    trained = replace(ours.record.configuration, residual_encoder=architecture == "resenc_unet")
    assert theirs.record.configuration == trained
    assert theirs.record.plan.configuration("3d_fullres") == ours.record.plan.configuration("3d_fullres")
    assert theirs.record.input_channels == ours.record.input_channels == 4
    one, other = (Predictor.from_checkpoint(path, device="cpu", precision="32-true") for path in (file, folder))
    tile = torch.rand(1, 4, 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(one.models[0].network(tile), other.models[0].network(tile))


def test_the_first_stage_segments_before_the_second(tmp_path: Path) -> None:
    first, second = (checkpoint(tmp_path / f"{stage}.ckpt", "unet", 3, cascade=stage == 2) for stage in (1, 2))
    images = write_images(tmp_path / "images")
    both = PredictSettings(
        checkpoint=second,
        previous_checkpoint=first,
        input=images,
        output=tmp_path / "both",
        previews=0,
        engine="torch",
        tile_step_size=1.0,
    )
    assert predict(both) == predict(both)  # continued: nothing is left to do
    alone = Predictor.from_checkpoint(first, device="cpu", engine="torch")
    alone.predict(images, tmp_path / "alone", PredictionSettings(tile_step_size=1.0), progress=False)
    for one, other in zip(predicted(tmp_path / "alone"), predicted(tmp_path / "both/previous_stage"), strict=True):
        np.testing.assert_array_equal(one, other)
    predict(replace(both, previous_checkpoint=None, previous_stage=tmp_path / "alone", output=tmp_path / "again"))
    for one, other in zip(predicted(tmp_path / "both"), predicted(tmp_path / "again"), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="previous_checkpoint: none of the networks of checkpoint is the second stage"):
        predict(replace(both, checkpoint=first, output=tmp_path / "wrong"))
    with pytest.raises(UserError, match=r"2\.ckpt: is itself the second stage of a cascade"):
        predict(replace(both, previous_checkpoint=second, output=tmp_path / "wrong"))
    verdicts = list(verify(VerifySettings(predictions=tmp_path / "both")))
    assert len(verdicts) == 2
    assert all(not each.same and "depend on files of the first" in each.reason for each in verdicts)
    names = {"labels": {"background": 0, "lesion": 1, "organ": 2}, "regions_class_order": None}
    unlike = checkpoint(tmp_path / "other.ckpt", "unet", 3, labels=names)
    with pytest.raises(UserError, match=r"other\.ckpt: has other labels than .*2\.ckpt"):
        predict(replace(both, previous_checkpoint=unlike, output=tmp_path / "wrong"))


def test_a_cascade_cannot_be_used_without_its_first_stage(tmp_path: Path) -> None:
    file, images = checkpoint(tmp_path / "last.ckpt", "unet", 3, cascade=True), write_images(tmp_path / "images")
    needs = r"last\.ckpt: is the second stage of a cascade, whose input needs the segmentation of the first, 3d_lowres"
    with pytest.raises(UserError, match=needs):
        probe(ProbeSettings(checkpoint=file, images=images, output=tmp_path / "probe"))
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    with pytest.raises(UserError, match=needs):
        export_to_onnx(file, tmp_path / "onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "images"}


@pytest.mark.parametrize("architecture", ["unet", "resenc_unet"])
def test_what_is_exported_is_read_back(tmp_path: Path, architecture: str) -> None:
    file = checkpoint(tmp_path / "last.ckpt", architecture, 3)
    folder = export_to_nnunet(file, tmp_path / "results")
    assert folder == tmp_path / "results/Dataset901_Export/nnUNetTrainer__nnUNetPlans__3d_fullres"
    ours, theirs = read_checkpoint(file), read_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    for name in ("labels", "channel_names", "file_ending", "architecture", "mirror_axes"):
        assert getattr(theirs.record, name) == getattr(ours.record, name)
    trained = replace(ours.record.configuration, residual_encoder=architecture == "resenc_unet")
    assert theirs.record.plan == replace(ours.record.plan, configurations={"3d_fullres": trained})
    assert theirs.weights.keys() == ours.weights.keys()
    assert all(torch.equal(theirs.weights[name], value) for name, value in ours.weights.items())


def test_regions_and_folds(tmp_path: Path) -> None:
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    file = checkpoint(tmp_path / "last.ckpt", "unet", 2, labels=regions, mirror_axes=[])
    folder = export_to_nnunet(file, tmp_path / "results")
    assert export_to_nnunet(file, tmp_path / "results", fold=3) == folder
    exported = torch.load(folder / "fold_3" / "checkpoint_final.pth", weights_only=True)
    assert exported["inference_allowed_mirroring_axes"] is None
    assert exported["init_args"]["fold"] == 3
    assert json.loads((folder / "dataset.json").read_text())["regions_class_order"] == [1, 2]
    with pytest.raises(UserError, match="exists already"):
        export_to_nnunet(file, tmp_path / "results", fold=3)
    other = checkpoint(tmp_path / "other.ckpt", "unet", 2)
    with pytest.raises(UserError, match=r"dataset\.json: belongs to another plan or dataset"):
        export_to_nnunet(other, tmp_path / "results", fold=1)
    with pytest.raises(UserError, match="fold=-1"):
        export_to_nnunet(file, tmp_path / "results", fold=-1)


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "..", "", "a\\b", "x" * 300, "a\nb"])
def test_a_checkpoint_cannot_choose_another_folder(tmp_path: Path, name: str) -> None:
    file = checkpoint(tmp_path / "last.ckpt", "unet", 2)
    content = torch.load(file, weights_only=True)
    content["umamba"]["plan"]["dataset_name"] = name
    torch.save(content, file)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="cannot be the name of a file or folder"):
        export_to_nnunet(file, tmp_path / "results")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("ending", ["/../../outside.nii.gz", "/x.nii.gz"])
def test_a_checkpoints_file_ending_stays_in_the_output(tmp_path: Path, ending: str) -> None:
    file = checkpoint(tmp_path / "last.ckpt", "unet", 2, file_ending=ending)
    images, output = write_images(tmp_path / "images"), tmp_path / "a" / "b"
    with pytest.raises(UserError, match=r"cannot be the name of a file|file_ending"):
        Predictor.from_checkpoint(file).predict(images, output)
    outside = [path for path in tmp_path.rglob("*.nii.gz") if images not in path.parents]
    assert outside == []


def test_other_architectures_are_refused_in_one_message(tmp_path: Path, project_dir: Path) -> None:
    file = checkpoint(tmp_path / "last.ckpt", "umamba_bot", 2)
    command = [sys.executable, str(project_dir / "export.py"), f"checkpoint={file}", f"output={tmp_path / 'results'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "architecture umamba_bot; nnU-Net itself has unet and resenc_unet only" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()
