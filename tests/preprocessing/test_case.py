"""Preprocessing against nnU-Net's results, and its errors."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from umamba.io import Geometry, Image, UserError
from umamba.labels import LabelSet
from umamba.planning import Intensity, Plan
from umamba.preprocessing import CaseProperties, preprocess_case

Maker = Callable[..., Plan]
LABELS = LabelSet(("one", "two"), ((1,), (2,)))
FILES = ("00_ct_anisotropic_separate_z", "02_mr_transposed_separate_z_downsample", "03_rgb_2d_no_resampling")


def image_of(array: np.ndarray, spacing: tuple[float, ...]) -> Image:
    """Return an image (C, Z, Y, X) with an identity direction."""
    identity = tuple(np.eye(3).ravel().tolist())
    depth, height, width = array.shape[1:]
    z, y, x = spacing
    return Image(array, Geometry((z, y, x), (0.0, 0.0, 0.0), identity, (depth, height, width), False))


def check(path: Path, make_plan: Maker) -> None:
    """Compare image, label, crop and sizes with nnU-Net's for the same case."""
    stored = np.load(path)
    config = json.loads(str(stored["config"]))
    properties = config["foreground_intensity_properties_per_channel"]
    plan = make_plan(
        tuple(config["target_spacing_after_transpose"]),
        tuple(config["normalization_schemes"]),
        tuple(config["use_mask_for_norm"]),
        tuple(config["transpose_forward"]),
        tuple(Intensity(**properties[key]) for key in sorted(properties)),
    )
    labels = LabelSet.from_json(config["labels"], config.get("regions_class_order"))
    spacing = tuple(stored["spacing"].tolist())
    image, label, found = preprocess_case(
        image_of(stored["image"], spacing),
        image_of(stored["seg"], spacing),
        plan,
        plan.configuration(config["configuration"]),
        labels,
    )
    assert label is not None
    box = stored["bbox"] if "bbox" in stored else stored["bbox_used_for_cropping"]
    assert np.array_equal(found.bbox, box)
    assert np.array_equal(found.shape_before_crop, stored["shape_before_cropping"])
    assert np.array_equal(found.shape_after_crop, stored["shape_after_cropping_and_before_resampling"])
    assert image.dtype == np.float32
    assert image.shape == stored["expected_image"].shape
    np.testing.assert_allclose(image, stored["expected_image"], rtol=1e-6, atol=1e-4)
    assert np.mean(label != stored["expected_seg"]) < 2e-4  # a few voxels where two labels are tied


@pytest.mark.parametrize("name", FILES)
def test_nnunets_results(reference_dir: Path, make_plan: Maker, name: str) -> None:
    check(reference_dir / "preprocess" / f"{name}.npz", make_plan)


def test_all_of_nnunets_results(shared_dir: Path, make_plan: Maker) -> None:
    folder = shared_dir / "reference" / "preprocess"
    files = [path for path in sorted(folder.rglob("*.npz")) if not path.name.startswith("export")]
    assert len(files) == 8
    for path in files:
        check(path, make_plan)


def test_background_outside_the_nonzero_mask_is_minus_one(make_plan: Maker) -> None:
    array = np.zeros((1, 4, 4, 4), np.float32)
    array[0, 1:, 1:, 1:] = 5
    array[0, 1, 1, 1] = 0  # a corner of the box, so it is not a hole
    label = np.zeros_like(array, dtype=np.uint8)
    label[0, 3, 3, 3] = 1
    plan = make_plan((1.0, 1.0, 1.0))
    image, found, properties = preprocess_case(
        image_of(array, (1, 1, 1)), image_of(label, (1, 1, 1)), plan, plan.configuration("3d_fullres"), LABELS
    )
    assert properties.bbox == ((1, 4), (1, 4), (1, 4))
    assert found is not None
    assert found[0, 0, 0, 0] == -1
    assert found[0, 2, 2, 2] == 1
    assert np.count_nonzero(found == -1) == 1
    assert abs(float(image.mean())) < 1e-6
    assert array[0, 1, 1, 2] == 5  # the input is not modified


def test_properties_round_trip_through_json(make_plan: Maker) -> None:
    plan = make_plan((1.0, 1.0, 1.0))
    array = np.ones((1, 3, 4, 5), np.float32)
    properties = preprocess_case(image_of(array, (1, 2, 3)), None, plan, plan.configuration("3d_fullres"), LABELS)[2]
    assert CaseProperties.from_json(json.loads(json.dumps(properties.to_json()))) == properties


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((1, 3, 4, 6), np.uint8), r"label's shape \(3, 4, 6\) differs from the image's \(3, 4, 5\)"),
        (np.full((1, 3, 4, 5), 9, np.uint8), r"values from 9 to 9; dataset.json declares 0 to 2"),
    ],
)
def test_labels_that_do_not_fit(make_plan: Maker, label: np.ndarray, message: str) -> None:
    plan = make_plan((1.0, 1.0, 1.0))
    image = image_of(np.ones((1, 3, 4, 5), np.float32), (1, 1, 1))
    with pytest.raises(UserError, match=message):
        preprocess_case(image, image_of(label, (1, 1, 1)), plan, plan.configuration("3d_fullres"), LABELS)


def test_a_wrong_number_of_channels(make_plan: Maker) -> None:
    plan = make_plan((1.0, 1.0, 1.0))
    image = image_of(np.ones((2, 3, 4, 5), np.float32), (1, 1, 1))
    with pytest.raises(UserError, match=r"2 channel\(s\), the plan was made for 1"):
        preprocess_case(image, None, plan, plan.configuration("3d_fullres"), LABELS)


def test_an_image_that_memory_cannot_hold_at_the_plans_spacing_is_refused(make_plan: Maker) -> None:
    image = image_of(np.ones((1, 8, 9, 10), np.float32), (4000.0, 4000.0, 4000.0))
    plan = make_plan((0.5, 0.5, 0.5))
    with pytest.raises(UserError, match=r"64000 x 72000 x 80000 voxels at the plan's spacing.*4000, 4000, 4000 mm"):
        preprocess_case(image, None, plan, next(iter(plan.configurations.values())), LabelSet(("a",), ((1,),)))
