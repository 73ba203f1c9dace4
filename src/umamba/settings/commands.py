"""Settings of the commands evaluate, report, convert, export, slurm and study power."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

from umamba.settings.architecture import TrustSettings
from umamba.settings.dataset import CELL_PROTOCOLS, PROTOCOL_SENTENCE, PathsSettings, Protocol
from umamba.settings.fields import key
from umamba.settings.validate import Settings

Archive = Literal["flare", "amos", "endovis", "cell", "nuclei", "msd", "totalsegmentator", "bids", "folders", "merge"]
_CONVERT_KEYS = {
    "name": ("msd", "totalsegmentator", "bids", "folders", "merge"),
    "datasets": ("merge",),
    "channels": ("bids", "folders"),
    "label": ("bids", "folders"),
    "labels": ("totalsegmentator", "bids", "folders"),
    "crop": ("endovis",),
}
# Keys of evaluate that say how segmentations are scored, compared and drawn.
_OF_SEGMENTATIONS = (
    *("protocol", "strict_official", "dataset_json", "tolerance_mm", "iou_threshold", "count_edge_cells", "objects"),
    *("images", "margin"),
)
MARGIN = 0.01
_MARGIN = (
    "Difference of DSC, NSD or F1 between two methods that does not matter: they are called equivalent if their "
    "difference is shown to be smaller. 0.01 is the median gain that papers claim (arXiv 2505.04720)."
)
_LIMIT = re.compile(r"infinite|unlimited|(\d+-)?\d+(:\d+){0,2}")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Settings):
    """All keys of `umamba evaluate`."""

    predictions: Path | Mapping[str, str | Sequence[str]] = key(
        sentence="Folder of segmentations, or several methods to compare: '{umamba:DIR,unet:DIR}'. A method with "
        "several trainings (seeds, folds) has a list: '{umamba:[DIR,DIR],unet:[DIR,DIR]}'.",
        existing=True,
    )
    truth: Path = key(
        sentence="Folder of the references. For cells: numbered cells, NAME or NAME_label. A CSV file of the "
        "true classes of cases instead: score the classes.csv of each folder of predictions only.",
        existing=True,
    )
    output: Path = key(sentence="Folder of the tables and pictures, made if absent.")
    protocol: Protocol = key("generic", PROTOCOL_SENTENCE)
    strict_official: bool = key(
        False,
        "Reproduce the official scripts including their errors: the last slice of tubular organs is left out, the "
        "background is guessed, and missed cells do not count in an image without a predicted cell.",
    )
    dataset_json: Path | None = key(
        None,
        "dataset.json with the names of the labels; null: the one beside the folder of references.",
        existing=True,
    )
    tolerance_mm: float = key(2.0, "Tolerance of the generic NSD, mm (pixels for natural images).", low=0)
    iou_threshold: float = key(0.5, "Cells: two match from this overlap (IoU) on.", above=0, high=1)
    count_edge_cells: bool = key(False, "Cells: also count those that touch the image's edge.")
    objects: bool = key(
        False,
        "generic and cells: also score objects, which are the connected parts of each label, or the cells: panoptic "
        "quality, AP at IoU 0.5 to 0.9, recall, precision and DSC of single objects; with NAME.npz (prediction with "
        "probabilities=true) also FROC.",
    )
    images: Path | None = key(
        None, "Folder of the images, for overlays of the worst, median and best case; null: no overlays.", existing=True
    )
    classes: Path | None = key(
        None,
        "CSV file of the true classes (case and a column for each question): also score the classes.csv in each folder "
        "of predictions; null: do not.",
        existing=True,
    )
    margin: float = key(MARGIN, _MARGIN, above=0)
    workers: int | None = key(None, "Processes; null: all CPUs of the allocation.", low=1)

    @property
    def methods(self) -> dict[str, Path]:
        """The folder of each method, or of each of its trainings: NAME, or NAME_1, NAME_2 and so on."""
        return {name: folder for name, _, folder in self._folders()}

    @property
    def trainings(self) -> dict[str, str]:
        """The method of each name in `methods`."""
        return {name: method for name, method, _ in self._folders()}

    def _folders(self) -> Iterator[tuple[str, str, Path]]:
        """Yield name, method and folder of each training."""
        if isinstance(self.predictions, Path):
            name = self.predictions.name or "predictions"
            yield name, name, self.predictions
            return
        for method, given in self.predictions.items():
            if isinstance(given, str | Path):
                yield str(method), str(method), Path(given)
                continue
            for count, folder in enumerate(given, start=1):
                yield f"{method}_{count}", str(method), Path(str(folder))

    def conflicts(self) -> Iterator[str]:
        """Yield objects without a rule, a missing method, wrong folders, and keys that contradict each other."""
        if self.strict_official and self.protocol not in ("abdomen", "endoscopy", "cell"):
            yield (
                f"strict_official=true: protocol={self.protocol} has no official script. Give protocol=abdomen, "
                "endoscopy or cell, or strict_official=false."
            )
        if self.objects and self.protocol not in ("generic", *CELL_PROTOCOLS):
            yield (
                f"objects=true: protocol={self.protocol} has no rule for objects. Give protocol=generic, cell or "
                "whole_cells."
            )
        if self.truth.suffix == ".csv" and self.classes is not None:
            yield f"classes={self.classes}: truth is a table of classes already. Give one of the two."
        if self.truth.suffix == ".csv":
            defaults = {entry.name: entry.default for entry in fields(self)}
            for name in _OF_SEGMENTATIONS:
                if getattr(self, name) != defaults[name]:
                    yield (
                        f"{name}: truth={self.truth} is a table of classes; segmentations are not scored. Leave it out."
                    )
        if isinstance(self.predictions, Path):
            return
        if not self.predictions:
            yield "predictions={}: give a folder, or several methods as '{umamba:DIR,unet:DIR}'."
        for method, given in self.predictions.items():
            if not isinstance(given, str | Path | Sequence) or not given:
                yield f"predictions.{method}={given}: must be a folder, or a list of the folders of its trainings."
                return
        found = list(self._folders())
        for name, method, folder in found:
            if not folder.exists():
                yield f"predictions.{method}={folder}: there is no such folder. Check the path."
            if sum(other == name for other, _, _ in found) > 1:
                yield f"predictions.{method}: two folders would be called {name}. Give the method another name."
            if sum(other == folder and owner == method for _, owner, other in found) > 1:
                yield f"predictions.{method}: {folder} is given twice. Give each training once."


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """All keys of `umamba report`."""

    study: str = key(sentence="The study: a folder of experiments/, or the path of one.")
    output: Path | None = key(None, "Folder of the report; null: <paths.runs>/reports/<study>.")
    overrides: tuple[str, ...] = key(
        (), "Overrides with which every run was trained, if there were any: \"overrides=['smoke=true']\""
    )
    images: Literal["test", "held-out"] = key(
        "test",
        "Which images count: test, or held-out: also the validation cases of the fold, for studies of one fold whose "
        "runs chose nothing by them.",
    )
    margin: float = key(MARGIN, _MARGIN, above=0)
    pictures_mb: float = key(
        3.0,
        "Largest size of all pictures of cases in the page, MB; 0: none. The cases with the lowest, median and highest "
        "score come first.",
        low=0,
    )
    paths: PathsSettings = key(PathsSettings, "Folders of raw datasets, preprocessed cases and runs.")


@dataclass(frozen=True, kw_only=True)
class PowerSettings(Settings):
    """All keys of `umamba study power`: how much scores spread, and what the study should see."""

    section: ClassVar[str] = "power"
    results: str | None = key(
        None,
        "An earlier study whose finished runs (two trainings of two methods at least) give the spreads of the same "
        "dataset; null: the assumed spreads below.",
    )
    case_sd: float = key(
        0.08, "Assumed standard deviation of a method's score over cases; 0.07 to 0.09 in Table 3.", low=0
    )
    correlation: float = key(
        0.8, "Assumed correlation over cases of the scores of two methods: do both fail on the same?", low=-1, high=1
    )
    training_sd: float = key(
        0.005, "Assumed standard deviation of a method's mean score over trainings that differ by their seed.", low=0
    )
    cases: int | None = key(None, "Number of test cases; null: those of the dataset, or of the results.", low=2)
    trainings: int | None = key(None, "Trainings of each method; null: seeds times folds of the study.", low=1)
    difference: float = key(MARGIN, "Difference between two methods that should be seen.", above=0)
    power: float = key(0.8, "Probability with which it should be seen.", above=0.5, below=1)


@dataclass(frozen=True, kw_only=True)
class ConvertSettings(Settings):
    """All keys of `umamba convert`."""

    archive: Archive = key(
        sentence="A public dataset: flare, amos, endovis, cell, nuclei (BBBC038), msd (a task of the Decathlon), "
        "totalsegmentator. Or a layout: bids, or folders, which means a folder for each patient, as BraTS has them, or "
        "imagesTr and labelsTr without dataset.json, which is then written. merge: raw datasets whose cases carry "
        "different labels are joined."
    )
    source: Path = key(
        sentence="Folder of the unpacked archive, or of several unpacked archives. merge: the folder that holds the "
        "datasets.",
        existing=True,
    )
    name: str | None = key(
        None,
        "Name of the new dataset, such as Dataset500_Mine; null: the archive's own. totalsegmentator, bids, folders "
        "and merge need it.",
    )
    channels: tuple[str, ...] = key(
        (),
        "folders: endings of the image files of a patient, one for each channel, such as [_t1.nii.gz,_flair.nii.gz] "
        "(names of the channels, if only dataset.json is written). bids: kinds of images, such as [T1w,FLAIR]. Empty: "
        "all that every patient has.",
    )
    label: str | None = key(
        None,
        "folders: ending of the label file of a patient, such as _seg.nii.gz. bids: kind of the label maps, such as "
        "dseg or label-lesion_mask. null: the only one that can be meant.",
    )
    labels: tuple[str, ...] = key(
        (),
        "bids and folders: names of the labels in ascending order of their values. totalsegmentator: the structures "
        "that are kept. Empty: all, with the names that are known.",
    )
    datasets: tuple[str, ...] = key(
        (), "merge: folders in source of the datasets that are joined, such as [Dataset001_A,Dataset002_B]."
    )
    crop: bool = key(
        False,
        "EndoVis only: crop each frame to the camera's picture of 1280x1024. The plan of Table 2 needs whole frames.",
    )
    videos: Literal["separate", "official", "new"] = key(
        "separate",
        "EndoVis only: what happens with a video that is in the training and the test set. separate: it is refused. "
        "official: it stays if its test frames come after its training frames (the split of the challenge and the "
        "paper). new: it is left out of the test set.",
    )
    workers: int | None = key(None, "Threads that read and write; null: all CPUs of the allocation.", low=1)
    paths: PathsSettings = key(PathsSettings, "Folders of raw datasets, preprocessed cases and runs.")

    def conflicts(self) -> Iterator[str]:
        """Yield keys that the archive does not have."""
        for entry, archives in _CONVERT_KEYS.items():
            if getattr(self, entry) and self.archive not in archives:
                known = " and ".join(archives)
                yield f"{entry}: archive={self.archive} does not have this key, only {known}. Leave it out."


@dataclass(frozen=True, kw_only=True)
class ExportSettings(TrustSettings):
    """All keys of `umamba export`."""

    checkpoint: Path = key(
        sentence="A checkpoint of a run; for format=nnunet its architecture must be unet or resenc_unet.",
        existing=True,
        zoo=True,
    )
    output: Path = key(
        sentence="nnunet: folder of nnU-Net's results; the network is written to "
        "<dataset>/nnUNetTrainer__<plans>__<configuration>. share: the new file, such as liver.ckpt. onnx: the new "
        "folder."
    )
    format: Literal["nnunet", "share", "onnx"] = key(
        "nnunet",
        "nnunet: a folder that nnU-Net predicts with. share: a checkpoint to give away, for predict, fine-tuning and "
        "export: weights, plan, labels and settings, without optimiser, paths and names of machine or user. onnx: the "
        "network as ONNX, with a description and a script that predict without PyTorch.",
    )
    fold: int | Literal["all"] = key(
        0,
        "nnunet: fold in nnU-Net's folder, a number or all. Several folds of one plan can be in the same output.",
        low=0,
    )
    segmentation_only: bool = key(
        False, "nnunet and onnx: leave out the network's classification head (heads.case), which they cannot hold."
    )
    post_processing: Path | None = key(
        None,
        "onnx: JSON file of `umamba find-best`: the labels of which only the largest component is kept; null: none.",
        existing=True,
    )

    def conflicts(self) -> Iterator[str]:
        """Yield keys and outputs that a format does not have."""
        yield from super().conflicts()
        if self.format != "nnunet" and self.fold != 0:
            yield f"fold={self.fold}: format={self.format} writes a single network, which has no fold. Leave it out."
        if self.format == "share" and self.output.suffix != ".ckpt":
            yield f"output={self.output}: format=share writes a single file. Give a name that ends in .ckpt."
        if self.format != "onnx" and self.post_processing is not None:
            yield f"post_processing={self.post_processing}: only format=onnx has this key. Leave it out."
        if self.format == "share" and self.segmentation_only:
            yield "segmentation_only: format=share keeps the classification head. Leave it out."
        if self.format != "onnx" and self.trust:
            yield "trust: only format=onnx builds the network. Leave it out."


@dataclass(frozen=True, kw_only=True)
class SlurmSettings(Settings):
    """The resources that each training of a study asks SLURM for."""

    section: ClassVar[str] = "slurm"
    partition: str | None = key(None, "Partition of the trainings; null: the cluster's default.")
    prepare_partition: str | None = key(
        None, "Partition of the preparation and the report, which need no GPU; null: that of the trainings."
    )
    nodes: int = key(1, "Nodes of a training.", low=1)
    gpus: int = key(1, "GPUs of each node of a training; one process runs on each.", low=0)
    cpus: int = key(13, "CPUs of each node of a training: one for each GPU's process, the others make patches.", low=1)
    memory_gb: int = key(32, "Memory of each node of a training, GB.", low=1)
    time_limit: str = key("24:00:00", "Time limit in SLURM's notation; a longer training is requeued and continues.")
    max_parallel: int = key(8, "Number of trainings that run at the same time.", low=1)
    warn_s: int = key(
        120, "SLURM warns a training this many seconds before the time limit, so that it can stop.", low=1
    )
    extra: tuple[str, ...] = key((), "Further options of sbatch, such as [--account=NAME].")

    def conflicts(self) -> Iterator[str]:
        """Yield a wrong time limit and wrong options."""
        if not _LIMIT.fullmatch(self.time_limit.strip().lower()):
            yield f"slurm.time_limit={self.time_limit}: must be written as SLURM does, such as 24:00:00 or 2-00:00:00."
        for option in self.extra:
            if not option.startswith("-"):
                yield f"slurm.extra: {option} is no option of sbatch. Write it with its dashes, such as --account=NAME."
