"""Table 2 of the U-Mamba paper as pinned values: patch size, batch size and poolings of its five benchmark settings.

The strides spell out the table's stages and its poolings per axis. The table prints (3, 3, 5) for abdomen CT, which no
planner gives: both in-plane axes have one spacing and are halved together while they can be. Here it is (3, 5, 5).
"""

import re
from dataclasses import dataclass
from typing import Any

from umamba.io import UserError

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
    """

    title: str
    dataset: str
    configuration: str
    patch_size: tuple[int, ...]
    batch_size: int
    strides: tuple[tuple[int, ...], ...]

    def pinned(self) -> dict[str, Any]:
        """Return the values as `plan_dataset` takes them."""
        return {"patch_size": self.patch_size, "batch_size": self.batch_size, "strides": self.strides}


def _square(stages: int) -> tuple[tuple[int, ...], ...]:
    return ((1, 1), *((2, 2),) * (stages - 1))


TABLE_2 = (
    Setting("Abdomen CT", "AbdomenCT", "3d_fullres", (40, 224, 192), 2, ((1, 1, 1), _FLAT, _ALL, _ALL, _ALL, _FLAT)),
    Setting("3D Abdomen MR", "AbdomenMR", "3d_fullres", (48, 160, 224), 2, ((1, 1, 1), _FLAT, _ALL, _ALL, _ALL, _FLAT)),
    Setting("2D Abdomen MR", "AbdomenMR", "2d", (320, 320), 30, _square(7)),
    Setting("Endoscopy", "Endovis17", "2d", (384, 640), 13, _square(7)),
    Setting("Microscopy", "NeurIPSCell", "2d", (512, 512), 12, _square(8)),
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
