"""What the entry scripts share: compose the configuration with Hydra, check it, end in one message on an error.

The only module of the package that knows Hydra. Nothing heavy is imported, so that help and mistakes answer at once.
"""

import difflib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from umamba.io.errors import UserError

Schema = TypeVar("Schema")
EXIT_USER_ERROR = 2


def launch(task: Callable[[DictConfig], None], config_name: str, config_dir: Path) -> None:
    """Run `task` with the configuration that the command line composes.

    A plain command is composed once beforehand, so that a wrong group or key ends in this project's message; sweeps and
    Hydra's own flags (-m, --help, --cfg) go to Hydra as they are.

    Args:
        task: takes the composed configuration.
        config_name: name of the primary config.
        config_dir: the folder of configs.
    """
    messages = logging.StreamHandler(sys.stderr)
    messages.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("umamba")
    logger.setLevel(logging.INFO)
    logger.handlers = [messages]
    arguments = sys.argv[1:]
    if not any(argument.startswith("-") for argument in arguments):
        problem = composition_problem(arguments, config_name, config_dir)
        if problem:
            fail(problem)

    def guarded(config: DictConfig) -> None:
        try:
            task(config)
        except UserError as error:
            fail(str(error))

    hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(guarded)()


def quiet_unless_first() -> None:
    """Of several processes that train one run together (see trainer=ddp), let only the first one print."""
    rank = next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), "0")
    if rank != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the whole process


def fail(message: str) -> None:
    """Print a message without a traceback and exit."""
    print(f"Error: {message}", file=sys.stderr)
    raise SystemExit(EXIT_USER_ERROR)


def composition_problem(overrides: list[str], config_name: str, config_dir: Path) -> str | None:
    """Return what is wrong with the overrides, naming what would be right, or None."""
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        try:
            compose(config_name, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            groups = [text for text in overrides if (config_dir / text.split("=")[0]).is_dir()]
            try:
                return explain(error, compose(config_name, groups))
            except (HydraException, OmegaConfBaseException) as wrong_group:
                return explain(wrong_group, DictConfig({}))
        finally:
            GlobalHydra.instance().clear()
    return None


def composed(overrides: list[str], config_name: str, config_dir: Path) -> DictConfig:
    """Return the configuration that overrides compose to.

    Raises:
        UserError: an override is wrong, with what would be right.
    """
    GlobalHydra.instance().clear()  # an entry's own composition, when this is called from its task
    try:
        with initialize_config_dir(str(config_dir), version_base="1.3"):
            return compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_problem(overrides, config_name, config_dir) or str(error)) from error


def explain(error: Exception, valid: DictConfig) -> str:
    """Return Hydra's message, with the valid keys beside the one that does not exist."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    cause = str(error.__cause__ or "")
    if "Could not override" in first and "is not in struct" in text + cause:
        key = first.split("'")[1]
        return unknown_key(key, OmegaConf.to_container(valid, resolve=False))
    lines = [line for line in text.splitlines() if "Config search path" not in line and "HYDRA_FULL_ERROR" not in line]
    kept = [line for line in lines if not line.startswith("\tprovider=") and line.strip()]
    return "\n".join(kept)


def unknown_key(key: str, tree: Any) -> str:
    """Return the message for a dotted key that does not exist in `tree`."""
    *parents, last = key.split(".")
    reached = []
    for name in parents:
        if not isinstance(tree, dict) or not isinstance(tree.get(name), dict):
            last = name
            break
        tree = tree[name]
        reached.append(name)
    names = sorted(tree) if isinstance(tree, dict) else []
    section = ".".join(reached) or "the configuration"
    close = difflib.get_close_matches(last, names, n=1)
    hint = f" Did you mean '{'.'.join([*reached, close[0]])}'?" if close else ""
    return f"Unknown key '{key}'.{hint} Keys of {section}: {', '.join(names)}."


def typed(config: DictConfig, schema: type[Schema]) -> Schema:
    """Return the configuration as an instance of a dataclass.

    Raises:
        UserError: a key that the dataclass does not have, a value of the wrong type, or a required value not given.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        instance = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        key = str(error).split(":")[-1].split("\n")[0].strip().strip("'\"")
        raise UserError(f"A required value is not given: {key}. Add it to the command: {key}=...") from error
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else "The configuration has a wrong key or value: "
        raise UserError(key + str(error).splitlines()[0]) from error
    assert isinstance(instance, schema)
    return instance
