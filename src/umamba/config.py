"""The typed configuration of the entries: every key with its sentence; keys that are not here are errors."""

from dataclasses import dataclass, field
from typing import Any

MISSING = "???"  # omegaconf's mark of a value that the user must give


@dataclass
class PathsConfig:
    """Where things are."""

    raw: str = MISSING  # folder of raw datasets (nnU-Net layout), one folder each
    preprocessed: str = MISSING  # folder of fingerprints, plans and preprocessed cases
    runs: str = MISSING  # folder of runs


@dataclass
class DatasetConfig:
    """What is trained on."""

    kind: str = MISSING  # nnunet (a raw folder) or phantom (made on first use)
    root: str = MISSING  # the dataset's folder
    source: str = ""  # where the data are published, for the message when they are absent
    licence: str = ""  # licence of the data
    tolerance_mm: float = 2.0  # tolerance of the NSD, mm (pixels for natural 2D images)
    protocol: str = "generic"  # rules of the scores: generic, abdomen, endoscopy or cell
    phantom: dict[str, Any] = field(default_factory=dict)  # arguments of the phantom's writer, and its scene


@dataclass
class PlannerConfig:
    """By which rules the plan is derived."""

    rules: str = "nnunet"  # nnunet (2.8.1), umamba (the paper's nnU-Net 2.1.1), resenc_m, resenc_l, resenc_xl
    gpu_memory_gb: float | None = None  # memory target; null is the rule set's own (8 for nnunet)


@dataclass
class PlanConfig:
    """Which configuration of the plan is used, and values pinned instead of derived (null: derived)."""

    configuration: str | None = "3d_fullres"  # 2d, 3d_lowres or 3d_fullres; null with paper: the table's
    paper: bool = False  # pin the dataset's row of the paper's Table 2
    from_file: str | None = None  # take the plan from this nnU-Net plans JSON instead of deriving it
    spacing: list[float] | None = None  # target spacing, mm, plan axis order
    patch_size: list[int] | None = None  # voxels, plan axis order
    batch_size: int | None = None  # patches per batch
    batch_dice: bool | None = None  # sum the Dice over the batch before the ratio
    normalization: list[str] | None = None  # one nnU-Net scheme name per channel
    use_mask_for_norm: list[bool] | None = None  # normalise inside the nonzero mask only, per channel
    strides: list[list[int]] | None = None  # one entry a stage, the first all 1
    kernel_sizes: list[list[int]] | None = None  # one entry a stage
    features_per_stage: list[int] | None = None  # one entry a stage
    encoder_blocks: list[int] | None = None  # convolutions (or residual blocks) per encoder stage
    decoder_blocks: list[int] | None = None  # the same per decoder stage, one fewer

    def pinned(self) -> dict[str, Any]:
        """Return the values that are given instead of derived."""
        own = {"configuration", "paper", "from_file"}
        return {name: value for name, value in vars(self).items() if name not in own and value is not None}


@dataclass
class DataConfig:
    """How patches are fed."""

    num_workers: int | None = None  # processes that make patches; null: from the allocation (1 on CPU runs)
    prepare_workers: int | None = None  # processes that prepare the dataset; null: all CPUs of the allocation
    prefetch_factor: int = 2  # batches that each of these processes makes ahead
    iterations_per_epoch: int = 250  # training batches an epoch
    val_iterations: int = 50  # validation batches an epoch
    validate_cases_every: int = 50  # epochs between predictions of whole validation cases; 0: none
    validation_cases: int = 3  # how many of the fold's validation cases that are


@dataclass
class LoggerConfig:
    """Where curves and pictures go beside metrics.csv, which is always written."""

    wandb: bool = True  # log to Weights & Biases; offline without an account or key
    project: str = "umamba"  # W&B project
    entity: str | None = None  # W&B entity; null: the account's default
    panels_every: int = 10  # epochs between overlays of validation patches; 0: none
    upload_model: bool = False  # send the last checkpoint to W&B as an artifact when the run is trained


@dataclass
class PredictConfig:
    """The prediction of validation cases and test images after training."""

    validation: bool = True  # predict and score the fold's validation cases, whole
    checkpoint: str = "last"  # last or best
    tile_step_size: float = 0.5  # step of the sliding window as a fraction of the patch
    tta: bool = False  # mirror the input along all axes and average (off in the paper)


@dataclass
class TrainConfig:
    """Everything `train.py` takes."""

    name: str | None = None  # the experiment's name, first part of the run folder; null: dataset_architecture
    fold: Any = 0  # 0 to 4, or all (train on every case)
    seed: int = 0  # seed of weights, patches and augmentation
    restart: bool = False  # delete what the run folder holds and begin afresh
    pretrained: str | None = None  # fine-tune: checkpoint whose weights a new run starts from
    smoke: bool = False  # +smoke=true: the same run in a minute, on a phantom (see smoke.py)
    paths: PathsConfig = field(default_factory=PathsConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    data: DataConfig = field(default_factory=DataConfig)
    architecture: dict[str, Any] = field(default_factory=dict)  # options of the backbone; see its YAML
    recipe: dict[str, Any] = field(default_factory=dict)  # optimiser, schedule, loss, clipping; see its YAML
    augmentation: dict[str, Any] = field(default_factory=dict)  # kinds, probabilities, ranges; see its YAML
    trainer: dict[str, Any] = field(default_factory=dict)  # arguments of lightning.Trainer
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)


@dataclass
class PrepareConfig(TrainConfig):
    """Everything `prepare.py` takes."""

    explain: bool = False  # print each decision of the planner with the numbers that led to it
    nnunet_plans: str | None = None  # also write the plan to this file, as nnU-Net's plans JSON
    preview: bool = False  # draw augmented training patches with their labels


@dataclass
class DescribeConfig(TrainConfig):
    """Everything `describe.py` takes."""

    checkpoint: str | None = None  # describe the network of this checkpoint instead
    num_classes: int | None = None  # outputs of the network, where a plan is given without its dataset


@dataclass
class PredictionConfig:
    """Everything `predict.py` takes."""

    checkpoint: Any = MISSING  # of a run, of nnU-Net or U-Mamba (or a results folder of these two), or a list of them
    input: str = MISSING  # an image, a DICOM series, or a folder of them
    output: str = MISSING  # folder of the segmentations
    post_processing: str | None = None  # JSON that find_best.py wrote; null: none
    tile_step_size: float = 0.5  # step of the sliding window as a fraction of the patch
    tta: bool = False  # mirror along all axes and average
    device: str = "auto"  # auto, cpu, cuda, ...
    precision: str = "auto"  # auto, 32-true, bf16-mixed or 16-mixed
    max_memory_gb: float | None = None  # GiB of main memory the process may take; null: no limit
    probabilities: bool = False  # write NAME.npz, too
    instances: str | None = None  # components or watershed: write NAME_label.tiff, too; null: no instances
    overwrite: bool = False  # segment again what is already there
    workers: int = 2  # threads on either side of the network

    def checkpoints(self) -> list[str]:
        """Return the checkpoints as a list."""
        return [self.checkpoint] if isinstance(self.checkpoint, str) else [str(path) for path in self.checkpoint]


@dataclass
class FindBestConfig:
    """Everything `find_best.py` takes."""

    candidates: list[str] = MISSING  # type: ignore[assignment]  # folders runs/<experiment>/<configuration>
    raw_dataset: str = MISSING  # raw dataset they were trained on
    output: str = MISSING  # folder of validation segmentations, post_processing.json and best.json
    splits: str | None = None  # splits_final.json of the training; null: the dataset's own, or derived folds
    pairs: bool = True  # also the mean of every two candidates
    checkpoint: str = "last"  # last or best
    seed: int = 0  # seed of the runs
    tile_step_size: float = 0.5  # step of the sliding window as a fraction of the patch
    tta: bool = False  # mirror along all axes and average
    device: str = "auto"  # auto, cpu, cuda, ...
    max_memory_gb: float | None = None  # GiB of main memory the process may take; null: no limit
    workers: int = 2  # threads beside the network


@dataclass
class EvaluationConfig:
    """Everything `evaluate.py` takes."""

    predictions: Any = MISSING  # folder of segmentations, or {name: folder} of several methods
    truth: str = MISSING  # folder of the references
    output: str = MISSING  # folder of the tables and pictures
    protocol: str = "generic"  # generic, abdomen, endoscopy or cell
    strict_official: bool = False  # the official scripts' rules to the letter
    dataset_json: str | None = None  # names of the labels; null: dataset.json beside the folder of references
    tolerance_mm: float = 2.0  # tolerance of the generic NSD
    iou_threshold: float = 0.5  # cell: overlap from which cells are a pair
    count_edge_cells: bool = False  # cell: count cells at the image's edge
    images: str | None = None  # folder of the images, for overlays
    workers: int | None = None  # processes; null: all CPUs of the allocation


@dataclass
class ReportConfig:
    """Everything `report.py` takes."""

    study: str = MISSING  # a folder of experiments/, or the path of one
    output: str | None = None  # folder of the report; null: <paths.runs>/reports/<study>
    overrides: list[str] = field(default_factory=list)  # overrides of every run, as of train.py
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class ConvertConfig:
    """Everything `convert.py` takes."""

    archive: str = MISSING  # flare, amos, endovis or cell
    source: str = MISSING  # folder of the unpacked archive, or of several
    crop: bool = False  # EndoVis: the camera's 1280x1024 picture instead of the whole frame
    videos: str = "separate"  # EndoVis: the same video in training and test: separate (refused), official or new
    workers: int | None = None  # threads; null: all CPUs of the allocation
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class ExportConfig:
    """Everything `export.py` takes."""

    checkpoint: str = MISSING  # checkpoint of a run of unet or resenc_unet
    output: str = MISSING  # folder of nnU-Net's results
    fold: Any = 0  # fold under which nnU-Net finds it: a number, or all
