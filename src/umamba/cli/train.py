"""`umamba train`: train one network, then predict, score and draw its test images."""

from umamba.cli.absent import refuse_absent_dataset
from umamba.settings import TrainSettings


def main(settings: TrainSettings) -> None:
    """Train, predict, score and draw.

    Args:
        settings: the settings of the run.

    Raises:
        UserError: the dataset is absent or has problems, or the run cannot be trained with these settings.
    """
    refuse_absent_dataset(settings)
    from umamba.runs.whole_run import train

    train(settings)
