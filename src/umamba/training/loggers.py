"""The W&B logger of a run: one W&B run for one run folder, online with an account, offline without."""

import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from umamba.records import RunFolder

log = logging.getLogger(__name__)


class EnduringWandbLogger(WandbLogger):
    """W&B's logger whose errors (no network, service down, disk full) end the logging but not the training."""

    lost = False

    def attempt(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Call a method of W&B's logger, unless an earlier call failed; report the first error."""
        if self.lost:
            return
        try:
            method(*arguments, **options)
        except Exception as error:  # no error of W&B may end the run
            self.lost = True
            reason = (str(error).strip().splitlines() or [""])[0]
            log.warning(
                "W&B: logging has ended (%s: %s). Training goes on, metrics.csv and pictures are complete; the next "
                "continuation logs again.",
                type(error).__name__,
                reason,
            )

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, unless an earlier call failed."""
        self.attempt(super().log_metrics, metrics, step)

    def log_hyperparams(self, params: Any, *arguments: Any, **options: Any) -> None:
        """Log settings, unless an earlier call failed."""
        self.attempt(super().log_hyperparams, params, *arguments, **options)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        """Log pictures, unless an earlier call failed."""
        self.attempt(super().log_image, key, images, step, **options)

    def log_model_file(self, path: Path, name: str) -> None:
        """Upload a checkpoint as an artifact, unless an earlier call failed."""

        def send() -> None:
            import wandb

            artifact = wandb.Artifact(name, type="model")
            artifact.add_file(str(path))
            self.experiment.log_artifact(artifact)

        self.attempt(send)

    def finalize(self, status: str) -> None:
        """Close the W&B run, unless an earlier call failed."""
        self.attempt(super().finalize, status)


def upload_model(loggers: Sequence[Logger], folder: RunFolder) -> None:
    """Upload the last checkpoint of a run to W&B as the artifact model-<id of the W&B run>.

    Args:
        loggers: the loggers of the run; those of other services are left out.
        folder: the run folder.
    """
    for logger in loggers:
        if isinstance(logger, EnduringWandbLogger):
            logger.log_model_file(folder.last, f"model-{folder.status()['wandb_id']}")


def wandb_logger(folder: RunFolder, project: str, entity: str | None, settings: Mapping[str, Any]) -> WandbLogger:
    """Return a logger that continues the run folder's own W&B run.

    Without a key (`wandb login` or WANDB_API_KEY) it logs offline into the run folder and says so once.

    Args:
        folder: the run folder; `wandb_id` is written into its run.json.
        project: W&B project.
        entity: W&B entity; None: the account's default.
        settings: configuration and plan, shown as the run's config.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
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
    return EnduringWandbLogger(
        name="/".join(folder.path.parts[-4:]),
        save_dir=folder.path,
        id=run_id,
        resume="allow",
        mode=mode or "online",
        project=project,
        entity=entity,
        config=dict(settings),
    )


def log_pictures(loggers: Sequence[Logger], key: str, pictures: Mapping[str, Path]) -> None:
    """Send pictures to W&B.

    Args:
        loggers: the loggers of the run; those of other services are left out.
        key: prefix of the pictures' names, which are <key>/<caption>.
        pictures: caption -> PNG file.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for caption, path in pictures.items():
                logger.log_image(f"{key}/{caption}", [str(path)])
