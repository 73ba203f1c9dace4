"""`umamba verify`: repeat the segmentations of a folder and say yes or no for each."""

import logging

from umamba.io.escape import printable
from umamba.settings import VerifySettings

log = logging.getLogger(__name__)


def main(settings: VerifySettings) -> int:
    """Verify each case and log a line for it.

    Args:
        settings: the folder, and where checkpoints and images are.

    Returns:
        0 if each segmentation is the recorded one and was repeated to the voxel, else 1.

    Raises:
        UserError: nothing says what made the segmentations.
    """
    from umamba.inference.verify import verify

    total = wrong = 0
    for verdict in verify(settings):
        total += 1
        wrong += not verdict.same
        reason = f": {verdict.reason}" if verdict.reason else ""
        log.info("%s  %s", "yes" if verdict.same else "no ", printable(f"{verdict.case_id}{reason}"))
    log.info("%d of %d segmentations are confirmed.", total - wrong, total)
    return int(wrong > 0)
