"""Settings of `umamba pretrain`, with the group `masking`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from umamba.settings.fields import key
from umamba.settings.masking import MaskingSettings
from umamba.settings.training import TrainSettings


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainSettings):
    """All keys of `umamba pretrain`: those of `umamba train`, of which it does not read `predict` and recipe.loss."""

    masking: MaskingSettings = key(MaskingSettings, "Which parts of the images are hidden.")
    images: tuple[Path, ...] = key(
        (),
        "Further images: folders as for prediction, or raw datasets, of which no labels are read. They are prepared by "
        "the plan of dataset.root.",
        existing=True,
    )
    test_images: bool = key(
        True, "Also learn from the images of imagesTs. Give false if scores on them must be those of unseen images."
    )

    def conflicts(self) -> Iterator[str]:
        """Yield what a training without labels cannot have."""
        yield from super().conflicts()
        without = {
            "teacher": self.teacher is not None,
            "pretrained": self.pretrained is not None,
            "heads.case": self.heads.case is not None,
            "budget": self.timed,
            "planner.measure": self.planner.measure,
            "dataset.num_training": self.dataset.num_training is not None,
            "recipe.finetune": self.recipe.finetune.on,
            "recipe.loss.name": self.recipe.loss.name is not None,
            "recipe.loss.component_weight": self.recipe.loss.component_weight > 0,
            "plan.configuration=3d_cascade_fullres": self.plan.configuration == "3d_cascade_fullres",
        }
        for name in (name for name, given in without.items() if given):
            yield f"{name}: umamba pretrain learns from images without labels, and cannot have it. Leave it away."
        if self.masking.block is not None and self.plan.dim not in (None, len(self.masking.block)):
            yield (
                f"masking.block={list(self.masking.block)}: must have {self.plan.dim} edges, one for each axis of "
                f"{self.plan.configuration}."
            )
        for entry in self.trainer.callbacks:
            if "dice" in str(entry.get("monitor")):
                yield f"trainer.callbacks: monitor={entry['monitor']}: there is no Dice without labels. Give val/loss."
