"""`umamba find-best`: the best of several trained configurations, and its post-processing."""

import logging

from umamba.settings import FindBestSettings

log = logging.getLogger(__name__)


def main(settings: FindBestSettings) -> None:
    """Validate the candidates, show the ranking and the command that predicts with the best.

    Raises:
        UserError: the candidates differ in their trained folds, or have none.
    """
    from umamba.runs.select import find_best, mean_score, ranking_table

    found = find_best(settings)
    log.info(ranking_table(found.ranked))
    said = ", then of ".join(str(list(values)) for values in found.post_processing.steps)
    kept = f"keep the largest component of labels {said}" if said else "none helps"
    log.info("Post-processing: %s; DSC %.4f before, %.4f after", kept, found.best.mean, mean_score(found.scores))
    checkpoints = ",".join(str(path) for path in found.best.checkpoints)
    log.info(
        "To predict with it:\npython predict.py 'checkpoint=[%s]' post_processing=%s input=IMAGES output=DIR",
        checkpoints,
        settings.output / "post_processing.json",
    )
