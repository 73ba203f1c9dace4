"""Settings of `umamba audit`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from umamba.settings.fields import key, listed
from umamba.settings.validate import Settings


@dataclass(frozen=True, kw_only=True)
class AuditSettings(Settings):
    """All keys of `umamba audit`."""

    runs: Path | tuple[Path, ...] = key(
        sentence="Folder runs/<experiment>/<configuration> whose folds are trained and have predicted their validation "
        "cases (predict.validation=true), or several as [a,b]; of all seeds. A results folder of nnU-Net with fold_0 "
        "to fold_4 works, too. More networks of other seeds or architectures find more.",
        existing=True,
    )
    raw_dataset: Path = key(sentence="The raw dataset that they were trained on, in nnU-Net's layout.", existing=True)
    output: Path = key(sentence="Folder of four tables and of index.html, made if absent.")
    review_from: float = key(
        4.0,
        "Score from which on a case is listed for review. A score is the distance from the ordinary case in standard "
        "deviations.",
        above=0,
    )
    pictures_mb: float = key(
        8.0, "Largest size of all pictures in the page, MB; the most suspicious cases come first. 0: none.", low=0
    )
    workers: int | None = key(None, "Processes, each of which holds a case; null: all CPUs of the allocation.", low=1)

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders of runs."""
        return listed(self.runs)

    def conflicts(self) -> Iterator[str]:
        """Yield an empty list of runs."""
        yield from super().conflicts()
        if not self.folders:
            yield "runs=[]: give at least one folder runs/<experiment>/<configuration>."
