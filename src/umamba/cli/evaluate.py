"""`umamba evaluate`: score folders of segmentations."""

import logging

from umamba.io.errors import UserError
from umamba.settings import EvaluateSettings

log = logging.getLogger(__name__)


def main(settings: EvaluateSettings) -> None:
    """Score and draw all cases that can be, then report the others.

    Args:
        settings: folders, protocol and options.

    Raises:
        UserError: some cases could not be scored or drawn; the tables and pictures hold the others.
    """
    from umamba.evaluation.evaluate import evaluate

    found = evaluate(settings)
    log.info("Tables and pictures: %s", settings.output.absolute())
    faults = []
    if found.problems:
        faults += ["These cases could not be scored; the tables hold the others:", *found.problems]
    if found.undrawn:
        faults += ["These overlays could not be drawn; no score depends on them:", *found.undrawn]
    if faults:
        raise UserError("\n".join(faults))
