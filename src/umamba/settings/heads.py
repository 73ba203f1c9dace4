"""The `heads` group: what a network learns of a case beside its segmentation."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from umamba.settings.fields import key
from umamba.settings.validate import Settings


@dataclass(frozen=True)
class HeadsSettings(Settings):
    """Classification of whole cases."""

    section: ClassVar[str] = "heads"
    case: Path | None = key(
        None,
        "CSV file with the column case and a column for each question, such as case,grade: the classes of the cases. A "
        "head on the bottleneck learns them. A case without a class trains the segmentation only. null: no such head.",
        existing=True,
    )
    weight: float = key(1.0, "Weight of the head's cross-entropy beside the loss of the segmentation.", above=0)
    alone: bool = key(
        False, "Train the classes alone: the decoder does not run, and the network segments nothing afterwards."
    )

    def conflicts(self) -> Iterator[str]:
        """Yield keys that need a file of classes."""
        if self.case is None and self.alone:
            yield "heads.alone=true: needs classes to learn. Give heads.case=FILE.csv."
