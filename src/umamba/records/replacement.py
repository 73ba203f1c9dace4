"""restart=true: the former run moves aside, and is deleted only when the new one has saved its first checkpoint.

A replacement that does not come so far is undone: at once if the new run ends with an error, else at the next start.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from umamba.records.run_folder import RunFolder

_ASIDE = ".replaced"  # holds a whole former run
_MOVING = ".replaced.moving"  # holds a part of it, while it moves there or back
_STAYS = (
    ".lock",
    "task.json",
    _ASIDE,
)  # how their names begin; task.json belongs to the process that runs the training


@contextmanager
def replacing(folder: RunFolder, wanted: bool) -> Iterator[None]:
    """Move the former run aside for the block; put it back if the block ends with an error before a first checkpoint.

    Args:
        folder: the run folder, which this process has locked.
        wanted: restart=true. If not, only a replacement that was interrupted is undone.
    """
    settle(folder)
    try:
        if wanted:
            _move(folder.path, _entries(folder.path), folder.path / _MOVING)
            if (folder.path / _MOVING).exists():
                (folder.path / _MOVING).rename(folder.path / _ASIDE)
        yield
    except BaseException:
        settle(folder)
        raise


def settle(folder: RunFolder) -> None:
    """Delete the former run if the new one has a checkpoint; else put the former run back.

    Args:
        folder: the run folder.
    """
    aside, moving = folder.path / _ASIDE, folder.path / _MOVING
    if aside.exists():
        if folder.saved():
            shutil.rmtree(aside)
            return
        for entry in _entries(folder.path):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        aside.rename(moving)
    if moving.exists():
        _move(moving, list(moving.iterdir()), folder.path)
        moving.rmdir()


def _entries(path: Path) -> list[Path]:
    """Return the content of a run folder that belongs to the run."""
    return [entry for entry in path.iterdir() if not entry.name.startswith(_STAYS)]


def _move(source: Path, entries: list[Path], target: Path) -> None:
    if entries:
        target.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        entry.rename(target / entry.relative_to(source))
