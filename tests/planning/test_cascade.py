"""3d_cascade_fullres: planned where 3d_lowres is, equal to 3d_fullres, read from and written to nnU-Net's plans."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.planning import Fingerprint, Intensity, Plan, parse_nnunet_plans, plan_dataset, plan_table, to_nnunet_plans

CASCADE = "3d_cascade_fullres"
NOTHING: Mapping[str, Any] = MappingProxyType({})


def planned(size: int = 512, overrides: Mapping[str, Any] = NOTHING) -> Plan:
    """Return the plan of cubic images with `size` voxels along an edge."""
    fingerprint = Fingerprint(
        spacings=((1.0, 1.0, 1.0),) * 20,
        shapes_after_crop=((size, size, size),) * 20,
        intensity=(Intensity(0.0, 0.0, 1.0, -1.0, 1.0, -1.0, 1.0),),
        median_relative_size_after_cropping=1.0,
    )
    return plan_dataset(
        fingerprint,
        dataset_name="Dataset001_Cubes",
        channel_names=("CT",),
        num_training=20,
        num_label_entries=3,
        overrides=overrides,
    )


def test_the_cascade_is_3d_fullres_with_the_labels_of_3d_lowres() -> None:
    plan = planned()
    cascade = plan.configuration(CASCADE)
    assert plan.names == ("2d", "3d_fullres", "3d_lowres", CASCADE)
    assert cascade == replace(plan.configuration("3d_fullres"), name=CASCADE, previous_stage="3d_lowres")
    assert cascade.batch_dice  # nnU-Net: 3d_fullres gets it where 3d_lowres is kept


def test_the_table_shows_it_where_it_is_trained() -> None:
    columns = [str(column.header) for column in plan_table(planned(), CASCADE).columns]
    assert columns == ["", "2d", "3d_fullres", "3d_lowres", f"{CASCADE} (trained)"]
    assert len(plan_table(planned(), "2d").columns) == 4


def test_there_is_none_without_3d_lowres() -> None:
    plan = planned(64)
    assert CASCADE not in plan.names
    with pytest.raises(UserError, match="no such configuration, because it has no 3d_lowres"):
        plan.configuration(CASCADE)
    with pytest.raises(
        UserError, match=r"because it has no 3d_lowres \(train one before: .*\), so its values cannot be pinned"
    ):
        planned(64, {CASCADE: {"batch_size": 2}})


def test_pinned_values_are_of_the_cascade_alone() -> None:
    plan = planned(overrides={CASCADE: {"patch_size": [64, 64, 64]}})
    cascade = plan.configuration(CASCADE)
    assert cascade.patch_size == (64, 64, 64) != plan.configuration("3d_fullres").patch_size
    assert (cascade.previous_stage, cascade.batch_dice) == ("3d_lowres", True)
    assert Plan.from_json(plan.to_json()) == plan


def test_plans_without_a_pinned_cascade_are_stored_as_before() -> None:
    content = planned().to_json()
    assert set(content["configurations"]) == {"2d", "3d_fullres", "3d_lowres"}
    assert all("previous_stage" not in entry for entry in content["configurations"].values())


@pytest.mark.parametrize("pinned", [{}, {CASCADE: {"patch_size": [64, 64, 64]}}])
def test_nnunets_plans_file_keeps_the_cascade(pinned: dict[str, Any]) -> None:
    plan = planned(overrides=pinned)
    written = to_nnunet_plans(plan)
    entry = written["configurations"][CASCADE]
    assert entry["previous_stage"] == "3d_lowres"
    assert written["configurations"]["3d_lowres"]["next_stage"] == CASCADE
    if not pinned:
        assert entry == {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}  # as nnU-Net 2.8.1 writes it
    read = parse_nnunet_plans(written, "plans")
    assert read.configuration(CASCADE) == plan.configuration(CASCADE)
    assert set(read.configurations) == set(plan.configurations)


def test_the_network_sees_a_channel_for_each_label_value() -> None:
    plan = planned()
    organs = LabelSet(("liver", "spleen"), ((1,), (2,)), ignore=3)
    regions = LabelSet(("whole", "core"), ((1, 2, 3), (3,)), region_order=(1, 3))
    assert plan.configuration(CASCADE).input_channels(2, organs) == 4
    assert plan.configuration(CASCADE).input_channels(1, regions) == 4
    assert plan.configuration("3d_fullres").input_channels(2, organs) == 2


def test_a_previous_stage_must_be_in_the_plan() -> None:
    content = planned(overrides={CASCADE: {"batch_size": 2}}).to_json()
    for wrong in ("nowhere", CASCADE):
        content["configurations"][CASCADE]["previous_stage"] = wrong
        with pytest.raises(UserError, match=r"previous_stage=.*must be another configuration"):
            Plan.from_json(content)
