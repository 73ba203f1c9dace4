"""`umamba find-best`: find the best of several trained configurations, and its post-processing."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from umamba.settings import FindBestSettings

log = logging.getLogger(__name__)


def main(settings: FindBestSettings) -> None:
    """Validate the candidates, show the ranking, and the command that predicts with the best one.

    Args:
        settings: the candidates, their dataset, and where the results are written.

    Raises:
        UserError: the candidates differ in their trained folds, or a candidate has no trained fold.
    """
    from umamba.cli.words import quoted
    from umamba.runs.select import find_best, mean_score, ranking_table

    found = find_best(settings)
    log.info(ranking_table(found.ranked))
    steps = ", then of ".join(str(list(values)) for values in found.post_processing.steps)
    kept = f"keep the largest component of labels {steps}" if steps else "none improves the DSC"
    log.info("Post-processing: %s; DSC %.4f before, %.4f after", kept, found.best.mean, mean_score(found.scores))

    def listed(paths: Sequence[Path]) -> str:
        return ",".join(quoted(text) if set(text) & set(",[]{}'\"") else text for text in map(str, paths))

    given = [f"checkpoint=[{listed(found.best.checkpoints)}]"]
    given += [f"previous_checkpoint=[{listed(found.best.previous)}]"] if found.best.previous else []
    given += [f"post_processing={settings.output / 'post_processing.json'}"]
    log.info("To predict with it:\numamba predict %s input=IMAGES output=DIR", shlex.join(given))
