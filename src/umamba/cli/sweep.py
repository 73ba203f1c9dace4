"""Sweeps (-m) and Hydra's own options (--cfg, --info, ...), the only command lines that Hydra itself runs."""

import hashlib
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from umamba.cli.compose import config_name, settings_from, sweep_problems
from umamba.cli.hydra_options import hydra_arguments, objective, shown_settings
from umamba.cli.searched import SEARCH_PATH
from umamba.cli.share import share
from umamba.cli.sweep_table import Outcome, collect_outcomes, outcome_table, write_outcome, write_table
from umamba.io.errors import UserError
from umamba.settings import InvalidSettings, Settings, TrainSettings
from umamba.settings.duration import one_end
from umamba.settings.training import is_folder_name

log = logging.getLogger(__name__)

EXIT_FAILED = 1
_SWEEP = ("-m", "--multirun")


class RunFailed(Exception):
    """A run of a sweep failed. Its message was shown, and the sweep goes on."""


def through_hydra(function: Callable[[Any], int | None], record: type[Settings], arguments: list[str]) -> int:
    """Run a command once for each run of a sweep, or do what Hydra's options ask for.

    Args:
        function: runs the command on its settings.
        record: the settings record of the command.
        arguments: overrides and options, as typed.

    Returns:
        The exit code of the command. Of a sweep: 1 if a run failed or was refused, which keeps no other run from its
        work and stands in the table at the end.

    Raises:
        UserError: the overrides have a mistake, or the command without a sweep ends with one.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-") and "=" in argument]
    if any(arguments[index : index + 2] in (["--cfg", "job"], ["-c", "job"]) for index in range(len(arguments))):
        print(shown_settings(record, arguments), end="")
        return 0
    sweep = any(option in arguments for option in _SWEEP)
    forced = hydra_arguments(record, arguments, sweep)
    if not sweep:
        codes: list[int] = []
        _run_hydra(lambda config: codes.append(int(function(_checked(record, config)) or 0)), record, forced)
        return max(codes, default=0)
    problems = sweep_problems(record, overrides)
    ends = [text.partition("=")[2].strip("'\"") for text in overrides if text.lstrip("+").startswith("finish_by=")]
    problems += [one_end(end) for end in ends if end != "null"]
    if problems:
        raise InvalidSettings(problems)
    return _sweep(function, record, forced)


def _sweep(function: Callable[[Any], int | None], record: type[Settings], forced: Sequence[str]) -> int:
    """Run a command once for each run of a sweep, and end with a table; return the exit code."""
    fixed = _fixed(forced)
    runs, name = _runs_folder(record, forced, fixed)
    digest = hashlib.blake2b("\n".join(forced).encode(), digest_size=4).hexdigest()
    outcomes = runs / f".sweep-{digest}"  # the same one for the same command, which removes what a kill left
    shutil.rmtree(outcomes, ignore_errors=True)

    def task(config: DictConfig) -> float:
        job = HydraConfig.get()
        number, swept = int(job.job.num), _swept(job.overrides.task, fixed)
        run = " ".join(f"{key}={value}" for key, value in swept)
        log.info("Run %d of the sweep: %s", number + 1, run)
        try:
            outcome = _outcome(function, record, config, number, swept)
        except UserError as error:
            log.error("Error: %s", error)
            outcome = Outcome(number, run, "refused", reason=str(error))
        except Exception as error:
            log.error("%s", traceback.format_exc().rstrip())
            outcome = Outcome(number, run, "failed", reason=f"{type(error).__name__}: {error}")
        write_outcome(outcomes, replace(outcome, run=run))
        if outcome.state != "finished":
            raise RunFailed(f"{run}: {outcome.reason}")  # Hydra runs the others, and tells a sweeper
        return outcome.score

    failed = False
    try:
        _run_hydra(task, record, forced)
    except RunFailed:
        failed = True
    finally:
        found = collect_outcomes(outcomes)
        if found:
            log.info(outcome_table(found))
    if record is TrainSettings:
        # Without a name, by the command, so that sweeps of several datasets keep their tables.
        table = runs / f"sweep_{name if name and is_folder_name(name) else digest}.csv"
        if found:
            write_table(table, found)
            log.info("Table: %s", table)
    return EXIT_FAILED if failed or any(each.state != "finished" for each in found) else 0


def _outcome(
    function: Callable[[Any], int | None],
    record: type[Settings],
    config: DictConfig,
    number: int,
    swept: Sequence[tuple[str, Any]],
) -> Outcome:
    """Run one run of a sweep; a training gets a folder of its own by what is swept, and a score."""
    settings: Any = _checked(record, config)
    if isinstance(settings, TrainSettings):
        from umamba.records.swept_name import swept_name

        _refuse_several_processes(settings)
        if settings.finish_by is not None:  # from a preset; one of the command line is refused before any run
            raise UserError(one_end(settings.finish_by))
        settings = replace(settings, name=swept_name(settings, swept) or settings.name)
    code = int(function(settings) or 0)
    if code:
        return Outcome(number, "", "failed", reason=f"exit code {code}")
    if record is not TrainSettings:
        return Outcome(number, "", "finished")
    return Outcome(number, "", "finished", objective(settings), str(_folder(settings)))


def _folder(settings: TrainSettings) -> Path:
    """Return the run folder, relative to the folder of runs."""
    from umamba.records import RunFolder
    from umamba.runs.smoke import smoke_test

    folder = RunFolder.of(smoke_test(settings) if settings.smoke else settings)
    return folder.path.relative_to(settings.paths.runs)


def _checked(record: type[Settings], config: DictConfig) -> Settings:
    """Return the settings of a configuration that Hydra composed."""
    problems: list[str] = []
    settings = settings_from(record, config, problems)
    if settings is None:
        raise InvalidSettings(problems)
    return settings


def _run_hydra(task: Callable[[DictConfig], Any], record: type[Settings], forced: Sequence[str]) -> None:
    """Let Hydra run a task; its errors are raised as they are, or as user errors if they are Hydra's own."""
    command_line, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [command_line[0], *forced]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints the traceback of any error and exits
    try:
        hydra.main(version_base="1.3", config_path=str(share("configs")), config_name=config_name(record))(task)()
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise UserError(lines[0] if lines else type(error).__name__) from error
    finally:
        sys.argv = command_line
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)


def _fixed(forced: Sequence[str]) -> dict[str, str]:
    """Return key (or group) and text of the overrides that are the same for every run of a sweep."""
    parser = OverridesParser.create()
    found = {}
    for text in forced:
        if "=" in text and not text.startswith("-"):
            override = parser.parse_override(text)
            if not override.is_sweep_override():
                found[override.key_or_group] = text
    return found


def _runs_folder(record: type[Settings], forced: Sequence[str], fixed: dict[str, str]) -> tuple[Path, str | None]:
    """Return the folder of runs, and the name that all runs of a sweep have in common."""
    own = [text for key, text in fixed.items() if key == SEARCH_PATH or not key.startswith("hydra")]
    deleted = [text for text in forced if text.startswith("~")]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(share("configs")), version_base="1.3"):
        config = compose(config_name(record), [*own, *deleted])
    GlobalHydra.instance().clear()
    name = OmegaConf.select(config, "name")
    return Path(str(OmegaConf.select(config, "paths.runs"))), None if name is None else str(name)


def _swept(overrides: Sequence[str], fixed: dict[str, str]) -> list[tuple[str, Any]]:
    """Return key (or group) and value of the overrides of a run that the sweep varies, sorted by key."""
    parsed = [OverridesParser.create().parse_override(text) for text in overrides]
    return sorted((each.key_or_group, each.value()) for each in parsed if each.key_or_group not in fixed)


def _refuse_several_processes(settings: TrainSettings) -> None:
    """Refuse a training on several devices, because their processes repeat the command line."""
    if settings.trainer.devices != 1 or settings.trainer.num_nodes > 1:
        raise UserError(
            "trainer=ddp (or trainer.devices): cannot run in a sweep (-m), because each further process repeats the "
            "command and would start the whole sweep. Give one command for each run, or trainer.devices=1."
        )
