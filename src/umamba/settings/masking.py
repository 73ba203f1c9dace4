"""The `masking` group: which parts of the images a pretraining hides."""

from dataclasses import dataclass
from typing import ClassVar

from umamba.settings.fields import key
from umamba.settings.validate import Settings


@dataclass(frozen=True)
class MaskingSettings(Settings):
    """Hidden blocks of a patch."""

    section: ClassVar[str] = "masking"
    share: float = key(0.75, "Share of the blocks that are hidden.", above=0, below=1)
    block: tuple[int, ...] | None = key(
        None,
        "Edges of a block in voxels, one for each axis of the patch; null: those of a voxel of the network's deepest "
        "feature map, at most 16.",
        low=1,
        lengths=(2, 3),
    )
