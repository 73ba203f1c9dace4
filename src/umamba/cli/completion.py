"""`umamba completion`: complete commands, groups, options and keys with the Tab key in bash and zsh."""

import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from umamba import settings
from umamba.cli.compose import group_names, options_of
from umamba.cli.main import COMMANDS
from umamba.cli.share import share
from umamba.io.errors import UserError
from umamba.settings.validate import wrong_choice
from umamba.sweeps.study_file import list_studies

_BASH = """_umamba() {
  local IFS=$'\\n'
  COMPREPLY=($(umamba completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
  [[ ${#COMPREPLY[@]} -gt 0 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o default -F _umamba umamba"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n" + _BASH
ARGUMENTS = "Arguments: bash or zsh. Put the eval line into ~/.bashrc or ~/.zshrc."


def main(arguments: Sequence[str]) -> None:
    """Print the completion script of a shell, or the completions that this script asks for.

    Args:
        arguments: bash or zsh; or `words` and the words of a command line.

    Raises:
        UserError: the shell is unknown.
    """
    shell, *words = arguments or [""]
    if shell == "words":
        print("\n".join(candidates(words or [""])))
        return
    scripts = {"bash": _BASH, "zsh": _ZSH}
    if shell not in scripts:
        raise UserError(wrong_choice("completion", shell, scripts).replace("completion=", "completion "))
    sys.stdout.write(scripts[shell] + "\n")


def candidates(words: Sequence[str]) -> list[str]:
    """Return the completions of the last word of a command line.

    Args:
        words: the words after `umamba`; the last one may be incomplete.

    >>> candidates(["tr"])
    ['train']
    >>> candidates(["train", "recipe=un"])
    ['recipe=unetr']
    """
    *before, last = words
    if not before:
        return [name for name in COMMANDS if name.startswith(last)]
    command = COMMANDS.get(before[0].replace("_", "-"))
    if command is None:
        return []
    if before[0] in ("study", "slurm"):
        verbs = ["submit", "dry-run", "preflight"] if before[0] == "slurm" and len(before) == 1 else []
        own = ["power"] if before == ["study"] else []
        names = verbs or [*own, *list_studies(share("experiments"))]
        return [name for name in names if name.startswith(last)]
    if command.record is None:
        return []
    record = getattr(settings, command.record)
    trains = issubclass(record, settings.TrainSettings)
    group, equals, typed = last.partition("=")
    if equals:
        names = options_of(group) if trains and group in group_names() else []
        return [f"{group}={name}" for name in names if name.startswith(typed)]
    keys = [f"{name}=" for name in (group_names() if trains else [])] + [f"{name}=" for name in _keys(record, "")]
    return [key for key in dict.fromkeys(keys) if key.startswith(last)]


def _keys(record: type[Any], section: str) -> list[str]:
    """Return the dotted names of a record's keys."""
    found = []
    hints = get_type_hints(record)
    for entry in fields(record):
        limits, name = entry.metadata.get("key"), f"{section}{entry.name}"
        if limits is None:
            continue
        nested = [hints[entry.name]] if limits.variants is None else [r for k, r in limits.variants.items() if k]
        if is_dataclass(nested[0]):
            found += [key for kind in nested for key in _keys(kind, f"{name}.")]
        else:
            found.append(name)
    return found
