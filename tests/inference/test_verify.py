"""The manifest of a prediction, its verification, and labels that do not depend on how they were computed."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba.cli.main import main
from umamba.inference import Predictor, case_queue
from umamba.inference.digests import image_digest, label_digest, weights_digest
from umamba.inference.outputs import Outputs
from umamba.io import UserError, read_image, read_json, write_json
from umamba.networks import build_network
from umamba.records import CheckpointRecord
from umamba.records.checkpoint import NETWORK, store_record
from umamba.settings import InvalidSettings, PredictionSettings, PredictSettings, UNetSettings

MakeModel = Callable[..., Any]
NAMES = ("a", "b")


@pytest.fixture(scope="module")
def checkpoint(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small U-Net of two labels."""
    made = make_model(torch.nn.Identity(), (8, 12, 12), 3, num_channels=1, names=("liver", "spleen"))
    torch.manual_seed(0)
    network = build_network("unet", made.configuration, 1, 3, deep_supervision=False)
    record = CheckpointRecord(made.plan, "3d_fullres", UNetSettings(), made.labels, ("CT",), ".nii.gz")
    content: dict[str, Any] = {"state_dict": {f"{NETWORK}{key}": value for key, value in network.state_dict().items()}}
    store_record(content, record)
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def predicted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/ and their segmentations out/."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        image = sitk.GetImageFromArray(generator.normal(size=(9 + index, 14, 13)).astype(np.float32))
        image.SetSpacing((1.0, 1.1, 1.2))
        sitk.WriteImage(image, str(folder / "images" / f"{name}_0000.nii.gz"))
    predictor(checkpoint).predict(folder / "images", folder / "out", progress=False)
    return folder


@pytest.fixture
def folder(predicted: Path, tmp_path: Path) -> Path:
    """A copy of that folder, whose prediction.json names the copied images."""
    shutil.copytree(predicted, tmp_path / "copy")
    record = read_json(tmp_path / "copy" / "out" / "prediction.json")
    for entry in record["cases"].values():
        entry["images"] = [path.replace(str(predicted), str(tmp_path / "copy")) for path in entry["images"]]
    write_json(tmp_path / "copy" / "out" / "prediction.json", record)
    return tmp_path / "copy"


def predictor(checkpoint: Path) -> Predictor:
    return Predictor.from_checkpoint(checkpoint, device="cpu", precision="32-true", engine="torch")


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, str]]]:
    """Return the function that runs `umamba verify` and returns its exit code and the line of each case."""

    def run(*arguments: str) -> tuple[int, dict[str, str]]:
        code = main(["verify", *arguments])
        lines = [line for line in capsys.readouterr().out.splitlines() if re.match("(yes|no )  ", line)]
        return code, {re.split("[: ]", line[5:])[0]: line for line in lines}

    return run


Verified = Callable[..., tuple[int, dict[str, str]]]


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    record = read_json(file)
    edit(record)
    write_json(file, record)


def test_hashes_are_those_of_the_bytes(predicted: Path, checkpoint: Path) -> None:
    """Against hashlib over bytes that are put together by hand."""
    labels = np.array([[[0, 1], [300, 2]]])
    by_hand = hashlib.sha256(b'[null, "<u2", [1, 2, 2]]' + bytes([0, 0, 1, 0, 44, 1, 2, 0])).hexdigest()
    assert label_digest(labels) == label_digest(labels.astype(np.uint32)) == by_hand
    weights = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor(3, dtype=torch.int64)}
    content = b'["a", "torch.int64", []]' + (3).to_bytes(8, "little")
    content += b'["b", "torch.float32", [2]]' + bytes.fromhex("0000803f000000c0")
    assert weights_digest(weights) == hashlib.sha256(content).hexdigest()
    image = read_image([predicted / "images" / "a_0000.nii.gz"])
    before = image_digest(image)
    moved = replace(image.geometry, origin_xyz=(0.0, 0.0, 1e-6))
    assert image_digest(replace(image, geometry=moved)) != before
    image.array[0, 3, 4, 5] = np.nextafter(image.array[0, 3, 4, 5], np.float32(9))
    assert image_digest(image) != before


def test_each_case_has_an_entry(predicted: Path, checkpoint: Path) -> None:
    record = read_json(predicted / "out" / "prediction.json")
    assert record["tta"] is False  # what earlier versions wrote is still there
    assert record["engine"] == "torch"
    assert sorted(record["cases"]) == list(NAMES)
    for name in NAMES:
        entry = record["cases"][name]
        assert entry["images"] == [str(predicted / "images" / f"{name}_0000.nii.gz")]
        assert entry["result"] == label_digest(
            sitk.GetArrayFromImage(sitk.ReadImage(str(predicted / f"out/{name}.nii.gz")))
        )
        setup = record["setups"][entry["setup"]]
        canonical = json.dumps(setup, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(canonical.encode()).hexdigest() == entry["setup"]
        assert setup["networks"][0]["weights"] == predictor(checkpoint).models[0].weights
        assert setup["code"]["packages"]["torch"]
    assert not Outputs(predicted / "out", ".nii.gz").journal.exists()


def test_what_was_not_changed_is_confirmed(folder: Path, checkpoint: Path, verified: Verified) -> None:
    code, lines = verified(str(folder / "out"))
    assert (code, lines) == (0, {"a": "yes  a", "b": "yes  b"})
    shutil.move(folder / "images", folder / "moved")
    code, lines = verified(str(folder / "out"))
    assert code == 1
    assert "input=FOLDER" in lines["a"]
    copy = shutil.copy(checkpoint, folder / "copy.ckpt")
    code, lines = verified(str(folder / "out"), f"checkpoint={copy}", f"input={folder / 'moved'}")
    assert (code, lines) == (0, {"a": "yes  a", "b": "yes  b"})


def test_a_single_changed_voxel_is_found(folder: Path, verified: Verified) -> None:
    path = folder / "out" / "a.nii.gz"
    image = sitk.ReadImage(str(path))
    image[3, 4, 5] = (image[3, 4, 5] + 1) % 3
    sitk.WriteImage(image, str(path))
    code, lines = verified(str(folder / "out"))
    assert code == 1
    assert "1 of 1638 voxels of a.nii.gz were changed after it was written" in lines["a"]
    assert lines["b"] == "yes  b"
    path = folder / "images" / "b_0000.nii.gz"
    image = sitk.ReadImage(str(path))
    image[3, 4, 5] = image[3, 4, 5] * 1.0001
    sitk.WriteImage(image, str(path))
    code, lines = verified(str(folder / "out"))
    assert code == 1
    assert "is not the one that was segmented" in lines["b"]


def test_a_moved_segmentation_is_found(folder: Path, verified: Verified) -> None:
    """Its voxels are the recorded ones, at another place, in another size, or along other axes."""
    path = folder / "out" / "a.nii.gz"
    written = sitk.ReadImage(str(path))
    edits: tuple[tuple[Callable[[sitk.Image], object], str], ...] = (
        (lambda image: image.SetOrigin((0.0, 0.0, 0.1)), "the origin is 0.1 mm away"),
        (lambda image: image.SetSpacing((1.0, 1.1, 1.3)), "its geometry differs"),
        (lambda image: image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, -1)), "its geometry differs"),
    )
    for edit, said in edits:
        moved = sitk.Image(written)
        edit(moved)
        sitk.WriteImage(moved, str(path))
        code, lines = verified(str(folder / "out"))
        assert (code, lines["b"]) == (1, "yes  b")
        assert lines["a"].startswith("no ")
        assert said in lines["a"]


def test_another_number_of_threads_is_told(folder: Path, verified: Verified, threads: None) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    lines = verified(str(folder / "out"))[1]
    assert f"threads {before} then, {before + 1} now" in lines["a"]


def test_a_single_changed_weight_is_found(folder: Path, checkpoint: Path, verified: Verified) -> None:
    content = torch.load(checkpoint, weights_only=True)
    weight = next(value for value in content["state_dict"].values() if value.dim() > 3)
    flat = weight.view(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))
    torch.save(content, folder / "changed.ckpt")
    code, lines = verified(str(folder / "out"), f"checkpoint={folder / 'changed.ckpt'}")
    assert code == 1
    assert all(line.startswith("no ") and "the weights in" in line for line in lines.values())


def test_the_size_of_tiles_is_recorded_and_repeated(
    predicted: Path, checkpoint: Path, tmp_path: Path, verified: Verified
) -> None:
    asked = Predictor.from_checkpoint(checkpoint, device="cpu", precision="32-true", engine="torch", tile_scale=2)
    asked.predict(predicted / "images", tmp_path / "out", progress=False)
    file = tmp_path / "out" / "prediction.json"
    assert [setup["networks"][0]["tile_scale"] for setup in read_json(file)["setups"].values()] == [2]
    here, there = (read_json(folder / "prediction.json")["cases"] for folder in (tmp_path / "out", predicted / "out"))
    assert all(here[name]["result"] != there[name]["result"] for name in NAMES)
    code, lines = verified(str(tmp_path / "out"))
    assert (code, sorted(lines)) == (0, list(NAMES))


def test_a_single_changed_setting_is_found(folder: Path, verified: Verified) -> None:
    file = folder / "out" / "prediction.json"
    untouched = file.read_text()
    edits: tuple[Callable[[dict[str, Any]], None], ...] = (
        lambda setup: setup.update(tta=True),
        lambda setup: setup.update(tile_step_size=0.25),
        lambda setup: setup["networks"][0].update(precision="bf16-mixed"),
        lambda setup: setup["networks"][0].update(plan="0"),
        lambda setup: setup["code"].update(sources="0"),
        lambda setup: setup.update(post_processing=[[1]]),
    )
    for edit in edits:
        file.write_text(untouched)
        change(file, lambda record, edit=edit: edit(next(iter(record["setups"].values()))))  # type: ignore[misc]
        code, lines = verified(str(folder / "out"))
        assert code == 1
        assert all("were changed after the segmentation" in line for line in lines.values())
    for key in ("result", "image", "setup"):
        file.write_text(untouched)
        change(file, lambda record, key=key: record["cases"]["a"].update({key: "0" * 64}))  # type: ignore[misc]
        code, lines = verified(str(folder / "out"))
        assert (code, lines["a"][:3], lines["b"]) == (1, "no ", "yes  b"), key


def test_other_code_is_told_but_decides_nothing(folder: Path, verified: Verified) -> None:
    """The setup is written anew with its hash, as another version of this program would have written it."""

    def edit(record: dict[str, Any]) -> None:
        ((_, setup),) = record["setups"].items()
        setup["code"]["sources"], setup["code"]["packages"]["numpy"] = "0" * 64, "1.0"
        canonical = json.dumps(setup, sort_keys=True, separators=(",", ":"))
        name = hashlib.sha256(canonical.encode()).hexdigest()
        record["setups"] = {name: setup}
        for entry in record["cases"].values():
            entry["setup"] = name

    change(folder / "out" / "prediction.json", edit)
    code, lines = verified(str(folder / "out"))
    assert code == 0
    assert "other code: umamba" in lines["a"]
    assert "numpy 1.0 then" in lines["a"]


def test_missing_and_foreign_files_are_named(folder: Path, verified: Verified) -> None:
    shutil.copy(folder / "out" / "a.nii.gz", folder / "out" / "stranger.nii.gz")
    (folder / "out" / "b.nii.gz").unlink()
    code, lines = verified(str(folder / "out"))
    assert code == 1
    assert lines["a"] == "yes  a"
    assert "b.nii.gz is missing" in lines["b"]
    assert "has no entry of it" in lines["stranger"]


def test_a_killed_prediction_keeps_its_entries(folder: Path, checkpoint: Path, verified: Verified) -> None:
    """A killed command leaves them in the journal, of which the last line may be cut."""
    outputs = Outputs(folder / "out", ".nii.gz")
    record = read_json(outputs.record)
    cases = record.pop("cases")
    write_json(outputs.record, {**record, "cases": {}})
    lines = [json.dumps({"case": name, **cases[name]}) for name in NAMES]
    outputs.journal.write_text(f"{lines[0]}\n{lines[1][:40]}")
    (folder / "out" / "b.nii.gz").unlink()
    assert verified(str(folder / "out"))[1]["a"] == "yes  a"
    predictor(checkpoint).predict(folder / "images", folder / "out", progress=False)
    assert read_json(outputs.record)["cases"] == cases
    assert not outputs.journal.exists()


def test_an_entry_is_on_disk_before_its_segmentation(
    predicted: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, write = Outputs(tmp_path / "out", ".nii.gz"), case_queue.write_segmentation
    noted: list[tuple[str, str]] = []

    def checked(path: Path, *arguments: Any) -> None:
        lines = outputs.journal.read_text().splitlines()
        noted.append((path.name, json.loads(lines[-1])["case"]))
        write(path, *arguments)

    monkeypatch.setattr(case_queue, "write_segmentation", checked)
    predictor(checkpoint).predict(predicted / "images", tmp_path / "out", PredictionSettings(workers=1), progress=False)
    assert noted == [(f"{name}.nii.gz", name) for name in NAMES]


def test_folders_of_earlier_versions_are_continued(folder: Path, checkpoint: Path, verified: Verified) -> None:
    file = folder / "out" / "prediction.json"
    change(file, lambda record: [record.pop(name) for name in ("cases", "setups", "checkpoints")])
    (folder / "out" / "b.nii.gz").unlink()
    before = (folder / "out" / "a.nii.gz").stat().st_mtime_ns
    assert main(["verify", str(folder / "out")]) == 2
    predictor(checkpoint).predict(folder / "images", folder / "out", progress=False)
    assert (folder / "out" / "a.nii.gz").stat().st_mtime_ns == before
    assert sorted(read_json(file)["cases"]) == ["b"]
    code, lines = verified(str(folder / "out"))
    assert code == 1
    assert (lines["b"], "has no entry of it" in lines["a"]) == ("yes  b", True)
    file.unlink()
    assert main(["verify", str(folder / "out")]) == 2


def test_hostile_records_end_in_a_no_or_one_message(folder: Path, verified: Verified) -> None:
    file = folder / "out" / "prediction.json"
    untouched = file.read_text()

    def with_networks(record: dict[str, Any], networks: object) -> None:
        """Change the networks of the setup, and give it the hash of its new content."""
        setup = next(iter(record["setups"].values()))
        setup["networks"] = networks
        canonical = json.dumps(setup, sort_keys=True, separators=(",", ":"))
        record["cases"]["a"]["setup"] = hashlib.sha256(canonical.encode()).hexdigest()
        record["setups"][record["cases"]["a"]["setup"]] = setup

    edits: tuple[Callable[[dict[str, Any]], object], ...] = (
        lambda record: with_networks(record, [3, *next(iter(record["setups"].values()))["networks"]]),
        lambda record: with_networks(record, {"weights": 3}),
        lambda record: record["cases"]["a"].update(images=["a\0b"]),
        lambda record: record["cases"]["a"].update(images=[]),
        lambda record: record["cases"]["a"].update(images=[3]),
        lambda record: record["cases"]["a"].update(result=None),
        lambda record: record["cases"].update({"../../x": record["cases"]["a"]}),
        lambda record: record.update(setups=[]),
        lambda record: record.update(checkpoints=[3, {}]),
        lambda record: record.update(checkpoints={}),
        lambda record: record.update(cases=7),
    )
    for edit in edits:
        file.write_text(untouched)
        change(file, edit)
        code, lines = verified(str(folder / "out"))
        assert code in (1, 2)
        assert code == 2 or any(line.startswith("no ") for line in lines.values())


def test_a_single_file_is_verified(checkpoint: Path, predicted: Path, tmp_path: Path, verified: Verified) -> None:
    image = predicted / "images" / "a_0000.nii.gz"
    predictor(checkpoint).predict(image, tmp_path / "seg.nii.gz", progress=False)
    assert verified(str(tmp_path / "seg.nii.gz")) == (0, {"a": "yes  a"})


def test_what_is_not_reproducible_is_refused(make_model: MakeModel, checkpoint: Path, tmp_path: Path) -> None:
    good = {"checkpoint": checkpoint, "input": tmp_path, "output": tmp_path / "out", "reproducible": True}
    for key, value, right in (
        ("engine", "openvino", "torch"),
        ("device", "cuda", "cpu"),
        ("precision", "bf16-mixed", "32-true"),
    ):
        with pytest.raises(InvalidSettings, match=f"reproducible=true: needs {key}={right}, not {key}={value}"):
            PredictSettings(**{**good, key: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="reproducible=true: needs precision=32-true"):
        Predictor.from_checkpoint(checkpoint, device="cpu", precision="bf16-mixed", reproducible=True)
    chosen = Predictor.from_checkpoint(checkpoint, reproducible=True).models[0]
    assert (chosen.precision, chosen.engine, chosen.device.type) == ("32-true", "torch", "cpu")


def test_a_reproducible_prediction_is_verified_as_one(
    checkpoint: Path, predicted: Path, tmp_path: Path, verified: Verified
) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, reproducible=True)
    predictor.predict(predicted / "images", tmp_path / "out", progress=False)
    ((_, setup),) = read_json(tmp_path / "out" / "prediction.json")["setups"].items()
    assert setup["networks"][0]["reproducible"] is True
    assert verified(str(tmp_path / "out")) == (0, {"a": "yes  a", "b": "yes  b"})
    with pytest.raises(UserError, match="other settings"):
        Predictor.from_checkpoint(checkpoint, device="cpu").predict(
            predicted / "images", tmp_path / "out", progress=False
        )


def test_why_nothing_can_be_verified(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "q_0000.nii.gz").write_bytes(b"no")
    with pytest.raises(UserError, match="1 of 1 images"):
        predictor(checkpoint).predict(tmp_path / "bad", tmp_path / "none", progress=False)

    def said(output: Path) -> str:
        assert main(["verify", str(output)]) == 2
        return " ".join(capsys.readouterr().err.split())

    failed = said(tmp_path / "none")
    assert "because nothing was segmented there" in failed
    assert "earlier version" not in failed
    file = folder / "out" / "prediction.json"
    change(file, lambda record: record.update(cases={"a": 3}))
    assert "its entries of cases are damaged" in said(folder / "out")
    change(file, lambda record: record.pop("cases"))
    assert "because an earlier version wrote it" in said(folder / "out")
