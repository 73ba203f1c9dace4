"""The loggers of a run: Weights & Biases, TensorBoard, MLflow. None of their errors ends a training.

One run folder is one run of each service, also over continuations. `metrics.csv` and the pictures in the run folder are
written in any case.
"""

import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers
import pandas
from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread

from umamba.io import UserError
from umamba.io.escape import markdown
from umamba.io.tabular import table_text
from umamba.records import RunFolder
from umamba.settings import LoggerSettings
from umamba.training.user_classes import user_object

log = logging.getLogger(__name__)

_CONNECT_S = 30  # W&B logs offline if it cannot be reached within this time
# Columns whose best value W&B shows beside a run, and which end is the best.
_BEST = {"train/loss": "min", "val/loss": "min", "val/ema_patch_dice": "max", "val/case_dice": "max"}


class EnduringLogger(Logger):
    """A logger of Lightning whose errors (no network, service down, disk full) end the logging but not the training.

    Args:
        inner: the logger.
        service: its name in messages.
    """

    def __init__(self, inner: Logger, service: str) -> None:
        super().__init__()
        self.inner = inner
        self.service = service
        self.lost = False

    def attempt(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a method of the logger, unless an earlier call failed; report the first error and return None."""
        if self.lost:
            return None
        try:
            return method(*arguments, **options)
        except Exception as error:  # no error of a logger may end the run
            self.lost = True
            reason = (str(error).strip().splitlines() or [""])[0]
            log.warning(
                "%s: logging has ended (%s: %s). Training goes on, metrics.csv and pictures are complete; the next "
                "continuation logs again.",
                self.service,
                type(error).__name__,
                reason,
            )
            return None

    @property
    def name(self) -> str | None:
        """Name of the experiment or project."""
        return self.service

    @property
    def version(self) -> str | int | None:
        """Version of the experiment: none, because the run folder names it."""
        return None

    @property
    def save_dir(self) -> str | None:
        """Folder of the logger's files."""
        return self.inner.save_dir

    @property
    def experiment(self) -> Any:
        """The service's own object, such as W&B's run; an object that does nothing once the service is lost."""
        return self.attempt(lambda: self.inner.experiment) or _DummyExperiment()  # type: ignore[attr-defined]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, unless an earlier call failed."""
        self.attempt(self.inner.log_metrics, dict(metrics), step)

    def log_hyperparams(self, params: Any, *arguments: Any, **options: Any) -> None:
        """Log settings, unless an earlier call failed."""
        self.attempt(self.inner.log_hyperparams, params, *arguments, **options)

    def save(self) -> None:
        """Write what is not written yet, unless an earlier call failed."""
        self.attempt(self.inner.save)

    def finalize(self, status: str) -> None:
        """Tell the logger that training has ended, unless an earlier call failed."""
        self.attempt(self.inner.finalize, status)


def check_loggers(settings: LoggerSettings) -> None:
    """Refuse a logger whose package is not installed, or whose class does not exist or refuses its arguments.

    Args:
        settings: the `logger` group.

    Raises:
        UserError: the package or the key is named.
    """
    for package in ("tensorboard", "mlflow"):
        if getattr(settings, package) and find_spec(package) is None:
            raise UserError(
                f"logger.{package}=true: the package {package} is not installed. Run `pip install {package}`, or give "
                f"logger.{package}=false."
            )
    _further(settings)


def _further(settings: LoggerSettings) -> list[Logger]:
    return [
        user_object(f"logger.further[{index}]", entry, Logger, lightning.pytorch.loggers)  # type: ignore[type-abstract]
        for index, entry in enumerate(settings.further)
    ]


def build_loggers(folder: RunFolder, settings: LoggerSettings, tags: Sequence[str], facts: Any) -> list[Logger]:
    """Return the loggers that the settings ask for.

    Args:
        folder: the run folder, into which they write and whose run.json keeps their identifiers.
        settings: the `logger` group.
        tags: dataset, architecture and configuration, by which W&B and MLflow filter runs.
        facts: settings, plan and versions of the run, as plain values.
    """
    loggers: list[Logger] = []
    if settings.wandb:
        loggers.append(_wandb(folder, settings, tags, facts))
    if settings.tensorboard:
        inner: Logger = TensorBoardLogger(folder.path, name="tensorboard", version="")
        loggers.append(EnduringLogger(inner, "TensorBoard"))
    if settings.mlflow:
        loggers.append(_mlflow(folder, settings, tags))
    loggers += [EnduringLogger(inner, type(inner).__name__) for inner in _further(settings)]
    for logger in loggers[1 if settings.wandb else 0 :]:  # W&B has the settings from its start
        logger.log_hyperparams(facts)
    return loggers


def _wandb(
    folder: RunFolder, settings: LoggerSettings, tags: Sequence[str], facts: Mapping[str, Any]
) -> EnduringLogger:
    """Return W&B's logger: online with a key and a network, otherwise offline into the run folder, which it says."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    if wandb.run is not None:
        wandb.finish()  # an earlier run of this process, whose W&B run Lightning would use again
    mode = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.login(prompt=False, verify=False):
        mode = "offline"
        log.info(
            "W&B: no account or key found, logging offline into %s. `wandb login` before the run logs online; "
            "`wandb sync` sends offline runs later.",
            folder.wandb,
        )
    run_id = folder.status().get("wandb_id") or secrets.token_hex(4)
    folder.set_status(wandb_id=run_id)

    def build(mode: str) -> WandbLogger:
        return WandbLogger(
            name="/".join(folder.path.parts[-4:]),
            save_dir=folder.path,
            id=run_id,
            resume="allow",
            mode=mode,
            project=settings.project,
            entity=settings.entity,
            group="/".join(folder.path.parts[-4:-2]),
            job_type="train",
            tags=list(tags),
            settings=wandb.Settings(init_timeout=_CONNECT_S),
            config=dict(facts),
        )

    logger = build(mode or "online")
    try:
        _define_best(logger)
    except Exception as error:  # W&B's own kinds, and those of the network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning(
            "W&B cannot be reached (%s). Logging offline into %s; `wandb sync` sends it later.", reason, folder.wandb
        )
        wandb.teardown()
        logger = build("offline")
    enduring = EnduringLogger(logger, "W&B")
    enduring.attempt(_define_best, logger)
    return enduring


def _define_best(logger: WandbLogger) -> None:
    for column, end in _BEST.items():
        logger.experiment.define_metric(column, summary=f"{end},last")


def _mlflow(folder: RunFolder, settings: LoggerSettings, tags: Sequence[str]) -> EnduringLogger:
    """Return MLflow's logger, which continues the run folder's own MLflow run."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder.path / 'mlflow.db').absolute()}"

    def build() -> tuple[MLFlowLogger, str]:
        inner = MLFlowLogger(
            settings.project,
            run_name="/".join(folder.path.parts[-4:]),
            tracking_uri=uri,
            tags=dict.fromkeys(tags, "true"),
            save_dir=str(folder.path),
            run_id=folder.status().get("mlflow_id"),
        )
        return inner, str(inner.run_id)

    enduring = EnduringLogger(_Nothing(), "MLflow")
    built = enduring.attempt(build)
    if built is not None:
        enduring.inner = built[0]
        folder.set_status(mlflow_id=built[1])
    return enduring


class _Nothing(Logger):
    """Stands for a logger that could not be built."""

    name = version = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Do nothing."""

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        """Do nothing."""


def log_pictures(
    loggers: Sequence[Logger], prefix: str, pictures: Mapping[str, Path], captions: Mapping[str, str] | None = None
) -> None:
    """Send pictures to the services.

    Args:
        loggers: the loggers of the run.
        prefix: of the pictures' names, which are <prefix>/<key>.
        pictures: key -> PNG file.
        captions: key -> text below the picture, such as the case and its score.
    """
    for logger in loggers:
        if isinstance(logger, EnduringLogger):
            for key, path in pictures.items():
                caption = (captions or {}).get(key, path.stem)
                logger.attempt(_log_picture, logger.inner, f"{prefix}/{key}", path, caption)


def _log_picture(inner: Logger, name: str, path: Path, caption: str) -> None:
    if isinstance(inner, WandbLogger):
        inner.log_image(name, [str(path)], caption=[caption])
    elif isinstance(inner, TensorBoardLogger):
        inner.experiment.add_image(name, imread(path)[..., :3], dataformats="HWC")
        inner.experiment.add_text(name, caption)
        inner.experiment.flush()
    elif isinstance(inner, MLFlowLogger):
        inner.experiment.log_artifact(inner.run_id, str(path), name.rpartition("/")[0])


def log_scores(loggers: Sequence[Logger], split: str, scores: pandas.DataFrame, metrics: Sequence[str]) -> None:
    """Send the scores of whole cases: means over cases, for each label and over labels, and the table of all cases.

    Args:
        loggers: the loggers of the run.
        split: validation or test.
        scores: columns case, label and metrics.
        metrics: the columns that are averaged.
    """
    means = {f"{split}/{metric}": float(scores.groupby("case")[metric].mean().mean()) for metric in metrics}
    by_label = scores.groupby("label", sort=False)[list(metrics)].mean()
    means |= {
        f"{split}/{label}/{metric}": float(by_label.loc[label, metric])
        for label in by_label.index
        for metric in metrics
    }
    for logger in loggers:
        if isinstance(logger, EnduringLogger):
            logger.attempt(_log_scores, logger.inner, split, means, scores)


def _log_scores(inner: Logger, split: str, means: dict[str, float], scores: pandas.DataFrame) -> None:
    known = {name: value for name, value in means.items() if value == value}
    if isinstance(inner, WandbLogger):
        inner.experiment.summary.update(known)
        inner.log_table(f"{split}/cases", dataframe=scores)
        return
    inner.log_metrics(known)
    if isinstance(inner, TensorBoardLogger):
        inner.experiment.add_text(f"{split}/cases", _as_markdown(scores))
        inner.experiment.flush()
    elif isinstance(inner, MLFlowLogger):
        inner.experiment.log_text(inner.run_id, table_text(scores), f"{split}.csv")


def _as_markdown(table: pandas.DataFrame) -> str:
    """Return the first 200 rows of a table in Markdown."""
    rows = [table.columns, *table.head(200).itertuples(index=False)]
    lines = ["| " + " | ".join(markdown(v) if isinstance(v, str) else str(v) for v in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(table.columns), *lines[1:]])


def upload_model(loggers: Sequence[Logger], folder: RunFolder) -> None:
    """Upload the last checkpoint of a run to W&B as the artifact model-<id of the W&B run>.

    Args:
        loggers: the loggers of the run; those of other services are left out.
        folder: the run folder.
    """
    for logger in loggers:
        if isinstance(logger, EnduringLogger) and isinstance(logger.inner, WandbLogger):
            logger.attempt(_send_model, logger.inner, folder)


def _send_model(inner: WandbLogger, folder: RunFolder) -> None:
    import wandb

    artifact = wandb.Artifact(f"model-{folder.status()['wandb_id']}", type="model")
    artifact.add_file(str(folder.last))
    inner.experiment.log_artifact(artifact)


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Close the services' runs, so that another run of this process does not log into them.

    Args:
        loggers: the loggers of the run.
    """
    for logger in loggers:
        if isinstance(logger, EnduringLogger):
            logger.attempt(_close, logger.inner)


def _close(inner: Logger) -> None:
    if isinstance(inner, WandbLogger):
        import wandb

        wandb.finish()
    elif isinstance(inner, TensorBoardLogger):
        inner.experiment.close()
