"""What Hydra itself gets and shows: its arguments, the resolved settings, and the number that a sweeper optimises."""

import math
from collections.abc import Sequence
from itertools import pairwise

from omegaconf import OmegaConf

from umamba.cli.arguments import missing_keys
from umamba.cli.compose import as_forced, config_folders, search_path, settings_of
from umamba.cli.searched import SEARCH_PATH
from umamba.io.errors import UserError
from umamba.settings import Settings, TrainSettings, plain

_OPTUNA, _DIRECTION = "hydra/sweeper=optuna", "hydra.sweeper.direction"
_FAILURES = "hydra.sweeper.max_failure_rate"
_JOB_NAME = "hydra.job.name="
_NO_ROOT = "dataset.root"


def hydra_arguments(record: type[Settings], arguments: Sequence[str], sweep: bool) -> list[str]:
    """Return the arguments as Hydra gets them: values quoted where needed, the user's own folders of configs.

    Args:
        record: the settings record of the command.
        arguments: overrides and options, as typed.
        sweep: whether they are those of a sweep (-m).
    """
    folders = config_folders(arguments)
    kept = [text for text in arguments if not text.startswith(f"{SEARCH_PATH}=")]
    if sum(text.startswith(_JOB_NAME) for text in kept) > 1:
        kept.remove(next(text for text in kept if text.startswith(_JOB_NAME)))  # the user's own name follows it
    found = [as_forced(record, text, folders, sweep) for text in kept]
    options = next((index for index, text in enumerate(kept) if text.startswith("-")), len(kept))
    found, after = found[:options], found[options:]
    if _OPTUNA in kept and not any(text.lstrip("+").startswith(_DIRECTION) for text in kept):
        found.append(f"{_DIRECTION}=maximize")  # Optuna's own default would look for the lowest score
    if _OPTUNA in kept and not any(text.lstrip("+").startswith(_FAILURES) for text in kept):
        found.append(f"{_FAILURES}=1.0")  # a trial that fails does not end the search
    return [*found, *search_path(folders), *after]  # Hydra wants its options at the end


def shown_settings(record: type[Settings], arguments: Sequence[str]) -> str:
    """Return all settings of a command as YAML, with their defaults: what `--cfg job` shows.

    Args:
        record: the settings record of the command.
        arguments: overrides and options, as typed; `--package KEY` chooses one key or group.

    Raises:
        UserError: the overrides have a mistake, or there is no such package.
    """
    overrides = [text for text in arguments if not text.startswith("-") and "=" in text]
    if _NO_ROOT in missing_keys(record, overrides):  # the only value that train, prepare and describe ask for
        values = plain(settings_of(record, [*overrides, f"{_NO_ROOT}=."]))
        values["dataset"]["root"] = "???"
    else:
        values = plain(settings_of(record, overrides))
    for option, package in pairwise(arguments):
        if option in ("-p", "--package"):
            for name in package.split("."):
                if not isinstance(values, dict) or name not in values:
                    raise UserError(f"{option} {package}: there is no such key. Choose one that --cfg job shows.")
                values = values[name]
    return OmegaConf.to_yaml(OmegaConf.create(values)) if isinstance(values, dict | list) else f"{values}\n"


def objective(settings: TrainSettings) -> float:
    """Return the number that a sweeper such as Optuna optimises: the score of a run's validation cases.

    It is the mean over cases of the mean over labels of the DSC (of the F1 for cells). If the validation cases are not
    predicted (predict.validation=false), it is the highest smoothed Dice of validation patches. Test images have no
    part in it, because a choice by their scores would make the scores too good.

    Args:
        settings: the settings of a run that ended.
    """
    from umamba.records import RunFolder
    from umamba.records.tables import main_score, read_metrics, read_scores
    from umamba.runs.smoke import smoke_test

    folder = RunFolder.of(smoke_test(settings) if settings.smoke else settings)
    score = main_score(read_scores(folder.validation_scores))
    if not math.isnan(score):
        return score
    column = "val/ema_patch_dice"
    dice = [float(row[column]) for row in read_metrics(folder.metrics) if row.get(column)]
    return max(dice, default=math.nan)
