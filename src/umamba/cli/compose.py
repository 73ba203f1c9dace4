"""Make settings from a command line: Hydra composes the configuration, the records of `umamba.settings` check it.

No other module uses Hydra's composition. This one imports nothing heavy, so that help and mistakes answer at once.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from umamba.cli.searched import SEARCH_PATH, searched_folders
from umamba.cli.share import share
from umamba.cli.words import has_choices, is_cut, override_of, parsed, quoted, readable, split, with_quotes
from umamba.io.errors import UserError
from umamba.settings import (
    CustomArchitectureSettings,
    DescribeSettings,
    InvalidSettings,
    Settings,
    TrainSettings,
    parse,
)
from umamba.settings.training import NO_DATASET
from umamba.settings.wording import unknown_name, wrong_choice

Record = TypeVar("Record", bound=Settings)
_TRIED = 20  # runs of a sweep that are composed to find one that can start
# Base configs: train.yaml chooses an option of each group; command.yaml only has the paths, for the other commands.
TRAIN, COMMAND = "train", "command"


def settings_of(record: type[Record], overrides: Sequence[str]) -> Record:
    """Compose the settings of a command.

    Args:
        record: the settings record of the command.
        overrides: `key=value` and `group=option`, as typed.

    Raises:
        InvalidSettings: all mistakes together: wrong groups, unknown keys, wrong values, impossible combinations.
    """
    problems, texts = _checked(record, overrides, sweep=False)
    config = _composed(record, texts, config_folders(overrides), problems)
    if config is not None:
        settings = settings_from(record, config, problems)
        if settings is not None:
            return settings
    raise InvalidSettings(problems)


def settings_from(record: type[Record], config: DictConfig, problems: list[str]) -> Record | None:
    """Return the settings of a composed configuration.

    Args:
        record: the settings record.
        config: the configuration that Hydra composed.
        problems: receives a sentence for each mistake.

    Returns:
        The settings; None if there are problems.
    """
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        problems.append(where + str(error).splitlines()[0])
        return None
    if config_name(record) == COMMAND and "paths" not in record.__dataclass_fields__:
        values.pop("paths", None)
    if issubclass(record, DescribeSettings):
        values["dataset"].setdefault("root", NO_DATASET)  # a checkpoint or a plans file needs no dataset
    try:
        settings = parse(record, values)
        check_without_data(settings)
    except UserError as error:
        problems += error.problems if isinstance(error, InvalidSettings) else [str(error)]
        return None
    return None if problems else settings


def check_without_data(settings: Settings) -> None:
    """Check what the records cannot check themselves and what needs no data.

    Args:
        settings: the settings of any command; only those of training are checked.

    Raises:
        UserError: plan.paper for a dataset that the paper's Table 2 does not have, a wrong option of a backbone or
            loss of the user's own, or a value that a transform of TorchIO refuses.
    """
    if not isinstance(settings, TrainSettings):
        return
    if settings.plan.paper:
        from umamba.planning import planned_configuration

        planned_configuration(settings.dataset.root.name, settings.plan.paper, settings.plan.configuration)
    if isinstance(settings.architecture, CustomArchitectureSettings):
        from umamba.networks.build import custom_settings

        custom_settings(settings.architecture)
    if settings.recipe.loss.name is not None:
        from umamba.training.losses import own_loss_options

        own_loss_options(settings.recipe.loss)
    if settings.augmentation.extra:
        from umamba.patches.extra import check_arguments

        check_arguments(settings.augmentation)


def config_name(record: type[Settings]) -> str:
    """Return the name of the config that the settings of a command are composed from.

    Args:
        record: the settings record of the command.
    """
    return TRAIN if issubclass(record, TrainSettings) else COMMAND


def as_forced(record: type[Settings], argument: str, folders: Sequence[Path], sweep: bool = False) -> str:
    """Return an argument in Hydra's form that changes a key or adds it.

    The records know which keys exist, so Hydra does not have to: `key=value` and `+key=value` both become
    `++key=value`, with the value as `words.readable` returns it. Choices of groups, Hydra's own keys, deletions and
    options stay as they are; a group that only the user has is added to the defaults.

    Args:
        record: the settings record of the command.
        argument: an argument of the command line.
        folders: the folders of configs.
        sweep: the command line is that of a sweep (-m).

    >>> as_forced(TrainSettings, "+smoke=true", config_folders())
    '++smoke=true'
    """
    key, equals, value = argument.lstrip("+").partition("=")
    if not equals or argument.startswith(("-", "~")) or key.startswith("hydra"):
        return argument
    if is_group(key, folders[:1]):
        return argument
    return f"+{key}={value}" if is_group(key, folders) else f"++{key}={readable(record, key, value, sweep)}"


def is_group(key: str, folders: Sequence[Path]) -> bool:
    """Return whether a name is a group of configs.

    Args:
        key: the part of an override before the =.
        folders: the folders of configs.
    """
    return bool(key) and "." not in key and any((root / key.split("@")[0]).is_dir() for root in folders)


def options_of(group: str, folders: Sequence[Path] | None = None) -> list[str]:
    """Return the names of a group's options.

    Args:
        group: name of the group.
        folders: the folders of configs; None: those without a search path.
    """
    roots = config_folders() if folders is None else folders
    return sorted({path.stem for root in roots for path in (root / group.split("@")[0]).glob("*.yaml")})


def group_names() -> list[str]:
    """Return the names of the groups."""
    return sorted({path.name for root in config_folders() for path in root.iterdir() if path.is_dir()})


def config_folders(overrides: Sequence[str] = ()) -> list[Path]:
    """Return the folders of configs: the program's, ./configs if it exists, and those of hydra.searchpath.

    Args:
        overrides: the overrides of the command; --config-dir was replaced by hydra.searchpath.

    Raises:
        UserError: hydra.searchpath names a folder or package that does not exist, or is no list.
    """
    own, local = share("configs"), Path.cwd() / "configs"
    found = [own, *([local] if local.is_dir() else []), *searched_folders(overrides)]
    return list({folder.resolve(): folder for folder in found}.values())


def search_path(folders: Sequence[Path]) -> list[str]:
    """Return the override by which Hydra finds the user's own options; empty if there are none.

    Args:
        folders: the folders of configs, the program's first.
    """
    return [override_of(SEARCH_PATH, [f"file://{folder}" for folder in folders[1:]])] if folders[1:] else []


def sweep_problems(record: type[Settings], overrides: Sequence[str]) -> list[str]:
    """Check the overrides of a sweep, whose values may be lists: each option of a group, and whether any run can start.

    A run that cannot start is refused when its turn comes, if others can.

    Args:
        record: the settings record of the command.
        overrides: as typed, such as fold=0,1,2.

    Returns:
        A sentence for each problem.
    """
    problems, texts = _checked(record, overrides, sweep=True)
    folders = config_folders(overrides)
    choices = [_each_choice(text, folders) for text in texts]
    first: list[str] = []
    for index in range(min(_TRIED, max(map(len, choices), default=1))):
        found: list[str] = []
        config = _composed(record, [each[index % len(each)] for each in choices], folders, found)
        if config is not None:
            settings_from(record, config, found)
        if not found:
            return problems
        if found == first:  # the mistake is none of the values that vary
            break
        first = first or found
    return problems + first


def _checked(record: type[Settings], overrides: Sequence[str], sweep: bool) -> tuple[list[str], list[str]]:
    """Return the problems of the overrides' form and groups, and the overrides that have none."""
    problems: list[str] = []
    right = []
    folders = config_folders(overrides)
    for text in overrides:
        if text.startswith(f"{SEARCH_PATH}="):
            continue
        if "=" not in text and not text.startswith("~"):
            problems.append(f"{text}: must be key=value or group=option.")
            continue
        forced = as_forced(record, text, folders, sweep)
        override = parsed(forced)
        wrong = [_unread(record, text, folders)] if override is None else _wrong_values(text, override, folders, sweep)
        problems += wrong
        if not wrong:
            right.append(forced)
    return problems, right


def _unread(record: type[Settings], text: str, folders: Sequence[Path]) -> str:
    """Return the sentence about an override that Hydra cannot read: its key, its option, or quotes that are missing."""
    key, _, value = text.lstrip("+").partition("=")
    if parsed(f"{key}=1") is None:
        return unknown_name(key, "", [entry.name for entry in fields(record)])
    if is_group(key, folders):
        return wrong_choice(key, value, options_of(key, folders))
    if value.startswith("{") and not is_cut(value):
        return f"{text}: cannot be read. Names before a colon may have letters of English, digits and - _ . only."
    if "," in value and not is_cut(value):
        values = ",".join(quoted(entry) for entry in split(value))
        return f"{text}: cannot be read. Put quotes around each value: {shlex.quote(f'{key}={values}')}"
    return f"{text}: cannot be read. If the value is meant as it stands, put quotes around it: {with_quotes(text)}"


def _wrong_values(text: str, override: Override, folders: Sequence[Path], sweep: bool) -> list[str]:
    """Return a sentence for several values without -m, and for each option of a group that does not exist."""
    group = override.key_or_group
    if override.is_delete():
        return []
    if not sweep and has_choices(override):
        return [f"{text}: several values need a sweep, -m {text}. A list is written in brackets: '{group}=[...]'"]
    if not is_group(group, folders):
        return []
    known, chosen = options_of(group, folders), _choices(override, folders)
    if not chosen:
        return [f"{override.input_line}: matches no option of {group}. The options are {', '.join(known)}."]
    wrong = [name for name in chosen if name is not None and not (isinstance(name, str) and name in known)]
    return [wrong_choice(group, name, known) for name in wrong]


def _choices(override: Override, folders: Sequence[Path]) -> list[Any]:
    """Return the values that an override stands for: one, those of a sweep, or the options that a pattern matches."""
    value = override.value()
    if isinstance(value, Glob):
        return value.filter(options_of(override.key_or_group, folders))
    return list(override.sweep_string_iterator()) if override.is_discrete_sweep() else [value]


def _each_choice(text: str, folders: Sequence[Path]) -> list[str]:
    """Return the override for each of its values; of an interval, its beginning."""
    override = OverridesParser.create().parse_override(text)
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{override.get_key_element()}={value.start}"]
    if not override.is_discrete_sweep():
        return [text]
    return [f"{override.get_key_element()}={choice}" for choice in _choices(override, folders)]


def _composed(
    record: type[Settings], overrides: Sequence[str], folders: Sequence[Path], problems: list[str]
) -> DictConfig | None:
    GlobalHydra.instance().clear()  # because a study composes its runs while another configuration is open
    try:
        with initialize_config_dir(str(share("configs")), version_base="1.3"):
            return compose(config_name(record), [*overrides, *search_path(folders)])
    except (HydraException, OmegaConfBaseException) as error:
        problems.append(_plain_message(error))
        return None
    finally:
        GlobalHydra.instance().clear()


def _plain_message(error: Exception) -> str:
    """Return Hydra's message without its search path and hints for developers."""
    dropped = ("Config search path", "HYDRA_FULL_ERROR", "\tprovider=")
    lines = [line for line in str(error).strip().splitlines() if line.strip() and not any(d in line for d in dropped)]
    if re.search(r"hydra/(sweeper|launcher)", str(error)):
        lines.append("Sweepers and launchers such as optuna and submitit_slurm: pip install 'umamba[sweepers]'")
    return "\n".join(lines) or type(error).__name__
