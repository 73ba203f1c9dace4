"""The `planner` and `plan` groups: the rules from which the plan is derived, and its pinned values."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from umamba.settings.fields import key
from umamba.settings.validate import Settings

ConfigurationName = Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
Scheme = Literal[
    "CTNormalization",
    "ZScoreNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "NoNormalization",
]


@dataclass(frozen=True)
class PlannerSettings(Settings):
    """The rules from which the plan is derived."""

    section: ClassVar[str] = "planner"
    rules: Literal["nnunet", "umamba", "resenc_m", "resenc_l", "resenc_xl"] = key(
        "nnunet", "nnunet (2.8.1), umamba (the paper's nnU-Net 2.1.1), resenc_m, resenc_l or resenc_xl."
    )
    gpu_memory_gb: float | None = key(
        None,
        "Memory target in GB: of the planner's estimate or, with measure, of the measured training step; null: the "
        "rule set's own or, with measure, nine tenths of the memory here.",
        above=0,
    )
    measure: bool = key(
        False,
        "Choose patch and batch by the measured memory of this network's own training step on this device, with "
        "gradient accumulation and activation checkpointing where the plan of the rules does not fit.",
    )


@dataclass(frozen=True)
class PlanSettings(Settings):
    """The configuration of the plan, and values that are pinned instead of derived (null: derived).

    Values that depend on a pinned one are derived from it: the topology and batch size from a patch size, and the patch
    size, too, from a spacing.
    """

    section: ClassVar[str] = "plan"
    configuration: ConfigurationName | None = key(
        "3d_fullres", "Configuration of the plan; null with paper=true: that of the table's row."
    )
    paper: bool = key(False, "Pin the row of the paper's Table 2 that belongs to this dataset and configuration.")
    from_file: Path | None = key(
        None, "Take the plan from this nnU-Net plans JSON instead of deriving it.", existing=True
    )
    spacing: tuple[float, ...] | None = key(None, "Target spacing, mm, in the plan's axis order.", above=0)
    patch_size: tuple[int, ...] | None = key(None, "Patch size, voxels, in the plan's axis order.", low=1)
    batch_size: int | None = key(None, "Patches in a batch.", low=1)
    batch_dice: bool | None = key(
        None, "Compute the Dice over all patches of a batch together instead of each patch alone."
    )
    normalization: tuple[Scheme, ...] | None = key(None, "Normalisation scheme of each channel.")
    use_mask_for_norm: tuple[bool, ...] | None = key(None, "Normalise inside the nonzero mask only, for each channel.")
    strides: tuple[tuple[int, ...], ...] | None = key(
        None, "Strides, one entry for each stage, the first all 1.", low=1
    )
    kernel_sizes: tuple[tuple[int, ...], ...] | None = key(None, "Kernel sizes, odd, one entry for each stage.", low=1)
    features_per_stage: tuple[int, ...] | None = key(None, "Features, one entry for each stage.", low=1)
    encoder_blocks: tuple[int, ...] | None = key(
        None, "Convolutions (or residual blocks) of each encoder stage.", low=1
    )
    decoder_blocks: tuple[int, ...] | None = key(None, "The same for each decoder stage, one entry fewer.", low=1)

    @property
    def dim(self) -> int | None:
        """Number of axes of a patch; None if the configuration follows from the paper's table."""
        return None if self.configuration is None else 2 if self.configuration == "2d" else 3

    def pinned(self) -> dict[str, Any]:
        """Return the pinned values by name."""
        own = {"configuration", "paper", "from_file"}
        return {name: value for name, value in vars(self).items() if name not in own and value is not None}

    def conflicts(self) -> Iterator[str]:
        """Yield pinned values that contradict each other or the configuration."""
        pinned = self.pinned()
        if self.configuration is None and not self.paper:
            yield (
                "plan.configuration=null: choose 2d, 3d_fullres, 3d_lowres or 3d_cascade_fullres (null is for "
                "plan.paper=true)."
            )
        if self.from_file is not None and (pinned or self.paper):
            yield (
                f"plan.from_file: the file holds the whole plan, so plan.{next(iter(pinned), 'paper')} cannot be "
                "given as well. Change the value in the file, or leave out one of the two."
            )
        yield from self._wrong_axes(pinned)
        yield from self._wrong_stages(pinned)

    def _wrong_axes(self, pinned: dict[str, Any]) -> Iterator[str]:
        """Yield values that do not have one number for each axis."""
        if self.dim is None:
            return
        for name in ("spacing", "patch_size"):
            if name in pinned and len(pinned[name]) != self.dim:
                yield f"plan.{name}={list(pinned[name])}: {self.configuration} needs {self.dim} positive entries."
        for name in ("strides", "kernel_sizes"):
            if name in pinned and any(len(step) != self.dim for step in pinned[name]):
                given = [list(step) for step in pinned[name]]
                yield f"plan.{name}={given}: each stage needs {self.dim} positive entries."

    def _wrong_stages(self, pinned: dict[str, Any]) -> Iterator[str]:
        """Yield lists with different numbers of stages, a strided first stage, and even kernel sizes."""
        by_stage = ("strides", "kernel_sizes", "features_per_stage", "encoder_blocks")
        for name in (name for name in (*by_stage, "decoder_blocks") if name in pinned and not pinned[name]):
            yield f"plan.{name}=[]: has no stage. Give one entry for each stage, or null to derive it."
            pinned = {other: value for other, value in pinned.items() if other != name}
        lengths = {name: len(pinned[name]) for name in by_stage if name in pinned}
        lengths |= {"decoder_blocks": len(pinned["decoder_blocks"]) + 1} if "decoder_blocks" in pinned else {}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"plan.{name} has {count} stages" for name, count in lengths.items())
            yield f"{counts}. Give all of them for the same number of stages (decoder_blocks has one entry fewer)."
        strides = pinned.get("strides") or ((1,),)
        if any(step != 1 for step in strides[0]):
            yield f"plan.strides: the first stage must not be strided, it is {list(strides[0])}."
        even = [size for kernel in pinned.get("kernel_sizes", ()) for size in kernel if size % 2 == 0]
        if even:
            yield f"plan.kernel_sizes: {even[0]} is even; kernel sizes must be odd to keep the size of a feature map."
