"""`umamba probe`: show how far a trained network looks, and what its mixer layers have to do with it."""

import logging

from umamba.settings import ProbeSettings

log = logging.getLogger(__name__)


def main(settings: ProbeSettings) -> None:
    """Probe a network, write numbers and pictures, and say the main numbers.

    Args:
        settings: the checkpoint, the images and the output.

    Raises:
        UserError: the checkpoint or an image cannot be used.
    """
    from umamba.io import read_json
    from umamba.runs.probe import probe

    path = probe(settings)
    content = read_json(path)
    for name, part in content["parts"].items():
        mm, shuffled = part["radius_mm"], part["change_by_shuffling"]
        log.info(
            "%s: 50, 90, 99 %% of the gradient within %.1f, %.1f, %.1f mm%s",
            *(name, mm["50"], mm["90"], mm["99"]),
            "" if shuffled is None else f"; shuffled tokens change the logits by {shuffled:.3f} standard deviations",
        )
    if content["gradient_beyond_convolutions"] is not None:
        log.info(
            "Beyond the reach of the convolutions (%s voxels): %.2f %% of the gradient",
            *(" x ".join(map(str, content["convolutional_reach_vox"])), 100 * content["gradient_beyond_convolutions"]),
        )
    log.info("Numbers and pictures in %s", path.parent)
