"""Table 2 of the U-Mamba paper as pinned values: patch size, batch size and poolings of its five settings.

The strides follow from the table's stages and its poolings per axis. For abdomen CT the table prints the poolings
(3, 3, 5). No planner gives these, because both in-plane axes have the same spacing and are halved together. They are
taken as a misprint of (3, 5, 5).
"""

import re
from dataclasses import dataclass
from typing import Any

from umamba.io import UserError
from umamba.planning.fingerprint import Fingerprint
from umamba.planning.pinned import NAMES
from umamba.planning.plan import Intensity, axis3

_NUMBER = re.compile(r"^Dataset\d{3}_")
_FLAT, _ALL = (1, 2, 2), (2, 2, 2)


@dataclass(frozen=True)
class PaperSetting:
    """A row of Table 2.

    Attributes:
        title: the table's name of the row.
        dataset: name of the published dataset's folder after its number: "AbdomenCT" of Dataset701_AbdomenCT.
        configuration: the configuration of the plan that the row describes.
        patch_size: voxels, plan axes.
        batch_size: patches per batch.
        strides: strides of each encoder stage.
        num_training: number of training images (Table 1).
        num_labels: number of foreground labels (targets in Table 1).
        num_channels: number of image channels.
        assumed_spacing: (Z, Y, X) in mm, typical of such images because the paper does not give it. It decides which
            kernels are flat.
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
        """Return the row's values in the form of the overrides of `plan_dataset`."""
        return {"patch_size": self.patch_size, "batch_size": self.batch_size, "strides": self.strides}


def _square(stages: int) -> tuple[tuple[int, ...], ...]:
    return ((1, 1), *((2, 2),) * (stages - 1))


_VOLUME = ((1, 1, 1), _FLAT, _ALL, _ALL, _ALL, _FLAT)
_CT, _MR, _PIXEL = (2.5, 0.8, 0.8), (3.0, 1.19, 1.19), (1.0, 1.0, 1.0)
TABLE_2 = (
    PaperSetting("Abdomen CT", "AbdomenCT", "3d_fullres", (40, 224, 192), 2, _VOLUME, 50, 13, 1, _CT),
    PaperSetting("3D Abdomen MR", "AbdomenMR", "3d_fullres", (48, 160, 224), 2, _VOLUME, 60, 13, 1, _MR),
    PaperSetting("2D Abdomen MR", "AbdomenMR", "2d", (320, 320), 30, _square(7), 60, 13, 1, _MR),
    PaperSetting("Endoscopy", "Endovis17", "2d", (384, 640), 13, _square(7), 1800, 7, 3, _PIXEL),
    PaperSetting("Microscopy", "NeurIPSCell", "2d", (512, 512), 12, _square(8), 1000, 2, 3, _PIXEL),
)


def paper_setting(dataset_name: str, configuration: str | None) -> PaperSetting:
    """Return the row of Table 2 for a dataset.

    Args:
        dataset_name: name of the dataset's folder, such as "Dataset702_AbdomenMR". The number does not matter.
        configuration: name of a configuration, if the dataset has several rows. None: its first row.

    Raises:
        UserError: the table has no such row.

    Example:
        >>> paper_setting("Dataset702_AbdomenMR", "2d").patch_size
        (320, 320)
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
    """Return the name of the configuration that a plan is made for. No data are needed.

    Args:
        dataset_name: name of the dataset's folder, such as "Dataset702_AbdomenMR".
        paper: whether Table 2 of the paper is pinned. Its first row for the dataset then names the configuration if
            none is given.
        configuration: the name that the user gave, which is returned unchecked, or None.

    Raises:
        UserError: no configuration is given, and `paper` is not set or Table 2 has no row for the dataset.

    Example:
        >>> planned_configuration("Dataset701_AbdomenCT", paper=True, configuration=None)
        '3d_fullres'
        >>> planned_configuration("Dataset004_Hippocampus", paper=False, configuration="2d")
        '2d'
    """
    if configuration is not None:
        return configuration
    if not paper:
        raise UserError(f"plan.configuration is not given. Choose one of {', '.join(NAMES)}.")
    return paper_setting(dataset_name, None).configuration


def assumed_fingerprint(setting: PaperSetting) -> Fingerprint:
    """Return a plausible fingerprint of a row's dataset, for plans and tables without the data.

    Args:
        setting: the row. Every case gets its assumed spacing and a size of twice its patch.
    """
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
