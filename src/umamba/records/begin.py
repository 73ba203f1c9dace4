"""Start or continue a run in its folder: refuse another run's folder, and record every continuation.

`config.yaml` holds the settings with which the run began. Each later process that continues it adds an entry to
`continuations` in run.json: when, after which epoch, by which revision, and what differs from config.yaml.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from umamba.io import UserError, provenance, write_json
from umamba.records.config_file import read_config, write_config
from umamba.records.identity import (
    differences,
    early_stopping,
    former_settings,
    identity_differences,
    learnt_settings,
    scoring_differences,
    scoring_settings,
)
from umamba.records.repair import damaged_scores, repair_config, repair_metrics
from umamba.records.run_folder import RunFolder
from umamba.settings import HeadsSettings, TrainSettings, plain

log = logging.getLogger(__name__)
# Values of run.json that belong to a run that never saved a checkpoint, and must not pass to another one.
_OF_A_RUN = (
    "found_lr",
    "precision",
    "budget",
    "forecast",
    "wandb_id",
    "mlflow_id",
    "continuations",
    "ended_after",
    "scoring",
    "identity",
    "provenance",
)
# Keys of config.yaml that say nothing about a run.
_OF_A_COMMAND = ("restart", "explain", "nnunet_plans", "preview")


def check_same_run(folder: RunFolder, identity: Mapping[str, Any], settings: TrainSettings, processes: int = 1) -> None:
    """Refuse a folder that holds another run; a run counts from its first checkpoint on.

    Args:
        folder: the run folder.
        identity: everything that changes what the present command learns.
        settings: the settings of the present command.
        processes: processes that train together.

    Raises:
        UserError: the folder holds a run that learnt something else; the message lists what differs.
    """
    if not folder.trained():
        return
    lines = identity_differences(_former_identity(folder, settings, processes), identity)
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise UserError(
            f"{folder.path} holds a run that differs from this command in:\n{listed}\n"
            "Give the same values to continue that run, give the new run another name (name=...), or replace the old "
            "run with restart=true."
        )


def begin(
    folder: RunFolder, identity: Mapping[str, Any], settings: TrainSettings, epochs: int, processes: int = 1
) -> None:
    """Write run.json, plan.json and, for a new run, config.yaml; record a continuation.

    Args:
        folder: the run folder, which holds no other run (see `check_same_run`).
        identity: everything that changes what is learnt.
        settings: the settings of the command.
        epochs: completed epochs that a checkpoint holds.
        processes: processes that train together.
    """
    repair_metrics(folder)
    repair_config(folder)
    status, asked = folder.status(), plain(settings)
    for name in _OF_A_COMMAND:
        asked.pop(name, None)
    stop = {
        "max_epochs": settings.trainer.max_epochs,
        "max_seconds": settings.trainer.max_seconds,
        "early_stopping": early_stopping(settings),
    }
    if folder.trained():
        missing = [name for name in identity if name not in status.get("identity", {})]
        if missing and status.get("identity"):
            log.info(
                "%s was written by an earlier version; it now also holds %s, from config.yaml where that has them.",
                folder.status_file,
                ", ".join(missing),
            )
        if not folder.config.exists():
            write_config(folder.config, asked)
        changed = _changes(folder, asked)
        if changed:
            log.info("Continuing with other settings than config.yaml has (noted in run.json): %s", "; ".join(changed))
        entry = {**_now(), "after_epoch": epochs, "differs_from_config": changed}
        status["continuations"] = [*status.get("continuations", []), entry]
        if any(status.get(name, [] if name == "early_stopping" else None) != value for name, value in stop.items()):
            status.pop("ended_after", None)
    else:
        if identity_differences(status.get("identity", {}), identity):
            status = {name: value for name, value in status.items() if name not in _OF_A_RUN}
        write_config(folder.config, asked)
    status.setdefault("provenance", provenance())
    write_json(folder.status_file, {**status, "state": "training", "identity": dict(identity), **stop})
    write_json(folder.plan, identity["plan"])


def scored_otherwise(folder: RunFolder, settings: TrainSettings) -> list[str]:
    """Return why a finished run is scored again: its settings were others, or its scores are damaged.

    Args:
        folder: the run folder.
        settings: the settings of the present command.
    """
    before = folder.status().get("scoring")
    if before is None:
        former = former_settings(folder.config, settings)
        before = scoring_settings(settings if former is None else former)
    return [*damaged_scores(folder), *scoring_differences(before, scoring_settings(settings))]


def _former_identity(folder: RunFolder, settings: TrainSettings, processes: int) -> dict[str, Any]:
    """Return the identity in run.json; what an earlier version did not write there comes from config.yaml."""
    identity = dict(folder.status().get("identity", {}))
    former = None if "recipe" in identity else former_settings(folder.config, settings)
    if former is None:
        return identity
    devices = former.trainer.devices
    count = devices if isinstance(devices, int) else len(devices) if isinstance(devices, tuple) else None
    return {**learnt_settings(former, processes if count is None else count * former.trainer.num_nodes), **identity}


def _changes(folder: RunFolder, asked: Mapping[str, Any]) -> list[str]:
    """Return what differs from config.yaml."""
    first = read_config(folder.config)
    if first is None:
        return ["config.yaml cannot be read"]
    first = {"heads": plain(HeadsSettings()), **first}  # versions before the group wrote none
    first = {name: value for name, value in first.items() if name not in _OF_A_COMMAND}
    return differences("", first, json.loads(json.dumps(asked)))


def _now() -> dict[str, Any]:
    """Return when and by which version a process continues a run."""
    facts = provenance()
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: facts[name] for name in ("umamba", "git", "system")},
    }
