"""Files of others, each value of them changed: they load with a possible value, or one UserError names file and key.

Every leaf of a valid small file is replaced by another type, an extreme, or nothing, in a fixed order. No other
exception may come, whatever the value.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from umamba.datasets import list_findings
from umamba.inference.model import Model
from umamba.inference.outputs import Outputs
from umamba.inference.postprocessing import PostProcessing
from umamba.io import UserError, read_json
from umamba.labels import LabelSet
from umamba.networks import build_network, configuration_for_patch
from umamba.networks.official_keys import to_official_state_dict
from umamba.planning import Fingerprint, Intensity, Plan, fold_cases, read_nnunet_plans, to_nnunet_plans
from umamba.preprocessing.store import open_store
from umamba.records import CheckpointRecord, RunFolder, read_checkpoint
from umamba.records.begin import scored_otherwise
from umamba.records.checkpoint import read_weights, store_record
from umamba.records.identity import identity_differences
from umamba.settings import DatasetSettings, RecipeSettings, TrainSettings, UNetSettings
from umamba.sweeps.study_file import read_study

CONFIGURATION = replace(configuration_for_patch((8, 16, 16), spacing=(2.5, 1.0, 1.0)), features_per_stage=(4, 8, 8))
INTENSITY = Intensity(mean=1.5, median=1, std=2, min=-3, max=9, percentile_00_5=-2, percentile_99_5=8)
PLAN = Plan(
    dataset_name="Dataset001_Test",
    rules="nnunet",
    transpose_forward=(1, 0, 2),
    transpose_backward=(1, 0, 2),
    median_spacing=(2.5, 1.0, 1.0),
    median_shape=(12.5, 40.0, 41.0),
    intensity=(INTENSITY,),
    configurations={"3d_fullres": CONFIGURATION},
)
LABELS = LabelSet(("whole", "core"), ((1, 2), (2,)), ignore=3, region_order=(1, 2))
RECORD = CheckpointRecord(
    PLAN,
    "3d_fullres",
    UNetSettings(),
    LABELS,
    ("CT",),
    ".nii.gz",
    recipe=RecipeSettings(),
    mirror_axes=(0, 1, 2),
    provenance={"torch": "2.6"},
    ema_patch_dice=0.5,
)
FINGERPRINT = Fingerprint(((2.5, 1.0, 1.0), (3.0, 1.0, 1.0)), ((8, 16, 16), (9, 16, 16)), (INTENSITY,), 0.9, ("RAS",))
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
    "numTraining": 1,
    "file_ending": ".nii.gz",
    "overwrite_image_reader_writer": "SimpleITKIO",
    "groups": {"a": "patient"},
    "dataset": {"a": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}},
}
# The values that take the place of a leaf.
EXTREMES: tuple[Any, ...] = (
    *(None, True, "", "x", "../../etc", "a\0b", "\ud800", [], {}, [[]], [1, "a"], {"a": {"b": None}}),
    *(-1, 0, 0.5, 2, 4_000_000_000, 10**18, -(10**18), 1e-6, 1e-300, 1e300, math.nan, math.inf, 100_000),
    *([1] * 300, [[1, 1, 1]] * 300),
)


def changed(content: Any, step: int = 1) -> Iterator[tuple[str, Any]]:
    """Yield copies of nested values in each of which one value is another, missing or added, with its place.

    Of `EXTREMES`, every `step`-th takes the place of a value, others at the next place.
    """

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        yield path
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield from places(value[key], (*path, key))

    for index, path in enumerate(places(content, ())):
        name = ".".join(map(str, path))
        if not path:
            yield from ((f"whole file {extreme!r:.20}", extreme) for extreme in EXTREMES)
            continue
        for extreme in (*EXTREMES[index % step :: step], "remove", "add"):
            copied = copy.deepcopy(content)
            holder = copied
            for key in path[:-1]:
                holder = holder[key]
            if extreme == "remove":
                del holder[path[-1]]
            elif extreme == "add":
                entry = holder[path[-1]]
                if not isinstance(entry, dict | list):
                    continue
                entry.append(entry[0] if entry else 1) if isinstance(entry, list) else entry.update({"added": 1})
            else:
                holder[path[-1]] = extreme
            yield f"{name} = {extreme!r:.20}", copied


def check(read: Callable[[Path], Any], path: Path, variants: Iterator[tuple[str, Any]]) -> tuple[int, int]:
    """Read each variant of a JSON file; return how many were refused and how many loaded."""
    refused = loaded = 0
    for name, content in variants:
        path.write_text(json.dumps(content))
        message = refusal(read, path, name)
        refused += message is not None
        loaded += message is None
    return refused, loaded


def refusal(read: Callable[[Path], Any], path: Path, name: str) -> str | None:
    """Read a file; return the message of the UserError that refuses it, None if it loads."""
    try:
        read(path)
    except UserError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{path.name} with {name}: {type(error).__name__}: {error}") from error
    else:
        return None
    assert len(message) < 4000, name
    message.encode()
    return message


def test_plans(tmp_path: Path) -> None:
    content = PLAN.to_json()
    assert Plan.from_json(content) == PLAN
    refused, loaded = check(lambda path: Plan.from_json(read_json(path)), tmp_path / "plan.json", changed(content, 4))
    assert refused > 5 * loaded


@pytest.mark.parametrize("residual", [False, True])
def test_nnunets_plans(tmp_path: Path, residual: bool) -> None:
    plan = Plan(**{**vars(PLAN), "configurations": {"3d_fullres": configuration_for_patch((8, 16, 16))}})
    if residual:
        wide = configuration_for_patch((8, 16, 16), residual_encoder=True)
        plan = Plan(**{**vars(PLAN), "configurations": {"3d_fullres": wide}})
    path = tmp_path / "plans.json"
    refused, loaded = check(read_nnunet_plans, path, changed(to_nnunet_plans(plan), 7))
    assert refused > 100
    assert loaded > 100  # nnU-Net's resampling and layers are read by `foreign_settings` only


def test_earlier_plans_of_nnunet(tmp_path: Path) -> None:
    entry = {
        "data_identifier": "nnUNetPlans_2d",
        "batch_size": 4,
        "patch_size": [32, 32],
        "median_image_size_in_voxels": [40.0, 41.0],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 32,
        "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 2]],
        "conv_kernel_sizes": [[3, 3], [3, 3], [3, 3]],
        "batch_dice": False,
    }
    content = to_nnunet_plans(PLAN) | {"configurations": {"2d": entry, "own": {"inherits_from": "2d"}}}
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(content))
    assert read_nnunet_plans(path).configurations["own"].features_per_stage == (32, 64, 128)
    check(read_nnunet_plans, path, changed(content, 4))


def test_fingerprints(tmp_path: Path) -> None:
    content = FINGERPRINT.to_json()
    assert Fingerprint.from_json(content) == FINGERPRINT
    check(lambda path: Fingerprint.from_json(read_json(path)), tmp_path / "fingerprint.json", changed(content))


def test_datasets(tmp_path: Path) -> None:
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(DATASET))
    dataset, findings = list_findings(tmp_path)
    assert dataset is not None
    assert not findings
    check(lambda path: list_findings(tmp_path), path, changed(DATASET))


def test_splits(tmp_path: Path) -> None:
    content = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    refused, _ = check(lambda path: fold_cases("abc", 0, path), tmp_path / "splits_final.json", changed(content))
    assert refused > 100


def test_post_processing_and_the_record_of_a_prediction(tmp_path: Path) -> None:
    content = {"keep_largest_component": [[1, 2], [1]], "folds": [0]}
    check(PostProcessing.read, tmp_path / "post_processing.json", changed(content))
    record = {"checkpoints": ["a"], "settings": {"tta": True}}
    outputs = Outputs(tmp_path, ".nii.gz")
    check(lambda path: outputs.earlier(record, []), outputs.record, changed(record))
    outputs.record.write_text("")
    with pytest.raises(UserError, match=r"prediction\.json: the file is empty.*overwrite=true"):
        outputs.earlier(record, [])


def test_stores(tmp_path: Path) -> None:
    content = {
        "format": 3,
        "dataset_digest": "0123",
        "configuration": "3d_fullres",
        "plan": {"name": "tested above"},
        "labels": LABELS.to_json(),
        "cases": ["a", "b"],
        "checksums": {"a.image.b2nd": 1},
    }
    check(lambda path: open_store(tmp_path).labels, tmp_path / "store.json", changed(content))


def test_the_state_of_a_run(tmp_path: Path) -> None:
    settings = TrainSettings(dataset=DatasetSettings(root=Path("a")))
    content = {
        "state": "finished",
        "max_epochs": 3,
        "max_seconds": None,
        "early_stopping": [{"name": "EarlyStopping"}],
        "continuations": [{"when": "2026"}],
        "ended_after": 2,
        "identity": {"plan": PLAN.to_json()["rules"], "fold": 0, "recipe": {"name": "nnunet"}},
        "scoring": {"predict": {"tta": True}, "protocol": "generic", "tolerance_mm": 1.0},
        "found_lr": 0.1,
        "precision": "32-true",
    }
    folder = RunFolder(tmp_path)

    def use(path: Path) -> None:
        folder.is_finished(3, None)
        identity_differences(folder.status().get("identity", {}), {"plan": {}, "fold": 0, "recipe": {}})
        scored_otherwise(folder, settings)

    check(use, folder.status_file, changed(content, 3))


def test_studies(tmp_path: Path) -> None:
    content = {"question": "Which?", "runs": ["recipe=unetr seed=1"], "folds": [0, "all"], "seeds": [0]}
    content |= {"comparisons": [["unet", "bot"]]}
    (tmp_path / "mine").mkdir()
    check(lambda path: read_study(tmp_path, "mine"), tmp_path / "mine" / "sweep.yaml", changed(content, 3))


def weights() -> dict[str, torch.Tensor]:
    """Return the weights of a small network of the plan."""
    network = build_network("unet", CONFIGURATION, 1, LABELS.num_classes)
    return {f"network.{name}": tensor for name, tensor in network.state_dict().items()}


def check_saved(read: Callable[[Path], Any], path: Path, variants: Iterator[tuple[str, Any]]) -> int:
    """Read each variant of a file of torch.save; return how many were refused."""
    refused = 0
    for name, content in variants:
        torch.save(content, path)
        message = refusal(read, path, name)
        if message is not None:
            refused += 1
            assert path.name in message or "plans.json" in message, name
    return refused


def test_records_of_checkpoints(tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": {"network.x": torch.zeros(2)}}
    store_record(content, RECORD)
    assert read_checkpoint(saved(tmp_path / "a.ckpt", content)).record == RECORD
    variants = ((name, {**content, "umamba": record}) for name, record in changed(content["umamba"], 9))
    assert check_saved(read_checkpoint, tmp_path / "a.ckpt", variants) > 300


def saved(path: Path, content: Any) -> Path:
    """Write with torch.save."""
    torch.save(content, path)
    return path


def test_hostile_checkpoints(tmp_path: Path) -> None:
    """Values that no file of JSON can hold, and weights that are none."""
    content: dict[str, Any] = {"state_dict": weights()}
    store_record(content, RECORD)
    device = torch.device("cpu")
    Model.from_checkpoint(saved(tmp_path / "a.ckpt", content), device)
    itself: list[Any] = []
    itself.append(itself)
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    doubled: list[Any] = [1]
    for _ in range(60):
        doubled = [doubled, doubled]
    name = next(iter(content["state_dict"]))
    states: list[Any] = [[], {}, {1: torch.zeros(1)}, {name: 5}, {**weights(), name: torch.zeros(1).expand(1 << 40)}]
    states += [{**weights(), name: torch.zeros(2, 2).to_sparse()}, {**weights(), name: torch.zeros(3)}]
    variants: list[tuple[str, Any]] = [
        (f"state {index}", {**content, "state_dict": state}) for index, state in enumerate(states)
    ]
    record = content["umamba"]
    extremes = (itself, deep, doubled, 10**5000, (1, 2), {1: 2}, {(1, 2): 3}, b"bytes", torch.zeros(1), {1, 2})
    for index, value in enumerate(extremes):
        keys = list(record)[index % 3 :: 3]
        variants += [(f"{key}: {type(value).__name__}", {**content, "umamba": {**record, key: value}}) for key in keys]
        variants += [("whole record", {**content, "umamba": value}), ("whole file", value)]
    check_saved(lambda path: Model.from_checkpoint(path, device), tmp_path / "a.ckpt", iter(variants))
    check_saved(read_weights, tmp_path / "a.ckpt", iter(variants[::3]))


def test_networks_of_terabytes_are_refused_before_they_are_built(tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": weights()}
    store_record(content, RECORD)
    plan = content["umamba"]["plan"]
    stages = len(CONFIGURATION.strides)

    def tampered(**values: Any) -> dict[str, Any]:
        configuration = {**plan["configurations"]["3d_fullres"], **values}
        changes = {"plan": {**plan, "configurations": {"3d_fullres": configuration}}}
        return {**content, "umamba": {**content["umamba"], **changes}}

    wide = [{"features_per_stage": [width] * stages} for width in (2048, 16384, 10**9)]
    others: list[dict[str, Any]] = [
        {"strides": [[1, 1, 1]] * 100_000},
        {"strides": [[1, 1, 1], [8, 16, 17]] + [[1, 1, 1]] * (stages - 2)},
        *({"spacing": [2.5, 1.0, mm]} for mm in (1e-6, 1e-5, 0.0, -1.0, math.nan, 1e300)),
        *({"patch_size": [8, 16, size]} for size in (100_000, 0, -16, 16.5, 10**19)),
        {"encoder_blocks": [10**6] * stages},
        {"kernel_sizes": [[3, 3, 10_001]] * stages},
        {"batch_size": 10**12},
    ]
    architectures: list[dict[str, Any]] = [
        {"name": "swinunetr", "feature_size": 12288},
        {"name": "unetr", "hidden_size": 65520, "mlp_dim": 262144},
        {"name": "umamba_enc", "d_state": 4096, "expand": 256},
        {"name": "segresnet", "init_filters": 4096},
        {"name": "umamba_bot", "d_state": 10**9},
    ]
    variants = [(str(values)[:80], tampered(**values)) for values in (*wide, *others)]
    variants += [
        (str(values), {**content, "umamba": {**content["umamba"], "architecture": values}}) for values in architectures
    ]
    path = tmp_path / "a.ckpt"
    assert check_saved(lambda file: Model.from_checkpoint(file, torch.device("cpu")), path, iter(variants)) == len(
        variants
    )


def test_results_folders_of_nnunet(tmp_path: Path) -> None:
    network = build_network("unet", CONFIGURATION, 1, 3)
    plans = to_nnunet_plans(PLAN)
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    content: dict[str, Any] = {
        "network_weights": to_official_state_dict(network.state_dict()),
        "init_args": {"plans": plans, "dataset_json": dataset, "configuration": "3d_fullres", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "current_epoch": 3,
    }
    fold = tmp_path / "results" / "fold_0"
    fold.mkdir(parents=True)
    path = saved(fold / "checkpoint_final.pth", content)
    for name, file in (("plans.json", plans), ("dataset.json", dataset)):
        target = fold.parent / name
        target.write_text(json.dumps(file))
        read_checkpoint(path)
        check(lambda changed_file: read_checkpoint(path), target, iter(list(changed(file, 13))[::3]))
        target.unlink()
    small = {name: torch.zeros(1) for name in list(network.state_dict())[:2]}
    facts = {name: value for name, value in content.items() if name != "network_weights"}
    facts["init_args"] = {**content["init_args"], "plans": {"tested": 1}}
    variants = (
        (name, {**value, "network_weights": small}) for name, value in changed(facts, 7) if isinstance(value, dict)
    )
    check_saved(read_checkpoint, path, variants)
    check_saved(
        read_checkpoint,
        path,
        (
            (name, {**content, "init_args": {**content["init_args"], "plans": value}})
            for name, value in list(changed(plans, 27))[::11]
        ),
    )
