"""Table 2 of the U-Mamba paper as pinned values: patch size, batch size and poolings of its five benchmark settings.

The strides spell out the table's stages and its poolings per axis. The table prints (3, 3, 5) for abdomen CT, which no
planner gives: both in-plane axes have one spacing and are halved together while they can be. Here it is (3, 5, 5).
"""

import re
from dataclasses import dataclass
from typing import Any

from umamba.io import UserError
from umamba.planning.fingerprint import Fingerprint
from umamba.planning.plan import Intensity, axis3

_NUMBER = re.compile(r"^Dataset\d{3}_")
_FLAT, _ALL = (1, 2, 2), (2, 2, 2)


@dataclass(frozen=True)
class Setting:
    """A row of Table 2.

    Attributes:
        title: as the table names it.
        dataset: the published folder's name after its number, e.g. AbdomenCT of Dataset701_AbdomenCT.
        configuration: the plan's configuration that the row describes.
        patch_size: voxels, plan axis order.
        batch_size: patches per batch.
        strides: one entry a stage.
        num_training: training images (Table 1).
        num_labels: targets (Table 1), foreground labels.
        num_channels: of an image.
        assumed_spacing: mm; not published, a typical one of such images. It decides which kernels are flat.
    """

    title: str
    dataset: str
    configuration: str
    patch_size: tuple[int, ...]
    batch_size: int
    strides: tuple[tuple[int, ...], ...]
    num_training: int
    num_labels: int
    num_channels: int
    assumed_spacing: tuple[float, float, float]

    def pinned(self) -> dict[str, Any]:
        """Return the values as `plan_dataset` takes them."""
        return {"patch_size": self.patch_size, "batch_size": self.batch_size, "strides": self.strides}


def _square(stages: int) -> tuple[tuple[int, ...], ...]:
    return ((1, 1), *((2, 2),) * (stages - 1))


_VOLUME = ((1, 1, 1), _FLAT, _ALL, _ALL, _ALL, _FLAT)
_CT, _MR, _PIXEL = (2.5, 0.8, 0.8), (3.0, 1.19, 1.19), (1.0, 1.0, 1.0)
TABLE_2 = (
    Setting("Abdomen CT", "AbdomenCT", "3d_fullres", (40, 224, 192), 2, _VOLUME, 50, 13, 1, _CT),
    Setting("3D Abdomen MR", "AbdomenMR", "3d_fullres", (48, 160, 224), 2, _VOLUME, 60, 13, 1, _MR),
    Setting("2D Abdomen MR", "AbdomenMR", "2d", (320, 320), 30, _square(7), 60, 13, 1, _MR),
    Setting("Endoscopy", "Endovis17", "2d", (384, 640), 13, _square(7), 1800, 7, 3, _PIXEL),
    Setting("Microscopy", "NeurIPSCell", "2d", (512, 512), 12, _square(8), 1000, 2, 3, _PIXEL),
)


def paper_setting(dataset_name: str, configuration: str | None) -> Setting:
    """Return the row of a dataset, told by its folder's name without the number.

    Args:
        dataset_name: e.g. "Dataset702_AbdomenMR".
        configuration: which of its rows; None: the first.

    Raises:
        UserError: the table has no such row.
    """
    name = _NUMBER.sub("", dataset_name)
    for setting in TABLE_2:
        if setting.dataset == name and configuration in (None, setting.configuration):
            return setting
    rows = ", ".join(f"{setting.dataset} {setting.configuration}" for setting in TABLE_2)
    raise UserError(
        f"plan.paper: Table 2 of the paper has no row for {' '.join(filter(None, (name, configuration)))}. It has: "
        f"{rows} (the name of the dataset's folder, after its number). Choose one of them, or plan.paper=false."
    )


def planned_configuration(dataset_name: str, paper: bool, configuration: str | None) -> str:
    """Return the name of the configuration that a plan asks for, which is known without data.

    Raises:
        UserError: Table 2 has no row for the dataset, or no configuration is given.
    """
    if paper:
        return paper_setting(dataset_name, configuration).configuration
    if configuration is None:
        raise UserError("plan.configuration is not given. Choose 2d, 3d_fullres or 3d_lowres.")
    return configuration


def assumed_fingerprint(setting: Setting) -> Fingerprint:
    """Return what a row's dataset might look like where it is not at hand: the assumed spacing, twice the patch."""
    flat = len(setting.patch_size) == 2
    depth = 100 if flat else 2 * setting.patch_size[0]
    shape = (1 if setting.assumed_spacing == _PIXEL else depth, *(2 * edge for edge in setting.patch_size[-2:]))
    intensity = Intensity(mean=0.0, median=0.0, std=1.0, min=-1.0, max=1.0, percentile_00_5=-1.0, percentile_99_5=1.0)
    return Fingerprint(
        spacings=(setting.assumed_spacing,) * setting.num_training,
        shapes_after_crop=(axis3(shape),) * setting.num_training,
        intensity=(intensity,) * setting.num_channels,
        median_relative_size_after_cropping=1.0,
    )
