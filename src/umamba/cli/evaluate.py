"""`umamba evaluate`: score folders of segmentations."""

import logging

from umamba.io.errors import UserError
from umamba.settings import EvaluateSettings

log = logging.getLogger(__name__)


def main(settings: EvaluateSettings) -> None:
    """Score what can be scored, then name what cannot.

    Raises:
        UserError: cases that could not be scored; the others are.
    """
    from umamba.evaluation.evaluate import evaluate

    found = evaluate(settings)
    log.info("Tables and pictures: %s", settings.output.absolute())
    if found.problems:
        raise UserError("These cases could not be scored; the others are:\n" + "\n".join(found.problems))
