"""Sweeps (-m) and Hydra's own options (--cfg, --info, ...), the only command lines that Hydra itself runs."""

import sys
from collections.abc import Callable
from typing import Any

import hydra
from omegaconf import DictConfig

from umamba.cli.compose import config_name, settings_from, sweep_problems
from umamba.cli.hydra_options import hydra_arguments, objective, shown_settings
from umamba.cli.share import share
from umamba.io.errors import UserError
from umamba.settings import InvalidSettings, Settings, TrainSettings

_SWEEP = ("-m", "--multirun")


def through_hydra(function: Callable[[Any], int | None], record: type[Settings], arguments: list[str]) -> int:
    """Run a command once for each run of a sweep, or do what Hydra's options ask for.

    Args:
        function: runs the command on its settings.
        record: the settings record of the command.
        arguments: overrides and options, as typed.

    Returns:
        The largest exit code of the runs.

    Raises:
        UserError: the overrides have a mistake, or a run ends with one; the later runs of the sweep then do not start.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-") and "=" in argument]
    if any(arguments[index : index + 2] in (["--cfg", "job"], ["-c", "job"]) for index in range(len(arguments))):
        print(shown_settings(record, arguments), end="")
        return 0
    sweep = any(option in arguments for option in _SWEEP)
    if sweep:
        problems = sweep_problems(record, overrides)
        if problems:
            raise InvalidSettings(problems)
    codes: list[int] = []
    mistakes: list[UserError] = []

    def task(config: DictConfig) -> float | None:
        try:
            problems: list[str] = []
            settings = settings_from(record, config, problems)
            if settings is None:
                raise InvalidSettings(problems)
            if isinstance(settings, TrainSettings):
                _refuse_several_processes(settings)
            codes.append(int(function(settings) or 0))
            return objective(settings) if isinstance(settings, TrainSettings) else None
        except UserError as error:
            mistakes.append(error)
            raise SystemExit(2) from None

    command_line = sys.argv
    sys.argv = [command_line[0], *hydra_arguments(record, arguments, sweep)]
    try:
        hydra.main(version_base="1.3", config_path=str(share("configs")), config_name=config_name(record))(task)()
    except SystemExit:
        if mistakes:
            raise mistakes[0] from None
        raise
    finally:
        sys.argv = command_line
    return max(codes, default=0)


def _refuse_several_processes(settings: TrainSettings) -> None:
    """Refuse a training on several devices, because their processes repeat the command line."""
    if settings.trainer.devices != 1 or settings.trainer.num_nodes > 1:
        raise UserError(
            "trainer=ddp: cannot run in a sweep (-m), because each further process repeats the command and would start "
            "the whole sweep. Give one command for each run, or trainer.devices=1."
        )
