"""Whether a command's dataset is there, asked before the imports of training, which take seconds."""

from umamba.io.errors import UserError
from umamba.settings import TrainSettings


def absent_dataset(settings: TrainSettings) -> str | None:
    """Return a sentence if the dataset is not there; None: it is, or is a phantom, which is made when it is needed.

    Args:
        settings: `smoke`, `dataset` and `paths` are read.
    """
    return None if settings.smoke else settings.dataset.absent(settings.paths.raw)


def refuse_absent_dataset(settings: TrainSettings) -> None:
    """Refuse a command whose dataset is not there.

    Args:
        settings: `smoke`, `dataset` and `paths` are read.

    Raises:
        UserError: it is not.
    """
    sentence = absent_dataset(settings)
    if sentence:
        raise UserError(sentence)
