"""`umamba evaluate`: score folders of segmentations."""

import logging

from umamba.io.errors import UserError
from umamba.settings import EvaluateSettings

log = logging.getLogger(__name__)


def main(settings: EvaluateSettings) -> None:
    """Score all cases that can be scored, then report the others.

    Args:
        settings: folders, protocol and options.

    Raises:
        UserError: some cases could not be scored; the tables hold the others.
    """
    from umamba.evaluation.evaluate import evaluate

    found = evaluate(settings)
    log.info("Tables and pictures: %s", settings.output.absolute())
    if found.problems:
        raise UserError("These cases could not be scored; the tables hold the others:\n" + "\n".join(found.problems))
