"""Checkpoints: refused with a clear message, and never executed."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from umamba.inference import load_checkpoint
from umamba.io import UserError

RECORD: dict[str, Any] = {
    "format": 1,
    "plan": {},
    "configuration": "2d",
    "architecture": {"name": "unet"},
    "labels": {},
    "channel_names": ["CT"],
    "file_ending": ".nii.gz",
    "recipe": {},
}


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def save(path: Path, content: Any) -> Path:
    """Write with torch.save."""
    torch.save(content, path)
    return path


def test_a_good_one_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", {"umamba": RECORD, "state_dict": {"network.x": torch.arange(3)}})
    content = load_checkpoint(path)
    assert content["umamba"] == RECORD
    assert content["state_dict"]["network.x"].tolist() == [0, 1, 2]


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    path = save(tmp_path / "a.ckpt", {"umamba": RECORD, "state_dict": {}, "extra": Malicious(trace)})
    plain = tmp_path / "b.ckpt"
    plain.write_bytes(pickle.dumps(Malicious(trace)))
    for file in (path, plain):
        with pytest.raises(UserError, match=file.name):
            load_checkpoint(file)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short", b"\x80\x04"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.ckpt"):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.ckpt", {"umamba": RECORD, "state_dict": {"network.x": torch.zeros(5000)}})
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"cut\.ckpt"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {}}, "train.py"),
        ([1, 2], "train.py"),
        ({"umamba": RECORD}, "train.py"),
        ({"umamba": {**RECORD, "format": 7}, "state_dict": {}}, "format 7"),
        ({"umamba": {key: value for key, value in RECORD.items() if key != "plan"}, "state_dict": {}}, "lacks plan"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_checkpoint(save(tmp_path / "other.ckpt", content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path / "none.ckpt")
