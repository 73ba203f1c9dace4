"""`umamba pretrain`: train one network to reconstruct hidden parts of images, without labels."""

from umamba.io.errors import UserError
from umamba.settings import PretrainSettings


def main(settings: PretrainSettings) -> None:
    """Pretrain.

    Args:
        settings: the settings of the run.

    Raises:
        UserError: the dataset is absent or has problems, or the run cannot be trained with these settings.
    """
    absent = None if settings.smoke else settings.dataset.absent()
    if absent:  # checked before the imports of training, which take seconds
        raise UserError(absent)
    from umamba.runs.pretraining import pretrain

    pretrain(settings)
