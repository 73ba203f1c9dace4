"""A checkpoint to give away: it predicts the same, and names no machine, user, path or case."""

import getpass
import socket
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba.cli.main import main
from umamba.inference import Predictor, export_to_nnunet
from umamba.io import UserError, read_label
from umamba.records import RunFolder, read_checkpoint
from umamba.records.checkpoint import read_weights
from umamba.records.share import share_checkpoint
from umamba.records.zoo import zoo_weights
from umamba.runs import PreparedDataset
from umamba.runs.fit import fit

HOST = "host-of-the-clinic"


@pytest.fixture
def run(small_fit: Callable[..., RunFolder]) -> RunFolder:
    """Return a trained run whose checkpoint also names what those of early versions did."""
    folder = small_fit("trainer.max_epochs=1")
    content = torch.load(folder.last, weights_only=True)
    content["umamba"]["pretrained"] = str(folder.path / "secret.ckpt")
    content["umamba"]["provenance"] |= {
        "host": HOST,
        "command": ["train.py", f"dataset.root={folder.path}"],
        "system": "Linux-6.1.0-18-amd64-x86_64-with-glibc2.36",
    }
    torch.save(content, folder.last)
    return folder


def all_bytes(path: Path) -> bytes:
    """Return a file's bytes, and those of its parts when decompressed."""
    with zipfile.ZipFile(path) as archive:
        return b"\n".join([path.read_bytes(), *(archive.read(name) for name in archive.namelist())])


def test_a_shared_checkpoint_predicts_the_same_and_names_nobody(
    run: RunFolder, prepared: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "out" / "liver.ckpt"
    assert main(["export", f"checkpoint={run.path}", f"output={shared}", "format=share"]) == 0
    assert "no case, path, machine or user" in capsys.readouterr().out
    before, after = torch.load(run.last, weights_only=True), torch.load(shared, weights_only=True)
    assert {"optimizer_states", "loops", "callbacks"} <= before.keys()
    assert after.keys() == {"umamba", "state_dict"}
    assert all(torch.equal(before["state_dict"][name], value) for name, value in after["state_dict"].items())
    assert after["umamba"]["plan"] == before["umamba"]["plan"]
    half = torch.load(share_checkpoint(run.last, tmp_path / "half.ckpt", half=True), weights_only=True)["state_dict"]
    assert {value.dtype for value in half.values()} == {torch.float16}
    assert all(torch.equal(value.half(), half[name]) for name, value in after["state_dict"].items())
    assert next(Predictor.from_checkpoint(tmp_path / "half.ckpt").models[0].network.parameters()).dtype == torch.float32
    assert after["umamba"]["pretrained"] == "another checkpoint"
    facts = before["umamba"]["provenance"]
    assert after["umamba"]["provenance"] == {name: facts[name] for name in ("umamba", "python", "packages", "git")}

    names = [HOST, "dataset.root", "amd64", "secret", str(tmp_path), str(prepared.dataset.root), str(Path.home())]
    names += [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 5]  # "root" is a word, too
    names += [f"/home/{getpass.getuser()}", *prepared.store.case_ids]
    found = all_bytes(shared)
    assert [name for name in names if name.encode() in found] == []
    with zipfile.ZipFile(shared) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"archive"}
        assert {entry.date_time[:3] for entry in archive.infolist()} <= {(1980, 0, 0), (1980, 1, 1)}

    weights = sum(value.nbytes for value in after["state_dict"].values())
    assert weights < shared.stat().st_size < weights + 400 * len(after["state_dict"]) + 20_000
    (tmp_path / "probe").touch()
    assert stat.S_IMODE(shared.stat().st_mode) == stat.S_IMODE((tmp_path / "probe").stat().st_mode)

    again = share_checkpoint(shared, tmp_path / "again.ckpt")
    assert again.read_bytes() == shared.read_bytes() == share_checkpoint(run.last, tmp_path / "b.ckpt").read_bytes()

    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).normal(size=(12, 30, 20)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(images / "a_0000.nii.gz"))
    for name, checkpoint in (("one", run.last), ("two", shared)):
        Predictor.from_checkpoint(checkpoint).predict(images, tmp_path / name)
    one, two = (read_label(next((tmp_path / name).glob("a.*"))) for name in ("one", "two"))
    assert len(np.unique(one.array)) > 1
    np.testing.assert_array_equal(one.array, two.array)


def test_a_shared_checkpoint_can_be_exported_and_fine_tuned(
    run: RunFolder, prepared: PreparedDataset, make_settings: Callable[..., Any], tmp_path: Path
) -> None:
    shared = share_checkpoint(run.last, tmp_path / "liver.ckpt")
    stored = read_weights(shared)
    weights, labels = stored.weights, stored.labels
    assert labels == prepared.labels
    assert weights.keys() == read_checkpoint(run.last).weights.keys()
    ours, theirs = (
        torch.load(export_to_nnunet(file, tmp_path / name) / "fold_0" / "checkpoint_final.pth", weights_only=True)
        for name, file in (("a", run.last), ("b", shared))
    )
    assert ours["init_args"] == theirs["init_args"]
    assert all(torch.equal(ours["network_weights"][name], theirs["network_weights"][name]) for name in weights)
    exported = all_bytes(next((tmp_path / "a").rglob("*.pth")))
    assert socket.gethostname().encode() not in exported
    assert str(tmp_path).encode() not in exported

    from umamba.runs.identity import checkpoint_record

    settings = make_settings("trainer.max_epochs=1", f"pretrained={shared}")
    folder = RunFolder(tmp_path / "tuned")
    with folder.lock():
        fit(settings, prepared, folder, checkpoint_record(settings, prepared))
    assert read_checkpoint(folder.last).record.pretrained == str(shared)


def test_a_view_does_not_carry_what_it_hides(run: RunFolder, tmp_path: Path) -> None:
    content = torch.load(run.last, weights_only=True)
    name, value = next((name, value) for name, value in content["state_dict"].items() if value.ndim > 3)
    hidden = torch.cat([value.flatten(), torch.full((50_000,), 7.25)])
    content["state_dict"][name] = hidden[: value.numel()].view(value.shape)
    torch.save(content, tmp_path / "view.ckpt")
    shared = share_checkpoint(tmp_path / "view.ckpt", tmp_path / "out.ckpt")
    assert torch.full((100,), 7.25).numpy().tobytes() not in all_bytes(shared)
    assert torch.equal(torch.load(shared, weights_only=True)["state_dict"][name], value)


def test_what_cannot_be_shared_is_refused(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.ckpt").write_text("old")
    with pytest.raises(UserError, match=r"old\.ckpt: exists already"):
        share_checkpoint(run.last, tmp_path / "old.ckpt")
    content = torch.load(run.last, weights_only=True)
    content["umamba"]["architecture"] = {"name": "mine.nets:build", "weights": "/home/someone/weights.pt"}
    torch.save(content, tmp_path / "path.ckpt")
    with pytest.raises(UserError, match=r"path\.ckpt: its entry architecture\.weights is the path /home/someone"):
        share_checkpoint(tmp_path / "path.ckpt", tmp_path / "new.ckpt")
    assert not (tmp_path / "new.ckpt").exists()
    for wrong, said in (("output=x.ckpt fold=1", "has no fold"), ("output=x", "ends in .ckpt")):
        assert main(["export", f"checkpoint={run.last}", "format=share", *wrong.split()]) == 2
        assert said in capsys.readouterr().err


def test_a_network_of_the_zoo_is_shared(tmp_path: Path) -> None:
    assert main(["export", "checkpoint=zoo:phantom", f"output={tmp_path / 'phantom.ckpt'}", "format=share"]) == 0
    (packaged,) = zoo_weights(Path("zoo:phantom"))
    given, shared = (read_checkpoint(path, trust=None) for path in (packaged, tmp_path / "phantom.ckpt"))
    assert given.weights.keys() == shared.weights.keys()
    assert all(torch.equal(given.weights[name], shared.weights[name]) for name in given.weights)
