"""Official checkpoints: they predict as before; those that would be predicted wrongly are refused.

The U-Mamba ones were written by the official trainers (shared folder, with the outputs of the official networks); the
nnU-Net one by nnU-Net 2.8.1's trainer after one training step (tests/reference/inference, with nnU-Net's output).
"""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba.inference import Predictor
from umamba.io import UserError
from umamba.records import RunFolder, find_checkpoint, read_checkpoint

OFFICIAL = ("nnUNetTrainerUMambaBot__nnUNetPlans__2d", "nnUNetTrainerUMambaEnc__nnUNetPlans__3d_fullres")
NNUNET = ("plain_2d", "residual_3d")


@pytest.fixture(params=[*OFFICIAL, *NNUNET])
def results(request: pytest.FixtureRequest, reference_dir: Path) -> Path:
    """Return an official results folder with expected.npz in it."""
    if request.param in NNUNET:
        return reference_dir / "inference" / request.param
    shared: Path = request.getfixturevalue("shared_dir")
    return shared / "reference/networks/checkpoints/Dataset999_Reference" / request.param


@pytest.fixture
def residual(reference_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of the residual network's results folder, which tests may change."""
    return Path(shutil.copytree(reference_dir / "inference" / "residual_3d", tmp_path / "results"))


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def change(checkpoint: Path, **changes: Any) -> None:
    """Replace entries of a checkpoint; None removes one."""
    content = {**torch.load(checkpoint, weights_only=False), **changes}
    torch.save({key: value for key, value in content.items() if value is not None}, checkpoint)


def test_the_network_gives_the_official_outputs(results: Path) -> None:
    predictor = Predictor.from_checkpoint(results, device="cpu", precision="32-true")
    with np.load(results / "expected.npz") as file:
        arrays = dict(file)
    with torch.no_grad():
        output = predictor.models[0].network.double()(torch.from_numpy(arrays["input"]).double()).numpy()
    if "output64" in arrays:
        assert error(output, arrays["output64"]) < 1e-9
    else:
        assert error(output, arrays["output"]) < 1e-5


def test_the_record_is_complete_without_the_files_beside(results: Path, tmp_path: Path) -> None:
    beside = read_checkpoint(results).record
    lone = shutil.copy(find_checkpoint(results), tmp_path / "lone.pth")
    assert read_checkpoint(Path(lone)).record == beside
    trainer = beside.provenance["trainer"]
    expected = {"nnUNetTrainerUMambaBot": "umamba_bot", "nnUNetTrainerUMambaEnc": "umamba_enc"}
    assert beside.architecture.name in (expected.get(trainer), "unet", "resenc_unet")
    # The trainers of the nnU-Net checkpoints had no data loader, which decides the axes.
    mirrored = {"nnUNetTrainerUMambaBot": (0, 1), "nnUNetTrainerUMambaEnc": (0, 1, 2)}
    assert beside.mirror_axes == mirrored.get(trainer, ())
    assert beside.recipe is None
    assert beside.deep_supervision


def images_in(folder: Path, channels: int) -> Path:
    """Write an image of noise, a file per channel, and return the folder."""
    folder.mkdir()
    values = np.random.default_rng(0).normal(size=(channels, 12, 40, 50)).astype(np.float32)
    for channel, volume in enumerate(values):
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(folder / f"a_{channel:04d}.nii.gz"))
    return folder


def test_a_results_folder_predicts(results: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_checkpoint(results, device="cpu")
    (written,) = predictor.predict(images_in(tmp_path / "images", predictor.num_channels), tmp_path / "out")
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(written)))
    assert segmentation.shape == (12, 40, 50)
    assert set(np.unique(segmentation)) <= {0, 1, 2}


@pytest.mark.slow
def test_predict_takes_a_checkpoint_final(residual: Path, tmp_path: Path, project_dir: Path) -> None:
    said = predict(project_dir, 0, f"checkpoint={find_checkpoint(residual)}", "device=cpu",
                   f"input={images_in(tmp_path / 'images', 2)}", f"output={tmp_path / 'out'}")  # fmt: skip
    assert f"Segmentations in {tmp_path / 'out'}: 1" in said
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def predict(project_dir: Path, code: int, *overrides: str) -> str:
    """Run predict.py and return what it printed; fail with that unless it exits with `code`."""
    command = [sys.executable, str(project_dir / "predict.py"), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["checkpoint_final.pth", "last.ckpt"])
def test_code_in_a_checkpoint_is_not_run(residual: Path, tmp_path: Path, name: str) -> None:
    trace = tmp_path / "executed"
    inside = find_checkpoint(residual).rename(tmp_path / name)
    change(inside, logging=Malicious(trace))
    plain = tmp_path / f"plain_{name}"
    plain.write_bytes(pickle.dumps({"network_weights": Malicious(trace)}))
    assert not trace.exists()
    for offered in (inside, plain):
        with pytest.raises(UserError, match=rf"{offered.name}: not loaded.*could run foreign code"):
            Predictor.from_checkpoint(offered)
        assert not trace.exists()
    torch.load(inside, weights_only=False)  # the payload does work
    assert trace.exists()


def test_predict_refuses_code_in_one_message(residual: Path, tmp_path: Path, project_dir: Path) -> None:
    file, trace = find_checkpoint(residual), tmp_path / "executed"
    change(file, logging=Malicious(trace))
    said = predict(project_dir, 2, f"checkpoint={file}", f"input={tmp_path}", f"output={tmp_path / 'out'}")
    assert said.count("Error:") == 1
    assert f"{file}: not loaded" in said
    assert "Traceback" not in said
    assert not trace.exists()


def test_a_number_of_another_type_is_refused(residual: Path) -> None:
    file = find_checkpoint(residual)
    change(file, logging={"names": np.str_("a name")})
    with pytest.raises(UserError, match=r"checkpoint_final\.pth: not loaded"):
        read_checkpoint(file)


def test_numbers_of_the_curves_are_read_as_plain_ones(tmp_path: Path, residual: Path) -> None:
    file = find_checkpoint(residual)
    numbers = {"a": np.float64(0.5), "b": np.float32(0.25), "c": np.int64(-7), "d": np.bool_(True), "e": np.float16(2)}
    change(file, current_epoch=numbers)
    epochs = read_checkpoint(file).record.provenance["epochs"]
    assert epochs == {"a": 0.5, "b": 0.25, "c": -7, "d": True, "e": 2.0}
    assert all(type(value) in (int, float, bool) for value in epochs.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm_op_kwargs": {"eps": 1e-3, "affine": True}}, "norm_op_kwargs"),
        ({"dropout_op": "torch.nn.Dropout3d"}, "dropout_op"),
        ({"nonlin_kwargs": {"negative_slope": 0.2}}, "nonlin_kwargs"),
        ({"attention": "yes"}, "attention"),
    ],
)
def test_other_layers_than_nnunets_are_refused(residual: Path, changes: dict[str, Any], said: str) -> None:
    plans = json.loads((residual / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(changes)
    (residual / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match=rf"{said}.*Predict it with nnU-Net"):
        read_checkpoint(residual)


def test_another_resampling_is_refused(residual: Path) -> None:
    plans = json.loads((residual / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["resampling_fn_data"] = "resample_torch_fornnunet"
    (residual / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match="resampling_fn_data: resample_torch_fornnunet"):
        read_checkpoint(residual)


def test_the_cascade_of_a_plan_without_its_first_stage_is_refused(residual: Path) -> None:
    plans = json.loads((residual / "plans.json").read_text())
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"]["3d_cascade_fullres"] = cascade
    (residual / "plans.json").write_text(json.dumps(plans))
    file = find_checkpoint(residual)
    change(file, init_args={"configuration": "3d_cascade_fullres"})
    with pytest.raises(UserError, match=r"3d_cascade_fullres: .*no such configuration, because it has no 3d_lowres"):
        read_checkpoint(file)
    change(file, init_args={"configuration": "3d_fullres"})
    assert read_checkpoint(file).record.configuration_name == "3d_fullres"


def test_weights_without_the_channels_of_the_first_stage_are_refused(residual: Path) -> None:
    plans = json.loads((residual / "plans.json").read_text())
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (residual / "plans.json").write_text(json.dumps(plans))
    file = find_checkpoint(residual)
    change(file, init_args={"configuration": "3d_cascade_fullres"})
    assert read_checkpoint(file).record.configuration.previous_stage == "3d_lowres"
    with pytest.raises(UserError, match="do not fit the network resenc_unet"):
        Predictor.from_checkpoint(file)


def test_other_networks_and_parts_are_named(residual: Path) -> None:
    file = find_checkpoint(residual)
    good = torch.load(file, weights_only=False)
    change(file, network_weights={"layers.0.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="nnUNetTrainer built a network that is not known"):
        read_checkpoint(file)
    weights = dict(good["network_weights"])
    weights["encoder.stages.0.blocks.0.conv1.norm.running_mean"] = torch.zeros(1)
    change(file, network_weights=weights)
    with pytest.raises(UserError, match="do not fit the network resenc_unet"):
        Predictor.from_checkpoint(file)
    change(file, init_args=None)
    with pytest.raises(UserError, match="init_args"):
        read_checkpoint(file)


def test_a_lone_checkpoint_without_plans_names_the_file(residual: Path) -> None:
    file = find_checkpoint(residual)
    change(file, init_args={"configuration": "3d_fullres"})
    (residual / "plans.json").unlink()
    with pytest.raises(UserError, match=r"needs .*plans\.json"):
        read_checkpoint(file)


def test_folders_are_searched(residual: Path) -> None:
    file = residual / "fold_0" / "checkpoint_final.pth"
    assert find_checkpoint(file) == find_checkpoint(residual / "fold_0") == find_checkpoint(residual) == file
    shutil.copytree(residual / "fold_0", residual / "fold_1")
    with pytest.raises(UserError, match="fold_0, fold_1"):
        find_checkpoint(residual)
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        find_checkpoint(residual.parent)


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "A" / "3d_fullres" / "fold_0" / "seed_0")
    run.checkpoints.mkdir(parents=True)
    run.best.touch()
    with pytest.raises(UserError, match=r"no checkpoint in this folder\..*the folder of a run"):
        find_checkpoint(run.path)
    run.last.touch()
    assert find_checkpoint(run.path) == find_checkpoint(run.checkpoints) == run.last
