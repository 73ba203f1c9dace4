"""The training and validation cases of a run: those of its fold, fewer of them, or the images of a pretraining."""

from pathlib import Path

from umamba.io import UserError
from umamba.patches.seeding import generator_of
from umamba.planning import fold_cases
from umamba.runs.preparation import PlannedDataset
from umamba.settings import PretrainSettings, TrainSettings

TRAINING = "imagesTr_"  # begins the names of the dataset's training images in a pretraining


def run_cases(settings: TrainSettings, planned: PlannedDataset) -> tuple[list[str], list[str]]:
    """Return the training cases of a run, and the validation cases of its fold.

    Args:
        settings: `fold`, `seed`, `dataset.num_training`, and `paths.preprocessed` (which may hold a splits file).
        planned: the dataset.

    Raises:
        UserError: there is no such fold, or it has fewer training cases than asked for.
    """
    names = [case.case_id for case in planned.dataset.training]
    if isinstance(settings, PretrainSettings):
        return _image_names(settings, planned, names)
    train, val = fold_cases(names, settings.fold, splits_file(settings, planned), planned.dataset.groups)
    wanted = settings.dataset.num_training
    if wanted is None:
        return train, val
    if wanted > len(train):
        raise UserError(
            f"dataset.num_training={wanted}: fold {settings.fold} of {planned.dataset.name} has {len(train)} training "
            "cases. Give at most that many, or null for all."
        )
    return drawn_cases(train, wanted, settings.seed), val


def _image_names(settings: PretrainSettings, planned: PlannedDataset, names: list[str]) -> tuple[list[str], list[str]]:
    """Return the images that are learnt, and those of the fold's validation cases, which are not (with fold=all: all).

    So a network that is fine-tuned on the same fold has never seen its validation images.
    """
    cases = [name.removeprefix(TRAINING) for name in names if name.startswith(TRAINING)]
    _, val = fold_cases(cases, settings.fold, splits_file(settings, planned), planned.dataset.groups)
    held_out = [TRAINING + name for name in val]
    return (names if settings.fold == "all" else [name for name in names if name not in set(held_out)]), held_out


def drawn_cases(cases: list[str], number: int, seed: int) -> list[str]:
    """Return some of the cases, the same for every method with this seed; a larger number adds cases to a smaller one.

    Args:
        cases: all cases, in any order.
        number: how many are wanted.
        seed: of the run.

    >>> two, three = (set(drawn_cases(["a", "b", "c", "d"], number, seed=0)) for number in (2, 3))
    >>> len(two), len(three), two < three
    (2, 3, True)
    """
    names = sorted(cases)
    order = generator_of(seed, "training cases").permutation(len(names))
    return sorted(names[index] for index in order[:number])


def splits_file(settings: TrainSettings, planned: PlannedDataset) -> Path | None:
    """Return the dataset's own splits_final.json.

    Args:
        settings: the settings of the run.
        planned: the dataset.

    Returns:
        The file in the raw dataset, else the one beside the preprocessed cases; None: there is none.
    """
    for folder in (planned.dataset.root, settings.paths.preprocessed / planned.dataset.name):
        if (folder / "splits_final.json").exists():
            return folder / "splits_final.json"
    return None
