"""The user's own folders of configs: `--config-dir DIR` and `hydra.searchpath=[...]`, in every command."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from umamba.io.errors import UserError

SEARCH_PATH = "hydra.searchpath"
_OPTIONS = ("--config-dir", "-cd")
_PACKAGE = "pkg://"


def with_search_path(arguments: Sequence[str]) -> list[str]:
    """Replace `--config-dir DIR` by `hydra.searchpath`, which also travels to the tasks of a cluster.

    Args:
        arguments: the arguments of a command.

    Returns:
        The other arguments, and one hydra.searchpath with all folders, if there are any.

    Raises:
        UserError: a folder is not given or does not exist.

    >>> with_search_path(["train", "fold=0"])
    ['train', 'fold=0']
    """
    kept: list[str] = []
    folders: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in _OPTIONS:
            folder = value if equals else next(words, "")
            if not Path(folder).is_dir() or not folder:
                raise UserError(f"{name} {folder}: there is no such folder. Give the folder of your own config groups.")
            folders.append(f"file://{Path(folder).resolve()}")
        elif word.startswith(f"{SEARCH_PATH}="):
            folders += [entry if "://" in entry else f"file://{Path(entry).resolve()}" for entry in _listed(word)]
        else:
            kept.append(word)
    if not folders:
        return kept
    from umamba.cli.words import override_of

    return [*kept, override_of(SEARCH_PATH, folders)]


def searched_folders(overrides: Sequence[str]) -> list[Path]:
    """Return the folders of hydra.searchpath.

    Args:
        overrides: the overrides of a command.

    Raises:
        UserError: a folder or package does not exist.
    """
    texts = [entry for text in overrides if text.startswith(f"{SEARCH_PATH}=") for entry in _listed(text)]
    return [_folder(text) for text in texts]


def _listed(override: str) -> list[str]:
    """Return the entries of a hydra.searchpath override."""
    from umamba.cli.words import parsed

    found = parsed(override)
    value = None if found is None else found.value()
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise UserError(f"{override}: must be a list, such as '{SEARCH_PATH}=[file://FOLDER]'.")
    return [str(entry) for entry in value]


def _folder(text: str) -> Path:
    """Return the folder of an entry: file://FOLDER, pkg://PACKAGE, or a folder."""
    if not text.startswith(_PACKAGE):
        folder = Path(text.removeprefix("file://"))
        if not folder.is_dir():
            raise UserError(f"{SEARCH_PATH}: there is no folder {folder}. Check the path.")
        return folder
    try:
        found = find_spec(text.removeprefix(_PACKAGE))
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{SEARCH_PATH}: there is no package {text.removeprefix(_PACKAGE)}. Install it.")
    return Path(next(iter(found.submodule_search_locations)))
