"""`umamba check-backbone`: run the contract of all backbones on one, such as a user's own, and show what it fulfils."""

import logging
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from umamba.io.errors import UserError
from umamba.settings import CustomArchitectureSettings, read_architecture
from umamba.settings.validate import unknown_name

log = logging.getLogger(__name__)
ARGUMENTS = (
    "Arguments: NAME [option=value ...] [--dim=2|3]; NAME is package.module:function, an entry point of the group "
    "umamba.backbones, or a backbone of this project. The options are those of the backbone. --dim checks only 2D or "
    "3D. Exit code: 0 if all checks pass, else 1."
)


def main(arguments: Sequence[str]) -> int:
    """Check a backbone.

    Args:
        arguments: its name, its options, and --dim.

    Returns:
        0 if all checks pass, else 1.

    Raises:
        UserError: no name, an unknown option, or a backbone that cannot be imported.
    """
    names = [text for text in arguments if "=" not in text and not text.startswith("-")]
    if len(names) != 1:
        raise UserError("umamba check-backbone: give one backbone, such as mypackage.module:build or umamba_enc.")
    flags = [text for text in arguments if text.startswith("-")]
    wrong = [flag for flag in flags if flag not in ("--dim=2", "--dim=3")]
    if wrong:
        raise UserError(unknown_name(wrong[0].lstrip("-"), "", ["dim"]) + " Write --dim=2 or --dim=3.")
    dims = [int(flag[-1]) for flag in flags] or [2, 3]
    options = [text for text in arguments if text not in (*names, *flags)]
    values: Any = OmegaConf.to_container(OmegaConf.from_dotlist(options))
    settings = read_architecture({**values, "name": names[0]})
    if isinstance(settings, CustomArchitectureSettings):
        from umamba.networks.build import custom_settings

        custom_settings(settings)  # a wrong option is a mistake of the command, not of the backbone
    from umamba.networks.conformance import run_checks

    table = Table("check", "axes", "result", "remark", title=settings.name, title_justify="left")
    failed = 0
    for outcome in run_checks(settings, dims):
        failed += not outcome.passed
        table.add_row(outcome.check, f"{outcome.dim}D", "pass" if outcome.passed else "FAIL", outcome.remark)
    log.info(table)
    if failed:
        log.info("%d checks failed. docs/own-architecture.md says what a backbone must fulfil.", failed)
    return int(failed > 0)
