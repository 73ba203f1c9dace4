"""Settings of prediction, which `umamba predict`, the prediction after training and `umamba find-best` share."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from umamba.settings.architecture import TrustSettings
from umamba.settings.fields import key, listed
from umamba.settings.recipe import Precision
from umamba.settings.validate import Settings

Engine = Literal["auto", "torch", "openvino"]
ExportForm = Literal[
    "seg_nrrd", "dicom_seg", "dicom_labelmap", "rtstruct", "secondary_capture", "geojson", "outlines", "map16"
]
NO_OPENVINO = "openvino is not installed. Install it with pip install 'umamba[cpu]'"
NO_HIGHDICOM = "highdicom is not installed. Install it with pip install 'umamba[dicom]'"
MOST_TILE_SCALE = 16  # tile_scale; such a tile of a volume has 4096 patches
_THROUGH_HIGHDICOM = ("dicom_seg", "dicom_labelmap", "secondary_capture")
_DEVICE = re.compile(r"auto|[a-z]+(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class SlidingWindowSettings(Settings):
    """The sliding window over an image, and test-time augmentation."""

    tile_step_size: float = key(0.5, "Largest step of the sliding window as a fraction of the patch.", above=0, high=1)
    tta: bool = key(
        False, "TTA: mirror the input along all axes that training mirrored, and average; off in the paper."
    )


@dataclass(frozen=True, kw_only=True)
class PredictionSettings(SlidingWindowSettings):
    """How images are segmented and what is written."""

    max_memory_gb: float | None = key(
        None,
        "Limit of the main memory of the whole process, GiB; null: no limit. The segmentations do not depend on it; a "
        "low limit costs time.",
        above=0,
    )
    probabilities: bool = key(
        False,
        "Also write NAME.npz with the probabilities (num_classes, Z, Y, X) float32 under the key `probabilities`.",
    )
    instances: Literal["components", "watershed"] | None = key(
        None,
        "Cells (labels interior and boundary): also write NAME_label.tiff with numbered instances. components: the "
        "connected components of the interior, as protocol=cell scores them. watershed: also split touching cells, "
        "include the boundary, and leave out crumbs. null: none.",
    )
    export: tuple[ExportForm, ...] = key(
        (),
        "Further forms of each segmentation, as [geojson,outlines], each in a sub-folder. seg_nrrd: a segmentation of "
        "3D Slicer with names and colours. Of images from DICOM, for the hospital's archive: dicom_seg: DICOM SEG, one "
        "bit for each label and voxel; dicom_labelmap: DICOM SEG as a label map; rtstruct: contours (RT Structure "
        "Set); secondary_capture: a picture. Of two-dimensional images, with numbered cells where instances is given: "
        "geojson: outlines in pixels; outlines: the image in colour with outlines; map16: a 16-bit PNG.",
    )
    agreement: bool = key(
        False,
        "Also write agreement/NAME.json: by label, how far the networks agree (one network: with itself mirrored and "
        "with other tiles, which takes three to five times as long), and how far the image is from those of training. "
        "`umamba calibrate` learns from it what to expect.",
    )
    codes: Path | None = key(
        None,
        "JSON file of the labels' coded names for the forms in DICOM: label -> {value, scheme, meaning}, or a "
        "dataset.json with this as codes; null: SNOMED CT for known organs, a private scheme for the others.",
        existing=True,
    )
    previous_stage: Path | None = key(
        None,
        "Cascades (3d_cascade_fullres): folder of the segmentations of the same images by 3d_lowres, NAME<ending>; "
        "null: no cascade.",
        existing=True,
    )
    overwrite: bool = key(
        False, "Also segment images whose segmentation exists; false: leave them out, which continues an earlier call."
    )
    workers: int = key(
        2, "Threads that read and prepare images while the network computes; as many more resample and write.", low=1
    )

    def conflicts(self) -> Iterator[str]:
        """Yield forms whose library is not installed."""
        yield from super().conflicts()
        forms = [form for form in self.export if form in _THROUGH_HIGHDICOM]
        if forms and find_spec("highdicom") is None:
            prefix = f"{self.section}." if self.section else ""
            yield f"{prefix}export=[{','.join(forms)}]: {NO_HIGHDICOM}, or leave the form away."


@dataclass(frozen=True, kw_only=True)
class EngineSettings(Settings):
    """What computes the networks in prediction."""

    engine: Engine = key(
        "auto",
        "What computes the networks: torch; or openvino (extra cpu), which is several times faster on CPUs and gives "
        "the same labels but for rounding. auto: on a CPU the faster of the two, which is measured once for each kind "
        "of network and machine; on a GPU torch.",
    )
    tile_scale: int = key(
        1,
        "Edge of a tile in patches of training. InstanceNorm measures mean and variance in each tile, and lifts noise "
        "to full contrast where a tile holds nothing else (dark parts of pictures). With 2 or more it measures a "
        "larger part of the image. For images of at least that size; a network whose weights are tied to its patch "
        "refuses it.",
        low=1,
        high=MOST_TILE_SCALE,
    )

    def conflicts(self) -> Iterator[str]:
        """Yield an engine that is not installed."""
        yield from super().conflicts()
        if self.engine == "openvino" and find_spec("openvino") is None:
            prefix = f"{self.section}." if self.section else ""
            yield f"{prefix}engine=openvino: {NO_OPENVINO}, or give {prefix}engine=auto."


def device_problem(device: str) -> str | None:
    """Return a sentence if no machine has a device of this name."""
    if _DEVICE.fullmatch(device):
        return None
    return f"device={device}: must be auto, cpu, cuda, or a device with its number, such as cuda:1."


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(EngineSettings):
    """The device of a network."""

    device: str = key("auto", "Device of the networks: auto, cpu, cuda, cuda:1, ...")

    def conflicts(self) -> Iterator[str]:
        """Yield a device that cannot exist, and one that the engine does not use."""
        yield from super().conflicts()
        wrong = device_problem(self.device)
        if wrong:
            yield wrong
        elif self.engine == "openvino" and self.device not in ("auto", "cpu"):
            yield f"engine=openvino: computes on the CPU, not on device={self.device}. Give device=cpu or engine=torch."


@dataclass(frozen=True, kw_only=True)
class PredictSettings(PredictionSettings, DeviceSettings, TrustSettings):
    """All keys of `umamba predict`."""

    checkpoint: Path | tuple[Path, ...] = key(
        sentence="A checkpoint of a run (checkpoints/last.ckpt or best.ckpt), the folder of a run (its last.ckpt) or "
        "of an experiment (those of all its folds), or one of nnU-Net or U-Mamba (checkpoint_final.pth, or the results "
        "folder that holds it). Several as [a.ckpt,b.ckpt]: their probabilities are averaged; they may differ in fold, "
        "architecture and plan. zoo:NAME: a trained network that comes with this program.",
        existing=True,
        zoo=True,
    )
    input: Path = key(
        sentence="An image, a folder with a DICOM series, or a folder of images or series. NAME_0000.ext holds one "
        "channel, NAME.ext holds all channels. zoo:NAME: the sample image of a trained network.",
        existing=True,
        zoo=True,
    )
    output: Path = key(
        sentence="Folder of the segmentations, made if absent; or a file, such as seg.nii.gz, for a single image."
    )
    previews: int = key(
        8,
        "Draw a picture of so many images with their segmentations, the first ones in name order, or with `quality` "
        "those that should be looked at first; 0: none.",
        low=0,
    )
    quality: Path | None = key(
        None,
        "JSON file of `umamba calibrate`: also write quality.csv (expected DSC and NSD of each label with intervals, "
        "and which segmentations somebody should look at) and quality.html, the worst first; null: none.",
        existing=True,
    )
    review_below: float | None = key(
        None,
        "With `quality`: list segmentations whose expected DSC is below this one; null: below what nine of ten "
        "calibrated cases reached (of several labels each: nearly all).",
        low=0,
        high=1,
    )
    post_processing: Path | None = key(
        None,
        "JSON file of `umamba find-best`: the labels of which only the largest component is kept; null: none.",
        existing=True,
    )
    previous_checkpoint: Path | tuple[Path, ...] | None = key(
        None,
        "Cascades: the checkpoint or checkpoints of 3d_lowres, given as `checkpoint` is. They segment the images "
        "first, into the folder previous_stage of the output; null: previous_stage has these segmentations.",
        existing=True,
        zoo=True,
    )
    precision: Precision = key("auto", "Precision of the networks. auto: the lowest that the device computes fast.")
    reproducible: bool = key(
        False,
        "Give the same bits for any number of threads, any max_memory_gb and after any restart: float32 by PyTorch on "
        "the CPU, each tile by one thread, several at a time. Slower where an image has fewer tiles than threads.",
    )

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """All checkpoints."""
        return listed(self.checkpoint)

    def conflicts(self) -> Iterator[str]:
        """Yield an empty list of checkpoints, and what reproducible=true cannot have."""
        yield from super().conflicts()
        if self.reproducible:
            wrong = {
                "engine": self.engine not in ("auto", "torch"),
                "device": self.device not in ("auto", "cpu"),
                "precision": self.precision not in ("auto", "32-true"),
            }
            for name in (name for name, found in wrong.items() if found):
                right = {"engine": "torch", "device": "cpu", "precision": "32-true"}[name]
                yield f"reproducible=true: needs {name}={right}, not {name}={getattr(self, name)}. Leave {name} away."
        if self.previous_checkpoint is not None and self.previous_stage is not None:
            yield "previous_checkpoint and previous_stage: give one of the two, because both name the first stage."
        if not self.checkpoints:
            yield "checkpoint=[]: give one, or several as checkpoint=[a.ckpt,b.ckpt]."
        if self.review_below is not None and self.quality is None:
            yield f"review_below={self.review_below:g}: needs quality=FILE. Give it, or leave review_below away."


@dataclass(frozen=True, kw_only=True)
class VerifySettings(TrustSettings):
    """All keys of `umamba verify`."""

    predictions: Path = key(
        sentence="Folder that `umamba predict` wrote, or the single segmentation that it wrote.", existing=True
    )
    checkpoint: Path | tuple[Path, ...] | None = key(
        None,
        "The checkpoints, if they are not where they were: one, or [a.ckpt,b.ckpt] in the same order.",
        existing=True,
        zoo=True,
    )
    input: Path | None = key(None, "The images, if they are not where they were.", existing=True)
    device: str = key("auto", "Device of the networks: cpu, cuda, ...; auto: the one that made the segmentations.")
    engine: Engine = key("auto", "torch or openvino; auto: the one that made the segmentations.")
    max_memory_gb: float | None = key(
        None, "Limit of the main memory of the whole process, GiB; null: no limit.", above=0
    )

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """All checkpoints; empty: where prediction.json says."""
        return listed(self.checkpoint)

    def conflicts(self) -> Iterator[str]:
        """Yield a device that cannot exist."""
        yield from super().conflicts()
        wrong = device_problem(self.device)
        if wrong:
            yield wrong


@dataclass(frozen=True, kw_only=True)
class FindBestSettings(SlidingWindowSettings, DeviceSettings, TrustSettings):
    """All keys of `umamba find-best`."""

    candidates: tuple[Path, ...] = key(
        sentence="Folders runs/<experiment>/<configuration> with the same folds trained, as [a,b,c].", existing=True
    )
    raw_dataset: Path = key(sentence="The raw dataset that they were trained on, in nnU-Net's layout.", existing=True)
    output: Path = key(
        sentence="Folder of the validation cases' segmentations (existing ones are kept), post_processing.json and "
        "best.json."
    )
    splits: Path | None = key(
        None,
        "splits_final.json that training used; null: the dataset's own, or folds that follow from the case names.",
        existing=True,
    )
    pairs: bool = key(True, "Also try the mean of every two candidates.")
    checkpoint: Literal["last", "best"] = key("last", "Which checkpoint of each run: last or best.")
    seed: int = key(0, "Seed of the runs.", low=0)
    previous_stage: Path | None = key(
        None,
        "For candidates that are cascades: the folder runs/<experiment>/3d_lowres of their first stage; null: the "
        "folder 3d_lowres beside the candidate.",
        existing=True,
    )
    max_memory_gb: float | None = key(None, "Limit of the main memory of the process, GiB; null: no limit.", above=0)
    workers: int = key(2, "Threads that read, prepare and write images while the network computes.", low=1)

    @property
    def prediction(self) -> PredictionSettings:
        """How the validation cases are segmented."""
        return PredictionSettings(
            tile_step_size=self.tile_step_size, tta=self.tta, max_memory_gb=self.max_memory_gb, workers=self.workers
        )

    def conflicts(self) -> Iterator[str]:
        """Yield an empty list of candidates."""
        yield from super().conflicts()
        if not self.candidates:
            yield "candidates=[]: give at least one folder runs/<experiment>/<configuration>."
