"""`umamba predict`: segment images; checkpoints and images are all that is needed."""

import logging

from umamba.settings import PredictSettings

log = logging.getLogger(__name__)


def main(settings: PredictSettings) -> None:
    """Load the networks and segment the images.

    Args:
        settings: the checkpoints, the images, and how they are segmented.

    Raises:
        UserError: a checkpoint or an image cannot be used.
    """
    from umamba.inference import PostProcessing, Predictor

    predictor = Predictor.from_checkpoint(
        settings.checkpoints,
        device=settings.device,
        precision=settings.precision,
        post_processing=PostProcessing.read(settings.post_processing) if settings.post_processing else None,
        trust=settings.trust,
    )
    paths = predictor.predict(settings.input, settings.output, settings)
    log.info("Segmentations in %s: %d", settings.output, len(paths))
