"""`umamba audit`: rank what is probably labelled wrongly in a training set."""

import logging

from umamba.io.escape import printable
from umamba.settings import AuditSettings

log = logging.getLogger(__name__)

_MOST = 20  # cases that are printed


def main(settings: AuditSettings) -> None:
    """Audit the labels, and say which cases somebody should look at.

    Args:
        settings: the runs, their dataset and the output.

    Raises:
        UserError: the dataset or the runs cannot be used.
    """
    from umamba.evaluation.audit_ranking import reason
    from umamba.runs.label_audit import audit

    found = audit(settings)
    for each in found.ranked[: min(found.review, _MOST)]:
        log.info("%5.1f  %s: %s", each.score, printable(each.case), printable(reason(each, found.names)))
    if found.review > _MOST:
        log.info("       and %d more", found.review - _MOST)
    log.info("%d of %d cases are listed for review.", found.review, len(found.ranked))
    log.info("Tables and pictures: %s", found.page)
