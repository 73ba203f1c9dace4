"""An exported network predicts without PyTorch what it predicts with it; damaged and foreign files are refused."""

import hashlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

if any(importlib.util.find_spec(package) is None for package in ("onnx", "onnxruntime")):
    pytest.skip("needs onnx and onnxruntime", allow_module_level=True)

from umamba.cli.compose import settings_of
from umamba.datasets.phantom import phantom_case
from umamba.inference import PostProcessing, Predictor, onnx_export
from umamba.inference.onnx_export import export_to_onnx
from umamba.inference.onnx_standalone import ModelError, Segmenter
from umamba.inference.tiling import tile_starts
from umamba.io import Geometry, Image, UserError
from umamba.networks import build_network
from umamba.networks.conformance import small_configuration
from umamba.planning import Intensity, Plan
from umamba.settings import ExportSettings, PredictionSettings

BACKBONES: dict[str, dict[str, Any]] = {
    "unet": {},
    "resenc_unet": {},
    "umamba_bot": {"d_state": 4},
    "umamba_enc": {"d_state": 4},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "unetr": {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2},
    "swinunetr": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
}
ORGANS = {"labels": {"background": 0, "liver": 1, "spleen": 2}, "regions_class_order": None}
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
SHARE = 0.9999  # of the voxels must have the same label


def write_checkpoint(
    path: Path,
    architecture: str,
    dim: int,
    *,
    channels: int = 1,
    spacing: tuple[float, ...] = (9.0, 7.0, 6.5),
    labels: dict[str, Any] = ORGANS,
    forward: tuple[int, int, int] = (0, 1, 2),
    backward: tuple[int, int, int] = (0, 1, 2),
    reader: str | None = None,
    learn: Callable[..., None] | None = None,
    **changes: Any,
) -> Path:
    """Write the checkpoint of a small network with random weights, or weights of a few steps of training."""
    schemes = {"normalization": ("CTNormalization", "ZScoreNormalization")[:channels], **changes}
    masked = schemes.pop("use_mask_for_norm", (False,) * channels)
    configuration = small_configuration(dim, spacing=spacing[3 - dim :], use_mask_for_norm=masked, **schemes)
    intensity = Intensity(
        mean=60.0, median=60.0, std=80.0, min=-900.0, max=900.0, percentile_00_5=-150.0, percentile_99_5=250.0
    )
    plan = Plan(
        dataset_name="Dataset901_Phantom",
        rules="nnunet",
        transpose_forward=forward,
        transpose_backward=backward,
        median_spacing=(9.0, 8.0, 8.0),
        median_shape=(20.0, 30.0, 40.0),
        intensity=(intensity,) * channels,
        configurations={configuration.name: configuration},
        reader=reader,
    )
    heads = 2 if labels is REGIONS else 3
    torch.manual_seed(1)
    options = {"name": architecture, **BACKBONES[architecture]}
    network = build_network(options, configuration, channels, heads)
    for name, parameter in network.named_parameters():  # so that no weight is exactly zero or one
        if parameter.ndim == 1 and "mamba" not in name:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.3)
    if learn is not None:
        learn(network, configuration.patch_size, channels, threshold=0.4, steps=20)
    record = {
        "format": 1,
        "plan": plan.to_json(),
        "configuration": configuration.name,
        "architecture": options,
        "labels": labels,
        "channel_names": ["CT", "MR"][:channels],
        "file_ending": ".nii.gz",
        "recipe": {},
        "mirror_axes": [dim - 1],
    }
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"umamba": json.loads(json.dumps(record)), "state_dict": weights}, path)
    return path


def phantom(channels: int = 1) -> Image:
    """Return a part of the phantom with zeros around it."""
    case = phantom_case(seed=0, index=0, voxel_mm=9.0)
    array = np.stack([case.image, 900 - case.image // 2][:channels]).astype(np.int16)
    array[:, :2], array[:, :, -3:] = 0, 0
    z, y, x = array.shape[1:]
    geometry = Geometry((10.0, 8.0, 8.5), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), (z, y, x), False)
    return Image(array, geometry)


def compare(
    checkpoint: Path, folder: Path, image: Image, *, step: float = 0.5, tta: bool = False, steps: Any = None
) -> np.ndarray:
    """Export a network, predict with both, and return the labels of ONNX Runtime."""
    post = PostProcessing(steps) if steps else PostProcessing()
    exported = export_to_onnx(checkpoint, folder, post)
    assert exported.difference <= 1e-3
    predictor = Predictor.from_checkpoint(checkpoint, "cpu", "32-true", post, engine="torch")
    expected = predictor.predict_image(image, PredictionSettings(tile_step_size=step, tta=tta))
    found = Segmenter(folder, threads=1).segment(image.array, image.geometry.spacing, step, mirror=tta)
    assert found.dtype == expected.dtype
    assert (found == expected).mean() >= SHARE
    return found


QUICK = {("unet", 2), ("umamba_enc", 2)}


def _marks(name: str, dim: int) -> tuple[pytest.MarkDecorator, ...]:
    if (name, dim) in QUICK:
        return ()
    return (pytest.mark.slow, pytest.mark.nightly) if (name, dim) == ("swinunetr", 3) else (pytest.mark.slow,)


@pytest.mark.parametrize(
    ("name", "dim"),
    [pytest.param(name, dim, marks=_marks(name, dim)) for name in BACKBONES for dim in (2, 3)],
)
def test_labels_are_those_of_pytorch(tmp_path: Path, learn: Callable[..., None], name: str, dim: int) -> None:
    if name in ("segresnet", "unetr", "swinunetr"):
        pytest.importorskip("monai")
    file = write_checkpoint(tmp_path / "last.ckpt", name, dim, learn=learn)
    labels = compare(file, tmp_path / "onnx", phantom(), step=1.0 if dim == 3 else 0.5)
    assert sorted((labels == value).mean() for value in (0, 1, 2))[1] > 0.01  # more than one label


CASES: dict[str, tuple[int, dict[str, Any], bool, Any]] = {
    "two masked channels": (2, {"channels": 2, "use_mask_for_norm": (False, True)}, False, None),
    "axes transposed": (3, {"forward": (2, 0, 1), "backward": (1, 2, 0)}, False, None),
    "a separate axis": (3, {"spacing": (9.0, 2.9, 2.8)}, False, None),
    "regions, mirrored": (2, {"labels": REGIONS}, True, None),
    "rescaled": (2, {"normalization": ("RescaleTo01Normalization",)}, False, ((1,), (2,))),
    "not normalised": (2, {"normalization": ("NoNormalization",)}, True, ((1, 2),)),
}


@pytest.mark.parametrize("case", CASES)
def test_each_step_is_that_of_predict(tmp_path: Path, case: str) -> None:
    dim, options, tta, steps = CASES[case]
    file = write_checkpoint(tmp_path / "last.ckpt", "unet", dim, **options)
    step = 1.0 if dim == 3 else 0.5
    found = compare(file, tmp_path / "onnx", phantom(options.get("channels", 1)), step=step, tta=tta, steps=steps)
    assert len(np.unique(found)) > 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported network that sees slices, and its checkpoint beside it."""
    folder = tmp_path_factory.mktemp("exported")
    export_to_onnx(write_checkpoint(folder / "last.ckpt", "unet", 2), folder / "onnx")
    return folder / "onnx"


@pytest.fixture
def main(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], int]]:
    """Return the main function of the exported script, which imports what lies beside it."""
    monkeypatch.syspath_prepend(exported)
    yield runpy.run_path(str(exported / "predict_onnx.py"))["main"]
    del sys.modules["umamba_onnx"]


def write_nifti(path: Path, image: Image, direction: tuple[float, ...] | None = None) -> Path:
    file = sitk.GetImageFromArray(image.array[0])
    file.SetSpacing(image.geometry.spacing[::-1])
    file.SetOrigin((-40.0, 13.0, 7.0))
    file.SetDirection(direction or image.geometry.direction_xyz)
    sitk.WriteImage(file, str(path))
    return path


def test_the_script_needs_no_torch(tmp_path: Path, exported: Path) -> None:
    """The script that lies beside the model predicts a file in a process in which torch and this project fail."""
    image, output = write_nifti(tmp_path / "a_0000.nii.gz", phantom()), tmp_path / "seg.nii.gz"
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules.update(torch=None, umamba=None)")
    command = [sys.executable, str(exported / "predict_onnx.py"), str(image), "--output", str(output), "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    predictor = Predictor.from_checkpoint(exported.parent / "last.ckpt", "cpu", "32-true", engine="torch")
    (written,) = predictor.predict(image, tmp_path / "ours", progress=False)
    ours, found = sitk.ReadImage(str(written)), sitk.ReadImage(str(output))
    same = sitk.GetArrayFromImage(ours) == sitk.GetArrayFromImage(found)
    assert same.mean() >= SHARE
    for one, other in ((ours.GetSpacing(), found.GetSpacing()), (ours.GetOrigin(), found.GetOrigin())):
        assert np.allclose(one, other, atol=1e-5)
    assert np.allclose(ours.GetDirection(), found.GetDirection(), atol=1e-6)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_images_are_turned_to_ras(tmp_path: Path, main: Callable[[list[str]], int]) -> None:
    """A volume whose file has its axes permuted and reversed; the plan's reader turns it."""
    file = write_checkpoint(tmp_path / "last.ckpt", "unet", 3, reader="NibabelIOWithReorient")
    export_to_onnx(file, tmp_path / "onnx")
    image = write_nifti(tmp_path / "a_0000.nii.gz", phantom(), (0, 0, 1.0, -1.0, 0, 0, 0, 1.0, 0))
    (written,) = Predictor.from_checkpoint(file, "cpu", "32-true", engine="torch").predict(image, tmp_path / "ours")
    assert main([str(image), "--output", str(tmp_path / "a.nii.gz"), "--model", str(tmp_path / "onnx")]) == 0
    ours, found = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (written, tmp_path / "a.nii.gz"))
    assert (ours == found).mean() >= SHARE
    assert len(np.unique(found)) > 1


def test_units_axes_and_damage_of_files(
    tmp_path: Path, exported: Path, main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A volume in metres or with a fourth axis of 1 is the same volume; damaged and coloured files are refused."""
    import nibabel as nib

    file: Any = nib.load(write_nifti(tmp_path / "a.nii.gz", phantom()))
    voxels, affine, scaled = np.asarray(file.dataobj), file.affine, file.affine.copy()
    scaled[:3] /= 1000
    metres = nib.Nifti1Image(voxels, scaled)
    metres.header.set_xyzt_units("meter")
    metres.to_filename(tmp_path / "metres.nii.gz")
    nib.Nifti1Image(voxels[..., None], affine).to_filename(tmp_path / "four.nii.gz")
    found = {}
    for name in ("a", "metres", "four"):
        assert main([str(tmp_path / f"{name}.nii.gz"), "--output", str(tmp_path / "seg.nii.gz")]) == 0, name
        found[name] = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "seg.nii.gz")))
    assert (found["a"] == found["metres"]).all()
    assert (found["a"] == found["four"]).all()

    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[-8] ^= 1  # the checksum of the content
    (tmp_path / "damaged.nii.gz").write_bytes(content)
    colours = np.zeros(voxels.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(colours, affine).to_filename(tmp_path / "colours.nii.gz")
    nib.Nifti1Image(voxels.astype(np.complex64), affine).to_filename(tmp_path / "complex.nii.gz")
    for name, said in (("damaged", "cannot be read as NIfTI"), ("colours", "one real number"), ("complex", "one real")):
        assert main([str(tmp_path / f"{name}.nii.gz"), "--output", str(tmp_path / "none.nii.gz")]) == 2
        error = capsys.readouterr().err
        assert f"{name}.nii.gz" in error
        assert said in error
    assert not (tmp_path / "none.nii.gz").exists()


@pytest.mark.parametrize(("length", "patch", "step"), [(10, 1, 0.5), (10, 1, 1.0), (21, 10, 0.5), (5, 8, 0.5)])
def test_tiles_are_those_of_the_predictor(exported: Path, length: int, patch: int, step: float) -> None:
    along = runpy.run_path(str(exported / "umamba_onnx.py"))["tiles_along"]
    starts = [start for start, _ in along(length, patch, step, 1 / 8)]
    assert starts == [start - max(patch - length, 0) // 2 for start in tile_starts(max(length, patch), patch, step)]


def test_the_same_checkpoint_gives_the_same_files(tmp_path: Path, exported: Path) -> None:
    (tmp_path / "again").mkdir()  # an empty folder is replaced
    again = export_to_onnx(exported.parent / "last.ckpt", tmp_path / "again")
    names = ["model.json", "model.onnx", "predict_onnx.py", "umamba_onnx.py"]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for name in names:
        assert (exported / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert hashlib.sha256((exported / "model.onnx").read_bytes()).hexdigest() == again.sha256
    assert again.size == (exported / "model.onnx").stat().st_size
    with pytest.raises(UserError, match="exists already"):
        export_to_onnx(exported.parent / "last.ckpt", tmp_path / "again")


def test_logits_that_differ_leave_nothing(tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from umamba.inference import onnx_graph

    exact = onnx_graph.onnx_logits
    monkeypatch.setattr(onnx_graph, "onnx_logits", lambda model, tiles: exact(model, tiles) + np.float32(0.1))
    with pytest.raises(UserError, match=r"differ from PyTorch's by 0\.1"):
        export_to_onnx(exported.parent / "last.ckpt", tmp_path / "wrong")
    monkeypatch.setattr(onnx_graph, "onnx_logits", lambda model, tiles: exact(model, tiles) * np.float32(np.nan))
    with pytest.raises(UserError, match="differ"):
        export_to_onnx(exported.parent / "last.ckpt", tmp_path / "wrong")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from umamba.inference import onnx_package

    monkeypatch.setattr(onnx_package, "NEEDED", ("onnx", "package_that_is_absent"))
    with pytest.raises(UserError, match=r"package_that_is_absent, which is not installed.*umamba\[onnx\]"):
        export_to_onnx(tmp_path / "last.ckpt", tmp_path / "onnx")


def changed(exported: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Return a copy of an export with a change to the content of model.json."""
    folder.mkdir()
    content = json.loads((exported / "model.json").read_text())
    change(content)
    (folder / "model.json").write_text(json.dumps(content))
    (folder / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    return folder


def put(*place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for name in place[:-1]:
            content = content[name]
        content[place[-1]] = value

    return change


WRONG = {
    "another version": (put("version", value=2), "is not of format"),
    "no tiling": (lambda content: content.pop("tiling"), "tiling is missing"),
    "endless": (put("tiling", "sigma", value=float("nan")), "NaN"),
    "no step": (put("tiling", "tile_step_size", value=0), "from 0.01 to 1"),
    "a huge patch": (put("tiling", "patch_size", value=[1 << 40, 2]), "patch_size"),
    "another patch": (put("tiling", "patch_size", value=[8, 8]), "has the shapes"),
    "axes": (put("preprocessing", "transpose_backward", value=[1, 0, 2]), "does not undo"),
    "a scheme": (put("channels", value=[{"name": "CT", "normalization": "eval", "use_mask": False}]), "normalization"),
    "no intensity": (lambda content: content["channels"][0].update(intensity=None), "needs intensity"),
    "a path": (put("model", "sha256", value="../model.onnx"), "is not the file"),
    "a list of texts": (put("decision", "values", value=["0", "1"]), "values must hold"),
    "a text": (put("preprocessing", value="none"), "must"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_foreign_description_is_checked(tmp_path: Path, exported: Path, fault: str) -> None:
    change, said = WRONG[fault]
    with pytest.raises(ModelError, match=said if fault != "a text" else "indices"):
        Segmenter(changed(exported, tmp_path / "copy", change))


def test_files_that_cannot_be_read(
    tmp_path: Path, exported: Path, main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = changed(exported, tmp_path / "copy", lambda content: None)
    for content, said in ((b"{" * 5000, "no valid JSON"), (b" " * (2 << 20), "has more than"), (b"\xff\xfe", "JSON")):
        (copy / "model.json").write_bytes(content)
        with pytest.raises(ModelError, match=said):
            Segmenter(copy)
    (copy / "model.json").unlink()
    assert main(["none.nii.gz", "--output", "seg.nii.gz", "--model", str(copy)]) == 2
    assert "cannot be read (No such file" in capsys.readouterr().err
    assert main(["none.nii.gz", "--output", "seg.png", "--model", str(exported)]) == 2
    assert "must end in .nii or .nii.gz" in capsys.readouterr().err
    (tmp_path / "text.nii.gz").write_bytes(b"no image")
    assert main([str(tmp_path / "text.nii.gz"), "--output", str(tmp_path / "a.nii"), "--model", str(exported)]) == 2
    assert "cannot be read as NIfTI" in capsys.readouterr().err
    assert not (tmp_path / "a.nii").exists()


def test_images_that_do_not_fit(exported: Path) -> None:
    segmenter, image = Segmenter(exported), phantom()
    for array, spacing, step, said in (
        (np.zeros((2, 3, 8, 8)), (1, 1, 1), None, r"with the channels CT"),
        (np.full((1, 3, 8, 8), np.inf), (1, 1, 1), None, "infinity"),
        (image.array, (0, 1, 1), None, "spacing"),
        (image.array, (1, 1e9, 1e9), None, "Check its spacing"),
        (image.array, (1, 1, 1), 2.0, "step=2"),
    ):
        with pytest.raises(ModelError, match=said):
            segmenter.segment(array, spacing, step)


def test_the_command_describes_a_checkpoint(tmp_path: Path, exported: Path, messages: pytest.LogCaptureFixture) -> None:
    from umamba.cli.export import main as export

    (tmp_path / "post.json").write_text(json.dumps({"keep_largest_component": [[1], [1, 2]]}))
    names = [f"checkpoint={exported.parent / 'last.ckpt'}", f"output={tmp_path / 'new'}", "format=onnx"]
    export(settings_of(ExportSettings, [*names, f"post_processing={tmp_path / 'post.json'}"]))
    content = json.loads((tmp_path / "new" / "model.json").read_text())
    assert content["post_processing"] == {"keep_largest_component": [[1], [1, 2]]}
    assert content["labels"] == ORGANS
    assert "differ from PyTorch's by at most" in messages.text
    for wrong, said in (
        (["format=onnx", "fold=1"], "has no fold"),
        (["format=share", "trust=mypackage"], "only format=onnx builds"),
        ([f"post_processing={tmp_path / 'post.json'}"], "only format=onnx has this key"),
    ):
        with pytest.raises(UserError, match=said):
            settings_of(ExportSettings, [*names[:2], *wrong])


def test_an_operation_that_onnx_lacks_is_named(tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from umamba.inference import onnx_graph

    known = {name: value for name, value in onnx_graph.OPERATIONS.items() if "instance_norm" not in name}
    monkeypatch.setattr(onnx_graph, "OPERATIONS", known)
    with pytest.raises(UserError, match=r"unet cannot be exported to ONNX: .*aten\.instance_norm\.default"):
        export_to_onnx(exported.parent / "last.ckpt", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
    assert onnx_export.TOLERANCE == 1e-3


def test_a_volume_of_one_slice(exported: Path) -> None:
    image = phantom()
    flat = replace(
        image, array=image.array[:, 5:6], geometry=replace(image.geometry, shape=(1, *image.geometry.shape[1:]))
    )
    predictor = Predictor.from_checkpoint(exported.parent / "last.ckpt", "cpu", "32-true", engine="torch")
    found = Segmenter(exported).segment(flat.array, flat.geometry.spacing)
    assert (found == predictor.predict_image(flat)).mean() >= SHARE
