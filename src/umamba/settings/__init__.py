"""Settings: one frozen, typed record for each YAML group with its defaults and help, and the validator of all records.

Nothing here imports torch or Hydra, so that help and mistakes answer at once.
"""

from umamba.settings.architecture import (
    ARCHITECTURES,
    ArchitectureSettings,
    CustomArchitectureSettings,
    ResEncUNetSettings,
    SegResNetSettings,
    SwinUNETRSettings,
    TrustSettings,
    UMambaBotSettings,
    UMambaEncSettings,
    UNETRSettings,
    UNetSettings,
    read_architecture,
)
from umamba.settings.audit import AuditSettings
from umamba.settings.augmentation import AugmentationSettings, ExtraTransform
from umamba.settings.calibrate import CalibrateSettings
from umamba.settings.commands import (
    ConvertSettings,
    EvaluateSettings,
    ExportSettings,
    PowerSettings,
    ReportSettings,
    SlurmSettings,
)
from umamba.settings.dataset import DatasetSettings, PathsSettings, PhantomSettings
from umamba.settings.fields import key
from umamba.settings.heads import HeadsSettings
from umamba.settings.masking import MaskingSettings
from umamba.settings.plan import PlannerSettings, PlanSettings
from umamba.settings.prediction import (
    EngineSettings,
    FindBestSettings,
    PredictionSettings,
    PredictSettings,
    SlidingWindowSettings,
    VerifySettings,
)
from umamba.settings.pretraining import PretrainSettings
from umamba.settings.probe import ProbeSettings
from umamba.settings.recipe import FinetuneSettings, LossSettings, OptimizerSettings, RecipeSettings, ScheduleSettings
from umamba.settings.trainer import TrainerSettings
from umamba.settings.training import (
    AfterTrainingSettings,
    DataSettings,
    DescribeSettings,
    LoggerSettings,
    PrepareSettings,
    TrainSettings,
)
from umamba.settings.validate import InvalidSettings, Settings, parse, plain

__all__ = [
    "ARCHITECTURES",
    "AfterTrainingSettings",
    "ArchitectureSettings",
    "AuditSettings",
    "AugmentationSettings",
    "CalibrateSettings",
    "ConvertSettings",
    "CustomArchitectureSettings",
    "DataSettings",
    "DatasetSettings",
    "DescribeSettings",
    "EngineSettings",
    "EvaluateSettings",
    "ExportSettings",
    "ExtraTransform",
    "FindBestSettings",
    "FinetuneSettings",
    "HeadsSettings",
    "InvalidSettings",
    "LoggerSettings",
    "LossSettings",
    "MaskingSettings",
    "OptimizerSettings",
    "PathsSettings",
    "PhantomSettings",
    "PlanSettings",
    "PlannerSettings",
    "PowerSettings",
    "PredictSettings",
    "PredictionSettings",
    "PrepareSettings",
    "PretrainSettings",
    "ProbeSettings",
    "RecipeSettings",
    "ReportSettings",
    "ResEncUNetSettings",
    "ScheduleSettings",
    "SegResNetSettings",
    "Settings",
    "SlidingWindowSettings",
    "SlurmSettings",
    "SwinUNETRSettings",
    "TrainSettings",
    "TrainerSettings",
    "TrustSettings",
    "UMambaBotSettings",
    "UMambaEncSettings",
    "UNETRSettings",
    "UNetSettings",
    "VerifySettings",
    "key",
    "parse",
    "plain",
    "read_architecture",
]
