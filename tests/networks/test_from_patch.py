"""The configuration that follows from a patch size equals the planner's for a dataset of an image of that size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from umamba.io import UserError
from umamba.networks import build_network, configuration_for_patch
from umamba.planning import Configuration, Fingerprint, Intensity, plan_dataset
from umamba.settings import ResEncUNetSettings, UMambaEncSettings

SIZES_3D = [
    ((64, 160, 160), (1.0, 1.0, 1.0)),
    ((40, 224, 192), (2.5, 0.8, 0.8)),
    ((20, 320, 256), (3.6, 0.56, 0.56)),
    ((128, 128, 128), (1.0, 1.0, 1.0)),
    ((8, 16, 16), (1.0, 1.0, 1.0)),
    ((5, 96, 64), (9.0, 1.0, 1.0)),
]
SIZES_2D = [((320, 320), (1.0, 1.0)), ((384, 640), (1.0, 1.0)), ((48, 64), (0.3, 0.3)), ((256, 192), (1.4, 0.5))]


def planned(patch: tuple[int, ...], spacing: tuple[float, ...], channels: int, rules: str) -> Configuration:
    """Return the planner's configuration for one image of the patch's size and spacing."""
    flat = len(patch) == 2
    shape: Any = (1, *patch) if flat else patch
    mm: Any = (10.0, *spacing) if flat else spacing
    name = "2d" if flat else "3d_fullres"
    plan = plan_dataset(
        Fingerprint(
            spacings=(mm,),
            shapes_after_crop=(shape,),
            intensity=(Intensity(0, 0, 1, -1, 1, -1, 1),) * channels,
            median_relative_size_after_cropping=1.0,
        ),
        dataset_name="Dataset999_Patch",
        channel_names=("MRI",) * channels,
        num_training=1,
        num_label_entries=2,
        rules=rules,
        overrides={name: {"patch_size": patch, "spacing": spacing}},
    )
    return plan.configuration(name)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("patch", "spacing"), [*SIZES_3D, *SIZES_2D])
def test_it_equals_the_planners(patch: tuple[int, ...], spacing: tuple[float, ...], residual: bool) -> None:
    ours = configuration_for_patch(patch, spacing, in_channels=2, residual_encoder=residual)
    assert ours == planned(patch, spacing, 2, "resenc_m" if residual else "nnunet")


def test_the_spacing_is_one_mm_unless_it_is_given() -> None:
    assert configuration_for_patch((64, 160, 160)) == configuration_for_patch((64, 160, 160), (1, 1, 1))
    coarse = configuration_for_patch((64, 160, 160), spacing=(5, 1, 1))
    assert coarse.strides[1] == (1, 2, 2)


@pytest.mark.parametrize("patch", [(60, 150, 150), (65, 160, 160), (33, 95), (1000, 300), (9, 50, 70)])
def test_the_nearest_larger_patch_that_is_named_fits(patch: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"patch_size=.*must be divisible by.*nearest larger") as caught:
        configuration_for_patch(patch)
    larger = [int(edge) for edge in str(caught.value).rsplit("[", 1)[1].rstrip("].").split(", ")]
    assert all(edge >= old for edge, old in zip(larger, patch, strict=True))
    assert configuration_for_patch(larger).patch_size == tuple(larger)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either .* neither was given"),
        ({"patch_size": (32,)}, r"patch_size=\[32\]: must be 2 or 3 whole numbers"),
        ({"patch_size": (32, 0)}, r"patch_size=\[32, 0\]"),
        ({"patch_size": (32, 32.5)}, r"patch_size=\[32, 32.5\]"),
        ({"patch_size": (32, 32), "spacing": (1, 1, 1)}, r"spacing=\[1, 1, 1\]: must be 2 numbers"),
        ({"patch_size": (32, 32), "spacing": (1, 0)}, r"spacing=\[1, 0\]"),
        ({"patch_size": (4, 4)}, "only one stage"),
    ],
)
def test_mistakes_are_messages(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_network("unet", **arguments)


def test_a_configuration_goes_without_patch_and_spacing(make_configuration: Callable[..., Configuration]) -> None:
    with pytest.raises(UserError, match="both were given"):
        build_network("unet", make_configuration(2), patch_size=(32, 32))
    with pytest.raises(UserError, match="together with patch_size"):
        build_network("unet", make_configuration(2), spacing=(1, 1))


def test_one_line_makes_a_network() -> None:
    with torch.device("meta"):
        network = build_network("umamba_enc", patch_size=(64, 160, 160), in_channels=1, num_classes=14)
        same = build_network(UMambaEncSettings(), configuration_for_patch((64, 160, 160)), 1, 14)
        wide: Any = build_network(UMambaEncSettings(d_state=32), patch_size=(64, 160, 160), num_classes=14)
        residual: Any = build_network(ResEncUNetSettings(), patch_size=(64, 160, 160))
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in same.state_dict().items()}
    assert wide.get_submodule("encoder.mamba_layers.0.mamba").A_log.shape[1] == 32
    assert [len(stage.blocks) for stage in residual.encoder.stages] == [1, 3, 4, 6, 6, 6]
