"""Label maps from logits: equal to nnU-Net's own, and to hand-made ones of regions, slices and crops."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umamba.inference import logits_to_segmentation
from umamba.io import Geometry
from umamba.labels import LabelSet
from umamba.planning import Configuration, Plan
from umamba.preprocessing import CaseProperties

OURS = ["export_aniso_transposed.npz", "export_iso_softmax.npz"]
SHARED = ["export_aniso_transposed_softmax.npz", "export_iso_softmax.npz"]
IDENTITY = (0, 1, 2)


def plan_for(spacing: tuple[float, ...], forward: tuple[int, ...], backward: tuple[int, ...]) -> tuple[Plan, Any]:
    """Return a plan with one configuration of that target spacing."""
    dim = len(spacing)
    configuration = Configuration(
        name="2d" if dim == 2 else "3d_fullres",
        spacing=spacing,
        median_shape=(32.0,) * dim,
        patch_size=(16,) * dim,
        batch_size=2,
        batch_dice=False,
        normalization=("NoNormalization",),
        use_mask_for_norm=(False,),
        strides=((1,) * dim,),
        kernel_sizes=((3,) * dim,),
        features_per_stage=(4,),
        encoder_blocks=(2,),
        decoder_blocks=(),
        residual_encoder=False,
    )
    plan = Plan(
        dataset_name="Dataset001_Test",
        rules="nnunet",
        transpose_forward=forward,  # type: ignore[arg-type]
        transpose_backward=backward,  # type: ignore[arg-type]
        median_spacing=(1.0, 1.0, 1.0),
        median_shape=(32.0, 32.0, 32.0),
        intensity=(),
        configurations={configuration.name: configuration},
    )
    return plan, configuration


def properties_for(spacing: Any, forward: tuple[int, ...], before: Any, bbox: Any) -> CaseProperties:
    """Return the properties that preprocessing stores for such a case."""
    shape = tuple(int(before[forward.index(axis)]) for axis in range(3))
    geometry = Geometry(tuple(map(float, spacing)), (0.0,) * 3, tuple(np.eye(3).ravel()), shape, False)  # type: ignore[arg-type]
    box = tuple((int(start), int(stop)) for start, stop in bbox)
    return CaseProperties(
        case_id="case",
        geometry=geometry,
        shape_before_crop=tuple(int(length) for length in before),  # type: ignore[arg-type]
        bbox=box,  # type: ignore[arg-type]
        shape_after_crop=tuple(stop - start for start, stop in box),  # type: ignore[arg-type]
    )


def agreement(path: Path) -> float:
    """Return the share of voxels in which our label map of a reference file equals nnU-Net's."""
    reference = np.load(path)
    config = json.loads(str(reference["config"]))
    forward, backward = tuple(config["transpose_forward"]), tuple(config["transpose_backward"])
    labels = LabelSet.from_json(config.get("labels") or config["dataset"]["labels"])
    plan, configuration = plan_for(tuple(config["target_spacing_after_transpose"]), forward, backward)
    bbox = reference["bbox"] if "bbox" in reference else reference["bbox_used_for_cropping"]
    properties = properties_for(reference["spacing"], forward, reference["shape_before_cropping"], bbox)
    segmentation = logits_to_segmentation(reference["logits"], properties, plan, configuration, labels)
    assert segmentation.shape == reference["expected_seg"].shape
    return float((segmentation == reference["expected_seg"]).mean())


@pytest.mark.parametrize("name", OURS)
def test_equals_nnunet(reference_dir: Path, name: str) -> None:
    assert agreement(reference_dir / "export" / name) >= 0.9999


@pytest.mark.parametrize("name", SHARED)
def test_equals_nnunet_on_further_files(shared_dir: Path, name: str) -> None:
    assert agreement(shared_dir / "reference" / "preprocess" / name) >= 0.9999


def test_regions_are_painted_in_order_inside_the_crop() -> None:
    labels = LabelSet(("whole", "core"), ((1, 2), (2,)), region_order=(1, 2))
    plan, configuration = plan_for((1.0, 1.0, 1.0), IDENTITY, IDENTITY)
    properties = properties_for((1, 1, 1), IDENTITY, (4, 5, 6), [(1, 3), (0, 2), (2, 5)])
    logits = np.full((2, 2, 2, 3), -1.0, dtype=np.float32)
    logits[0, 0] = 1.0  # whole
    logits[1, 0, 0] = 1.0  # core within whole
    logits[1, 1, 1, 2] = 1.0  # core alone
    expected = np.zeros((4, 5, 6), dtype=np.uint8)
    expected[1, 0:2, 2:5] = 1
    expected[1, 0, 2:5] = 2
    expected[2, 1, 4] = 2
    segmentation = logits_to_segmentation(logits, properties, plan, configuration, labels)
    assert segmentation.dtype == np.uint8
    np.testing.assert_array_equal(segmentation, expected)


def test_slices_keep_their_own_spacing() -> None:
    labels = LabelSet(("a",), ((1,),))
    plan, configuration = plan_for((1.0, 1.0), (1, 0, 2), (1, 0, 2))
    properties = properties_for((3.0, 2.0, 1.0), (1, 0, 2), (5, 4, 6), [(0, 5), (0, 4), (0, 6)])
    logits = np.zeros((2, 5, 12, 6), dtype=np.float32)  # file axis 0 has 4 voxels of 3 mm, here 12 of 1 mm
    logits[1] = -1
    logits[1, 2, :6] = 1
    segmentation = logits_to_segmentation(logits, properties, plan, configuration, labels)
    expected = np.zeros((4, 5, 6))
    expected[:2, 2] = 1
    np.testing.assert_array_equal(segmentation, expected)


def test_first_of_equal_logits_wins() -> None:
    labels = LabelSet(("a", "b"), ((1,), (2,)))
    plan, configuration = plan_for((1.0, 1.0, 1.0), IDENTITY, IDENTITY)
    properties = replace(properties_for((1, 1, 1), IDENTITY, (2, 2, 2), [(0, 2)] * 3), case_id="ties")
    logits = np.zeros((3, 2, 2, 2), dtype=np.float32)
    assert not logits_to_segmentation(logits, properties, plan, configuration, labels).any()
    logits[1:] = 1
    assert (logits_to_segmentation(logits, properties, plan, configuration, labels) == 1).all()
