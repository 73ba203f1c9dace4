"""Checkpoints: read as they were written, refused with a clear message, and never executed."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks import configuration_for_patch
from umamba.planning import Intensity, Plan
from umamba.records import CheckpointRecord, network_weights, read_checkpoint
from umamba.records.checkpoint import load_safely, store_record, stored_patch_dice
from umamba.settings import (
    CustomArchitectureSettings,
    OptimizerSettings,
    RecipeSettings,
    ScheduleSettings,
    UMambaEncSettings,
    UNetSettings,
)

CONFIGURATION = configuration_for_patch((8, 16, 16), spacing=(2.5, 1.0, 1.0))
PLAN = Plan(
    dataset_name="Dataset001_Test",
    rules="nnunet",
    transpose_forward=(1, 0, 2),
    transpose_backward=(1, 0, 2),
    median_spacing=(2.5, 1.0, 1.0),
    median_shape=(12.5, 40.0, 41.0),
    intensity=(Intensity(mean=1.5, median=1, std=2, min=-3, max=9, percentile_00_5=-2, percentile_99_5=8),),
    configurations={"3d_fullres": CONFIGURATION},
)
TWO_CHANNELS = replace(
    PLAN,
    intensity=PLAN.intensity * 2,
    configurations={
        "3d_fullres": replace(
            CONFIGURATION,
            normalization=CONFIGURATION.normalization * 2,
            use_mask_for_norm=CONFIGURATION.use_mask_for_norm * 2,
        )
    },
)
REGIONS = LabelSet(("whole", "core"), ((1, 2), (2,)), ignore=3, region_order=(1, 2))
RECORD = CheckpointRecord(PLAN, "3d_fullres", UNetSettings(), LabelSet(("organ",), ((1,),)), ("CT",), ".nii.gz")

# As `checkpoint_record` and the LightningModule wrote it while architecture and recipe were plain dicts: of
# architecture=umamba_enc recipe=nnunet augmentation.mirror=[0,1] recipe.gradient_clip_norm=10.
EARLIER_ARCHITECTURE = {
    "name": "umamba_enc",
    "mamba_stages": [0, 2],
    "blocks": "official",
    "full_resolution_skip": "official",
    "decoder_upsampling": "nearest",
    "mamba": True,
    "residual": False,
    "d_state": 16,
    "d_conv": 4,
    "expand": 2,
    "scan_backend": "auto",
    "scan_directions": "forward",
}
EARLIER_RECIPE = {
    "name": "nnunet",
    "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-05},
    "schedule": {"name": "poly", "exponent": 0.9},
    "loss": {
        "dice_weight": 1.0,
        "cross_entropy_weight": 1.0,
        "class_weights": None,
        "focal_gamma": 0.0,
        "tversky": None,
    },
    "deep_supervision": True,
    "gradient_clip_norm": 10,
    "oversample_foreground": 0.33,
    "ema_momentum": 0.9,
    "weight_averaging": None,
}
EARLIER = {
    "format": 1,
    "plan": TWO_CHANNELS.to_json(),
    "configuration": "3d_fullres",
    "architecture": EARLIER_ARCHITECTURE,
    "labels": REGIONS.to_json(),
    "channel_names": ["T1", "T2"],
    "file_ending": ".nii.gz",
    "recipe": EARLIER_RECIPE,
    "pretrained": "runs/other/last.ckpt",
    "mirror_axes": [0, 1],
    "provenance": {"umamba": "0.1.0", "torch": "2.6.0"},
    "fingerprint_hash": "0123abcd",
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


RECORDS = [
    RECORD,
    CheckpointRecord(
        plan=TWO_CHANNELS,
        configuration_name="3d_fullres",
        architecture=UMambaEncSettings(mamba_stages=(0, 2), d_state=8),
        labels=REGIONS,
        channel_names=("T1", "T2"),
        file_ending=".mha",
        recipe=RecipeSettings(
            name="own",
            optimizer=OptimizerSettings(name="adamw", lr=1e-3, betas=(0.9, 0.95)),
            schedule=ScheduleSettings(name="cosine", minimum=0.1),
            deep_supervision=False,
        ),
        pretrained="other.ckpt",
        mirror_axes=(),
        provenance={"torch": "2.6", "dirty": False},
        fingerprint_hash="0123",
        ema_patch_dice=0.75,
    ),
    CheckpointRecord(
        plan=PLAN,
        configuration_name="3d_fullres",
        architecture=CustomArchitectureSettings("umamba.networks.mine:build_mine", {"width": 8, "kinds": ["a"]}),
        labels=REGIONS,
        channel_names=("CT",),
        file_ending=".nii.gz",
    ),
]


@pytest.mark.parametrize("record", RECORDS, ids=["plain", "all entries", "custom architecture"])
def test_a_record_comes_back_from_json_and_from_a_checkpoint(record: CheckpointRecord, tmp_path: Path) -> None:
    stored = record.to_json()
    assert json.loads(json.dumps(stored)) == stored
    assert CheckpointRecord.from_json(stored) == record
    content: dict[str, Any] = {"state_dict": {"network.x": torch.arange(3), "loss.weight": torch.zeros(1)}}
    store_record(content, record)
    assert stored_patch_dice(content) == record.ema_patch_dice
    checkpoint = read_checkpoint(save(tmp_path / "a.ckpt", content))
    assert checkpoint.record == record
    assert checkpoint.path == tmp_path / "a.ckpt"
    assert list(checkpoint.weights) == ["x"]
    assert checkpoint.weights["x"].tolist() == [0, 1, 2]


def test_a_checkpoint_of_plain_dicts_is_the_same_record(tmp_path: Path) -> None:
    expected = CheckpointRecord(
        plan=TWO_CHANNELS,
        configuration_name="3d_fullres",
        architecture=UMambaEncSettings(mamba_stages=(0, 2)),
        labels=REGIONS,
        channel_names=("T1", "T2"),
        file_ending=".nii.gz",
        recipe=RecipeSettings(gradient_clip_norm=10.0),
        pretrained="runs/other/last.ckpt",
        mirror_axes=(0, 1),
        provenance={"umamba": "0.1.0", "torch": "2.6.0"},
        fingerprint_hash="0123abcd",
        ema_patch_dice=0.5,
    )
    content = {"umamba": {**EARLIER, "scores": {"ema_patch_dice": 0.5}}, "state_dict": {}}
    record = read_checkpoint(save(tmp_path / "a.ckpt", content)).record
    assert record == expected
    assert record.configuration == TWO_CHANNELS.configurations["3d_fullres"]
    assert record.num_channels == 2
    assert record.deep_supervision
    before_the_first_score = {**EARLIER, "scores": {"ema_patch_dice": None}}
    assert CheckpointRecord.from_json(before_the_first_score).ema_patch_dice is None


def test_weights_of_the_network_alone() -> None:
    state = {"network.a.weight": torch.ones(1), "loss.network.weight": torch.zeros(1)}
    assert list(network_weights(state)) == ["a.weight"]


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    path = save(tmp_path / "a.ckpt", {"umamba": RECORD.to_json(), "state_dict": {}, "extra": Malicious(trace)})
    plain = tmp_path / "b.ckpt"
    plain.write_bytes(pickle.dumps(Malicious(trace)))
    for file in (path, plain):
        with pytest.raises(UserError, match=file.name):
            read_checkpoint(file)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short", b"\x80\x04"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.ckpt"):
        read_checkpoint(path)


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.ckpt", {"umamba": RECORD.to_json(), "state_dict": {"network.x": torch.zeros(5000)}})
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"cut\.ckpt"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {}}, r"not the plan and labels.*train\.py"),
        ([1, 2], r"not the plan and labels.*train\.py"),
        ({"umamba": EARLIER}, r"not the plan and labels.*train\.py"),
        ({"umamba": {**EARLIER, "format": 7}, "state_dict": {}}, r"other\.ckpt: has checkpoint format 7"),
        (
            {"umamba": {key: value for key, value in EARLIER.items() if key != "plan"}, "state_dict": {}},
            r"other\.ckpt: the checkpoint lacks plan\. Give a",
        ),
        (
            {"umamba": {**EARLIER, "architecture": {"name": "umamba_enk"}}, "state_dict": {}},
            r"other\.ckpt: architecture\.name=umamba_enk.*Did you mean umamba_enc\? Give a",
        ),
        ({"umamba": {**EARLIER, "plan": {}}, "state_dict": {}}, r"other\.ckpt: .*missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_checkpoint(save(tmp_path / "other.ckpt", content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_flipped_bits_are_found_or_harmless(tmp_path: Path) -> None:
    """torch.load alone reads weights with flipped bits without a word."""
    random = torch.Generator().manual_seed(0)
    state = {f"layer.{number}": torch.randn(40, 30, generator=random) for number in range(3)}
    whole = bytearray(save(tmp_path / "whole.ckpt", {"state_dict": state, "epoch": 3}).read_bytes())
    path, found, harmless = tmp_path / "flipped.ckpt", 0, 0
    for place in torch.randint(0, 8 * len(whole), (300,), generator=random).tolist():
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            loaded = load_safely(path)
        except UserError:
            found += 1
        else:
            harmless += 1
            assert loaded["epoch"] == 3
            assert all(torch.equal(loaded["state_dict"][name], tensor) for name, tensor in state.items())
    assert found + harmless == 300
    assert found > 250


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """torch.save packs nothing; 40 MB of zeros in 40 kB would stand for any number of bytes."""
    path = save(tmp_path / "bomb.ckpt", {"state_dict": {}})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/0", bytes(40_000_000))
    with pytest.raises(UserError, match=r"bomb\.ckpt: is damaged \(a part of it is compressed"):
        load_safely(path)
