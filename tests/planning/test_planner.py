"""The planner against the plans of nnU-Net's planners, and pinned values against the rules applied by hand."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.planning import Fingerprint, Plan, plan_dataset, plan_table, read_nnunet_plans, to_nnunet_plans

RULES = {
    "nnunet_2.8.1": "nnunet",
    "umamba_fork_2024": "umamba",
    "resenc_m": "resenc_m",
    "resenc_l": "resenc_l",
    "resenc_xl": "resenc_xl",
}
CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")


def fingerprint_of(record: Mapping[str, Any]) -> Fingerprint:
    """Read the fingerprint of either layout of the reference files."""
    content = dict(record)
    if "cases" in content:
        cases = [case for case in content.pop("cases") for _ in range(case.get("count", 1))]
        content["spacings"] = [case["spacing"] for case in cases]
        content["shapes_after_crop"] = [case["shape"] for case in cases]
    return Fingerprint.from_json(content)


def plan_of(record: Mapping[str, Any], rules: str, **options: Any) -> Plan:
    """Plan the dataset of a reference record."""
    dataset = record["dataset"]
    labels = LabelSet.from_json(dataset["labels"], dataset.get("regions_class_order"))
    return plan_dataset(
        fingerprint_of(record["fingerprint"]),
        dataset_name="Reference",
        channel_names=tuple((dataset.get("channel_names") or dataset["modality"]).values()),
        num_training=dataset["numTraining"],
        num_label_entries=labels.num_entries,
        rules=rules,
        **options,
    )


def with_cases(record: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    """Return a reference record with other cases."""
    kept = {key: value for key, value in record["fingerprint"].items() if key not in ("spacings", "shapes_after_crop")}
    return {**record, "fingerprint": {**kept, "cases": [case]}}


def differences(plan: Plan, expected: Mapping[str, Any]) -> Iterator[str]:
    """Yield the differences between a plan and nnU-Net's."""
    found = to_nnunet_plans(plan)
    for key in (
        "transpose_forward",
        "transpose_backward",
        "original_median_spacing_after_transp",
        "original_median_shape_after_transp",
    ):
        if found[key] != pytest.approx(expected[key], rel=1e-9, abs=0):
            yield f"{key}: {found[key]} not {expected[key]}"
    for name in CONFIGURATIONS:
        if (name in expected) != (name in plan.configurations):
            yield f"{name} is there: {name in plan.configurations}"
            continue
        if name not in expected:
            continue
        configuration, wanted = found["configurations"][name], expected[name]
        values = {**configuration, **configuration["architecture"]["arch_kwargs"]}
        pools = [sum(step > 1 for step in axis) for axis in zip(*values["strides"], strict=True)]
        values["num_pool_per_axis"] = pools
        for key in set(wanted) - {"network_class_name", "spacing", "next_stage"}:
            if values[key] != wanted[key]:
                yield f"{name}.{key}: {values[key]} not {wanted[key]}"
        if values["spacing"] != pytest.approx(wanted["spacing"], rel=1e-9, abs=0):
            yield f"{name}.spacing: {values['spacing']} not {wanted['spacing']}"


def check_file(path: Path) -> int:
    """Compare every planner of a reference file; return how many."""
    record = json.loads(path.read_text())
    for planner, expected in record["expected"].items():
        assert not list(differences(plan_of(record, RULES[planner]), expected)), f"{path.name} {planner}"
    return len(record["expected"])


@pytest.mark.parametrize("name", ["000", "006", "012", "013", "014", "032", "052"])
def test_plans_are_nnunets(reference_dir: Path, name: str) -> None:
    assert check_file(reference_dir / "planner" / f"{name}.json") == 5


@pytest.mark.slow
@pytest.mark.parametrize("folder", [".", "set_b"])
def test_all_plans_are_nnunets(shared_dir: Path, folder: str) -> None:
    files = sorted((shared_dir / "reference" / "planner" / folder).glob("[0-9]*.json"))
    assert len(files) >= 60
    assert sum(check_file(path) for path in files) >= 5 * 60


def test_table_2_of_the_paper(shared_dir: Path) -> None:
    table = json.loads((shared_dir / "reference" / "planner" / "table2.json").read_text())
    for row in table["rows"]:
        plan = plan_of(table["datasets"][row["fingerprint"]], "umamba")
        configuration = plan.configuration(row["configuration"])
        got = row["umamba_fork_2024"]["got"]
        assert configuration.patch_size == tuple(got["patch_size"])
        assert configuration.batch_size == got["batch_size"]
        assert configuration.num_stages == got["n_stages"]
        reachable = set(row["paper"]) - set(row["umamba_fork_2024"]["mismatch"])
        assert all(got[key] == row["paper"][key] for key in reachable)


@pytest.fixture
def record(reference_dir: Path) -> dict[str, Any]:
    """Return a CT dataset of 158 anisotropic cases: spacing 2.82977, 0.73042, 0.73042, median 114, 512, 512."""
    content: dict[str, Any] = json.loads((reference_dir / "planner" / "000.json").read_text())
    return content


def test_twice_the_memory_allows_twice_the_2d_batch(record: dict[str, Any]) -> None:
    # A patch of 512x512 is the whole median image, so only the batch can grow.
    plans = [plan_of(record, "nnunet", gpu_memory_gb=memory).configuration("2d") for memory in (None, 8, 16)]
    assert plans[0] == plans[1]
    assert plans[2].patch_size == plans[0].patch_size == (512, 512)
    assert abs(plans[2].batch_size - 2 * plans[0].batch_size) <= 1


def test_a_pinned_batch_changes_nothing_else(record: dict[str, Any]) -> None:
    free = plan_of(record, "nnunet")
    pinned = plan_of(record, "nnunet", overrides={"3d_fullres": {"batch_size": 7}})
    assert pinned.configuration("3d_fullres").batch_size == 7
    before, after = free.to_json(), pinned.to_json()
    after["configurations"]["3d_fullres"]["batch_size"] = before["configurations"]["3d_fullres"]["batch_size"]
    assert before == after


def test_a_smaller_pinned_patch_gives_its_own_topology_and_a_larger_batch(record: dict[str, Any]) -> None:
    configuration = plan_of(record, "nnunet", overrides={"3d_fullres": {"patch_size": [16, 64, 64]}}).configuration(
        "3d_fullres"
    )
    # By hand, spacing 2.83, 0.73, 0.73: only in-plane until 1.46 mm; then 16 -> 8 -> 4, and 64 -> 4 in four poolings.
    assert configuration.patch_size == (16, 64, 64)
    assert configuration.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert configuration.features_per_stage == (32, 64, 128, 256, 320)
    assert configuration.batch_size > 2


def test_a_pinned_spacing_changes_the_median_size(record: dict[str, Any]) -> None:
    plan = plan_of(record, "nnunet", overrides={"3d_fullres": {"spacing": [4.0, 2.0, 2.0]}})
    shape = plan.configuration("3d_fullres").median_shape
    assert shape == (81.0, 187.0, 187.0)  # 114 * 2.82977 / 4 = 80.6, 512 * 0.73042 / 2 = 187.0
    assert plan.configuration("2d") == plan_of(record, "nnunet").configuration("2d")


@pytest.mark.parametrize(
    ("pinned", "message"),
    [
        ({"patch_size": [17, 64, 64]}, r"plan.patch_size=\[17, 64, 64\].*\[20, 64, 64\]"),
        ({"patch_size": [64, 64]}, "plan.patch_size.*3 positive"),
        ({"batch_size": 0}, "plan.batch_size=0"),
        ({"features_per_stage": [32, 64]}, "plan.features_per_stage: has 2 entries.*needs 6"),
        ({"normalization": ["CT"]}, "plan.normalization: CT is unknown.*CTNormalization"),
        ({"normalization": ["CTNormalization"] * 2}, "plan.normalization: has 2 entries.*needs 1 for channels"),
        ({"kernel_sizes": [[2, 2, 2]] * 6}, "plan.kernel_sizes: 2 is even"),
        ({"strides": [[2, 2, 2], [2, 2, 2]]}, "plan.strides: the first stage"),
        ({"depth": 3}, "plan.depth cannot be pinned"),
        # What a plan's file and a checkpoint refuse when they are read.
        ({"kernel_sizes": [[65, 3, 3], *[[3, 3, 3]] * 5]}, r"plan\.3d_fullres\.kernel_sizes=.*from 1 to 63"),
        ({"batch_size": 10**7}, r"plan\.3d_fullres\.batch_size=10000000"),
        # micrometres for mm: 114 * 2.82977 / 1000 is no voxel
        ({"spacing": [1000, 730, 730]}, r"plan\.spacing=.*1000.* is so coarse that the median image has 0"),
        ({"strides": [[1, 1, 1], *[[2, 2, 2]] * 7]}, r"no patch fits 8 GB\. Give fewer plan\.strides"),
    ],
)
def test_pinned_values_that_do_not_fit_are_named(record: dict[str, Any], pinned: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(record, "nnunet", overrides={"3d_fullres": pinned})


@pytest.mark.parametrize("rules", ["nnunet", "umamba"])
def test_wide_stacks_of_two_slices_have_a_plan(record: dict[str, Any], rules: str) -> None:
    """Coarser spacings of 3d_lowres would round their slices to none."""
    case = {"count": 20, "spacing": [1.0, 1.0, 1.0], "shape": [2, 3000, 3000]}
    plan = plan_of(with_cases(record, case), rules)
    for name in plan.configurations:
        assert min(plan.configuration(name).median_shape) >= 1
        assert min(plan.configuration(name).patch_size) >= 1
    assert plan.configuration("3d_fullres").patch_size[0] == 2


def test_why_a_configuration_is_absent_is_said(record: dict[str, Any]) -> None:
    case = {"count": 20, "spacing": [1.0, 1.0, 1.0], "shape": [1, 300, 300]}
    flat = plan_of(with_cases(record, case), "nnunet")
    with pytest.raises(UserError, match=r"=3d_fullres: .* Choose one of 2d\. \(only 2d: .* a single slice\)"):
        flat.configuration("3d_fullres")


def test_memory_in_which_no_patch_fits_is_named(record: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"no patch fits 1e-06 GB\. Give a larger planner\.gpu_memory_gb"):
        plan_of(record, "nnunet", gpu_memory_gb=1e-6)


def test_unknown_rules_and_absent_configurations_are_named(record: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"planner.rules=v1 is unknown.*nnunet, umamba"):
        plan_of(record, "v1")
    with pytest.raises(UserError, match="4d is unknown"):
        plan_of(record, "nnunet", overrides={"4d": {"batch_size": 2}})


def test_round_trips(record: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(record, "resenc_m")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    path = tmp_path / "nnUNetPlans.json"
    path.write_text(json.dumps(to_nnunet_plans(plan)))
    read = read_nnunet_plans(path)
    assert read == plan


def test_the_plans_file_of_older_releases_is_read(record: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(record, "umamba")
    content = to_nnunet_plans(plan)
    for name in plan.configurations:
        entry = content["configurations"][name]
        layers = entry.pop("architecture")["arch_kwargs"]
        entry |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 32,
            "unet_max_num_features": 512 if name == "2d" else 320,
            "n_conv_per_stage_encoder": layers["n_conv_per_stage"],
            "n_conv_per_stage_decoder": layers["n_conv_per_stage_decoder"],
            "pool_op_kernel_sizes": layers["strides"],
            "conv_kernel_sizes": layers["kernel_sizes"],
        }
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(content))
    assert read_nnunet_plans(path).configurations == plan.configurations


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"plans\.json"):
        read_nnunet_plans(path)
    with pytest.raises(UserError, match=r"absent.json: there is no such file"):
        read_nnunet_plans(tmp_path / "absent.json")


def test_the_table_and_the_decisions_tell_the_plan(record: dict[str, Any]) -> None:
    plan = plan_of(record, "nnunet")
    table = plan_table(plan)
    assert [str(column.header) for column in table.columns] == ["", "2d", "3d_fullres", "3d_lowres"]
    marked = plan_table(plan, "3d_fullres")
    assert [str(column.header) for column in marked.columns] == ["", "2d", "3d_fullres (trained)", "3d_lowres"]
    told = "\n".join(plan.decisions)
    for fact in ("patch 48, 192, 192", "batch 2;", "3d_lowres: planned", "CTNormalization", "percentile 10"):
        assert fact in told
