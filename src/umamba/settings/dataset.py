"""The `paths` and `dataset` groups: the folders of the program, and the dataset of a training."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from umamba.settings.fields import key
from umamba.settings.validate import Settings

Protocol = Literal["generic", "abdomen", "endoscopy", "cell", "whole_cells"]
CELL_PROTOCOLS = ("cell", "whole_cells")  # those that score numbered cells
PROTOCOL_SENTENCE = (
    "Rules of the scores: generic (nnU-Net's), or the paper's abdomen (13 organs, each with its tolerance), endoscopy "
    "(classes of either image, 2 pixels) or cell (F1 of cells, of which the paper's script sees the interiors only); "
    "whole_cells: F1 of cells with their boundary, as instances=watershed makes them."
)


@dataclass(frozen=True)
class PathsSettings(Settings):
    """Folders. The configs take nnU-Net's environment variables as defaults where they are set."""

    section: ClassVar[str] = "paths"
    raw: Path = key(Path("data/raw"), "Folder of raw datasets in nnU-Net's layout, one folder each.")
    preprocessed: Path = key(Path("data/preprocessed"), "Folder of fingerprints, plans and preprocessed cases.")
    runs: Path = key(Path("runs"), "Folder of runs: <runs>/<experiment>/<configuration>/fold_<k>/seed_<s>.")


@dataclass(frozen=True)
class PhantomSettings(Settings):
    """A synthetic dataset, which is written on first use."""

    section: ClassVar[str] = "dataset.phantom"
    scene: Literal["abdomen", "endoscopy", "cells"] = key(
        "abdomen", "Content of the images: abdomen (volumes), endoscopy or cells (2D images)."
    )
    archive: Literal["flare", "amos", "endovis", "cell"] | None = key(
        None,
        "Write it in the layout of this challenge's archive and convert it; null: write nnU-Net's layout directly.",
    )
    num_training: int = key(24, "Training cases.", low=1)
    num_test: int = key(8, "Test cases.", low=0)
    seed: int = key(0, "Seed of the anatomy and of the noise.", low=0)
    voxel_mm: float | None = key(None, "Edge of a voxel of the abdomen, mm; null: 3.5.", above=0)

    def conflicts(self) -> Iterator[str]:
        """Yield keys that the scene does not have."""
        if self.voxel_mm is not None and (self.scene != "abdomen" or self.archive is not None):
            yield (
                f"dataset.phantom.voxel_mm={self.voxel_mm:g}: can be chosen only for dataset.phantom.scene=abdomen "
                "without an archive. Give dataset.phantom.voxel_mm=null."
            )


@dataclass(frozen=True)
class DatasetSettings(Settings):
    """The dataset of a training."""

    section: ClassVar[str] = "dataset"
    root: Path = key(
        sentence="The dataset's folder. If it has numbered instances (imagesTr, instancesTr), they become classes."
    )
    kind: Literal["nnunet", "phantom"] = key(
        "nnunet", "nnunet: a folder in nnU-Net's raw layout. phantom: synthetic images, written on first use."
    )
    source: str = key("", "Where the data are published; the message about an absent dataset names it.")
    licence: str = key("", "Licence of the data.")
    tolerance_mm: float = key(
        2.0, "Tolerance of the normalised surface distance, mm (pixels for natural 2D images).", low=0
    )
    protocol: Protocol = key("generic", PROTOCOL_SENTENCE)
    instance_targets: Literal["boundary", "depth"] = key(
        "boundary",
        "Classes that numbered instances become. boundary: interior and boundary, as in the paper. depth: four levels "
        "of depth below the outline, of which a watershed makes instances; touching ones stay apart more often.",
    )
    num_training: int | None = key(
        None,
        "Number of the fold's training cases that are trained on, for learning curves; the seed draws them, and a "
        "larger number adds cases to those of a smaller one. The plan stays that of all training cases. null: all.",
        low=1,
    )
    phantom: PhantomSettings = key(PhantomSettings, "The phantom of dataset=phantom and of smoke=true.")

    def absent(self, raw: Path | None = None) -> str | None:
        """Return the message that the dataset is absent and where it is published; None if it exists.

        Args:
            raw: paths.raw; the message advises another one only if the dataset's folder is in it.
        """
        if self.kind == "phantom" or self.root.is_dir():
            return None
        moved = "paths.raw=FOLDER or " if raw is not None and raw in self.root.parents else ""
        origin = f" The data: {self.source}." if self.source else ""
        return (
            f"dataset.root: there is no folder {self.root.absolute()}. Put the dataset there in nnU-Net's raw layout "
            f"(dataset.json, imagesTr, labelsTr), or say where it is with {moved}dataset.root=FOLDER. "
            f"`umamba convert --help` lists the layouts that can be converted.{origin}"
        )
