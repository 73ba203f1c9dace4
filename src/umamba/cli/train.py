"""`umamba train`: train one network, then predict, score and draw its test images."""

from umamba.io.errors import UserError
from umamba.settings import TrainSettings


def main(settings: TrainSettings) -> None:
    """Train, predict, score and draw.

    Args:
        settings: the settings of the run.

    Raises:
        UserError: the dataset is absent or has problems, or the run cannot be trained with these settings.
    """
    absent = None if settings.smoke else settings.dataset.absent()
    if absent:  # checked before the imports of training, which take seconds
        raise UserError(absent)
    from umamba.runs.whole_run import train

    train(settings)
