"""Files of a run that were edited or damaged: repaired before training, or refused in one sentence.

What can be derived is made again, and the damaged file is kept beside it as NAME.damaged. run.json cannot: it holds
what no other file knows.
"""

import logging
import os
from pathlib import Path

from umamba.io import UserError
from umamba.records.config_file import read_config
from umamba.records.run_folder import RunFolder
from umamba.records.tables import metrics_damage, read_metrics, read_scores, write_metrics

log = logging.getLogger(__name__)
_GROUPS = ("dataset", "recipe", "trainer")  # every config.yaml has them


def repair_metrics(folder: RunFolder) -> None:
    """Write a damaged metrics.csv again from its whole rows.

    Args:
        folder: the run folder, which this process has locked.
    """
    damage = metrics_damage(folder.metrics)
    if damage is None:
        return
    rows = read_metrics(folder.metrics)
    aside = _put_aside(folder.metrics)
    if rows:
        write_metrics(folder.metrics, rows)
    log.warning("%s %s: %d whole rows stay; the file is kept as %s.", folder.metrics, damage, len(rows), aside.name)


def repair_config(folder: RunFolder) -> None:
    """Put a damaged config.yaml aside, so that it is written again from the settings of the command.

    Args:
        folder: the run folder, which this process has locked.
    """
    if not folder.config.exists():
        return
    content = read_config(folder.config)
    if content is not None and all(isinstance(content.get(name), dict) for name in _GROUPS):
        return
    aside = _put_aside(folder.config)
    log.warning(
        "%s is damaged. It is written again from the settings of this command, and kept as %s.",
        folder.config,
        aside.name,
    )


def damaged_scores(folder: RunFolder) -> list[str]:
    """Return what is wrong with the scores of a finished run, which then are made again.

    Args:
        folder: the run folder.
    """
    found = []
    for path in (folder.validation_scores, folder.scores):
        try:
            read_scores(path)
        except UserError as error:
            found.append(str(error))
    return found


def _put_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    return aside
