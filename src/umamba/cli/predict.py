"""`umamba predict`: segment images; checkpoints and images are all that is needed."""

import logging

from umamba.settings import PredictSettings

log = logging.getLogger(__name__)


def main(settings: PredictSettings) -> None:
    """Load the networks, segment the images and draw the first ones.

    Args:
        settings: the checkpoints, the images, and how they are segmented.

    Raises:
        UserError: a checkpoint or an image cannot be used.
    """
    from umamba.runs.prediction import predict

    paths = predict(settings)
    log.info("Segmentations in %s: %d", paths[0].parent if paths else settings.output, len(paths))
