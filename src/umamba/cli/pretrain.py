"""`umamba pretrain`: train one network to reconstruct hidden parts of images, without labels."""

from umamba.cli.absent import refuse_absent_dataset
from umamba.settings import PretrainSettings


def main(settings: PretrainSettings) -> None:
    """Pretrain.

    Args:
        settings: the settings of the run.

    Raises:
        UserError: the dataset is absent or has problems, or the run cannot be trained with these settings.
    """
    refuse_absent_dataset(settings)
    from umamba.runs.pretraining import pretrain

    pretrain(settings)
