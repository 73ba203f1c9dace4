"""`umamba train`: one run from its settings to its scores."""

from umamba.io.errors import UserError
from umamba.settings import TrainSettings


def main(settings: TrainSettings) -> None:
    """Train, predict, score and draw.

    Raises:
        UserError: a mistake in the dataset or the settings.
    """
    absent = None if settings.smoke else settings.dataset.absent()
    if absent:  # before the imports of training, which take seconds
        raise UserError(absent)
    from umamba.runs.whole_run import train

    train(settings)
