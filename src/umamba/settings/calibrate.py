"""Settings of `umamba calibrate`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from umamba.settings.architecture import TrustSettings
from umamba.settings.fields import key, listed
from umamba.settings.prediction import DeviceSettings, PredictionSettings, SlidingWindowSettings


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings(SlidingWindowSettings, DeviceSettings, TrustSettings):
    """All keys of `umamba calibrate`."""

    candidates: tuple[Path, ...] = key(
        (),
        "Folders runs/<experiment>/<configuration>, as [a,b]: each training case is segmented by the networks of the "
        "fold that held it out; those of several folders and seeds decide together. Needs raw_dataset.",
        existing=True,
    )
    raw_dataset: Path | None = key(
        None, "With `candidates`: the raw dataset that they were trained on, in nnU-Net's layout.", existing=True
    )
    splits: Path | None = key(
        None,
        "With `candidates`: splits_final.json that training used; null: the dataset's own, or folds that follow from "
        "the case names.",
        existing=True,
    )
    seeds: tuple[int, ...] = key((0,), "With `candidates`: seeds of the runs, as [0,1].", low=0)
    which: Literal["last", "best"] = key("last", "With `candidates`: which checkpoint of each run, last or best.")
    checkpoint: Path | tuple[Path, ...] | None = key(
        None,
        "Instead of `candidates`: the networks as in `umamba predict`, one or [a.ckpt,b.ckpt]. They segment `images` "
        "that they have not seen in training.",
        existing=True,
        zoo=True,
    )
    images: Path | None = key(None, "With `checkpoint`: a folder of images.", existing=True)
    labels: Path | None = key(
        None, "With `checkpoint`: the folder of their references, NAME.ext for the image NAME_0000.ext.", existing=True
    )
    output: Path = key(
        sentence="Folder of quality.json, which predict takes as `quality`, and of cases.csv, quality.png and the "
        "segmentations (existing ones are kept)."
    )
    coverage: float = key(0.9, "Share of segmentations whose score is in its interval.", low=0.5, below=1)
    tolerance_mm: float = key(2.0, "Tolerance of the NSD, mm.", above=0)
    max_memory_gb: float | None = key(None, "Limit of the main memory of the process, GiB; null: no limit.", above=0)
    workers: int = key(2, "Threads that read, prepare and write images while the network computes.", low=1)

    @property
    def prediction(self) -> PredictionSettings:
        """How the scored cases are segmented."""
        return PredictionSettings(
            tile_step_size=self.tile_step_size,
            tta=self.tta,
            max_memory_gb=self.max_memory_gb,
            workers=self.workers,
            agreement=True,
        )

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """All checkpoints; empty with `candidates`."""
        return listed(self.checkpoint)

    def conflicts(self) -> Iterator[str]:
        """Yield missing sources of scored cases, and keys of the other source."""
        yield from super().conflicts()
        if bool(self.candidates) == bool(self.checkpoints):
            yield (
                "candidates, checkpoint: give one of them: candidates=[FOLDER] with raw_dataset=FOLDER, or "
                "checkpoint=FILE with images=FOLDER and labels=FOLDER."
            )
            return
        one, other = ("candidates", "checkpoint") if self.candidates else ("checkpoint", "candidates")
        keys = {"candidates": ("raw_dataset",), "checkpoint": ("images", "labels")}
        for name in keys[one]:
            if getattr(self, name) is None:
                yield f"{name}: {one} needs {name}=FOLDER."
        for name in (*keys[other], *(("splits",) if self.checkpoints else ())):
            if getattr(self, name) is not None:
                yield f"{name}={getattr(self, name)}: goes with {other}. Leave one of the two away."
        if not self.seeds:
            yield "seeds=[]: give at least one, such as [0]."
