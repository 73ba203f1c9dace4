"""Tell the user that a run has ended or failed: a command of the user's, and W&B's alert."""

import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

from umamba.settings import LoggerSettings

log = logging.getLogger(__name__)

_LIMIT_S = 60


def send_notice(settings: LoggerSettings, state: str, folder: Path, text: str) -> None:
    """Run the user's command and send W&B's alert, if the settings ask for them. No error of theirs ends the run.

    The command gets the text as its last argument, and UMAMBA_STATE and UMAMBA_RUN (the run folder) in its environment.

    Args:
        settings: `notify` and `alert` are read.
        state: finished or failed.
        folder: the run folder.
        text: what to say.
    """
    title = f"{'/'.join(folder.parts[-4:])}: {state}"
    if settings.notify:
        _run(settings.notify, state, folder, f"{title}. {text}")
    wandb = sys.modules.get("wandb")
    if settings.alert and wandb is not None and wandb.run is not None:
        try:
            wandb.run.alert(title=title, text=text)
        except Exception as error:  # W&B's own kinds, and those of the network
            log.warning("W&B: the alert could not be sent (%s).", str(error).splitlines()[0] if str(error) else error)


def _run(command: str, state: str, folder: Path, text: str) -> None:
    environment = {**os.environ, "UMAMBA_STATE": state, "UMAMBA_RUN": str(folder)}
    try:
        done = subprocess.run(
            [*shlex.split(command), text],
            env=environment,
            timeout=_LIMIT_S,
            capture_output=True,
            text=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        log.warning("logger.notify=%s: the command could not be run (%s).", command, error)
        return
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        log.warning("logger.notify=%s: the command failed with exit code %d. %s", command, done.returncode, said)
