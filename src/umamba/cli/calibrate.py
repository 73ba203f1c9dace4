"""`umamba calibrate`: learn from scored cases how far to trust a segmentation."""

import logging
import math

from umamba.settings import CalibrateSettings

log = logging.getLogger(__name__)


def main(settings: CalibrateSettings) -> None:
    """Calibrate, say how well it does on cases that it did not learn from, and the key that uses it.

    Args:
        settings: the networks, the cases and the output.

    Raises:
        UserError: there are too few cases, or networks, images or references cannot be used.
    """
    from umamba.cli.words import override_of
    from umamba.runs.calibration import calibrate

    found = calibrate(settings)
    for own in found.calibration.labels:
        said = "" if own.fits else ": too few for an expected score"
        log.info("%s: %d of %d cases%s", own.label, own.cases, found.calibration.cases, said)
    checked = found.checked
    if math.isnan(checked["aurc_expected"]):
        log.warning("Too few cases to check this on cases that it did not learn from.")
    else:
        log.info(
            "After learning from four fifths of the cases, on the others: %.0f %% of the DSC are in their %.0f %% "
            "interval (mean width %.3f), %.0f %% of the cases are beyond what was learned.",
            100 * checked["coverage"],
            100 * found.calibration.coverage,
            checked["width"],
            100 * checked["beyond"],
        )
        log.info(
            "Area under the risk-coverage curve (lower is better): %.4f by expected DSC, %.4f by mean softmax "
            "confidence, %.4f in a random order, %.4f at best.",
            *(checked[f"aurc_{name}"] for name in ("expected", "confidence", "random", "best")),
        )
    log.info("Predict with %s", override_of("quality", found.path))
