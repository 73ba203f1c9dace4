"""Messages and progress bars of the program: `logging` under the name umamba, shown only if the caller asks for it.

Rooms report with `log.info`. A message is text, or an object that rich prints, such as a table. A library call shows
nothing by default. The command line shows all messages, a notebook those of calls with progress=True. Progress bars
appear exactly when messages do.
"""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from umamba.io.escape import printable_lines

Entry = TypeVar("Entry")

_LOGGER = logging.getLogger("umamba")


class ConsoleHandler(logging.Handler):
    """Print information to standard output, warnings and errors to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message; what looks like rich's markup, an emoji or a terminal's command is printed as it is."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        try:
            if isinstance(record.msg, str):
                print(printable_lines(record.getMessage()), file=stream, flush=True)
            else:
                Console(soft_wrap=True, highlight=False, markup=False, emoji=False, file=stream).print(record.msg)
        except (OSError, ValueError):  # the other end of the pipe is closed
            self.handleError(record)


@contextmanager
def shown(progress: bool = True) -> Iterator[None]:
    """Show messages while the block runs.

    Args:
        progress: False: change nothing. Messages that are shown already are not shown twice.
    """
    if not progress or showing():
        yield
        return
    handler, level = ConsoleHandler(), _LOGGER.level
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)


def showing() -> bool:
    """Return whether information is shown, so that a progress bar is wanted, too."""
    return any(isinstance(handler, ConsoleHandler) for handler in _LOGGER.handlers) and _LOGGER.level <= logging.INFO


def tracked(entries: Iterable[Entry], title: str, total: int) -> Iterator[Entry]:
    """Yield the entries with a progress bar on standard error, or without one if no messages are shown.

    Args:
        entries: what is iterated over.
        title: text beside the bar.
        total: number of entries.

    >>> list(tracked([1, 2], "Counting", 2))
    [1, 2]
    """
    with Progress(console=Console(stderr=True), transient=True, disable=not showing()) as progress:
        yield from progress.track(entries, total=total, description=title)


def show_messages(level: int = logging.INFO) -> None:
    """Show all messages from a level on, for the rest of the process.

    Args:
        level: the lowest level that is shown, such as `logging.WARNING`.
    """
    _LOGGER.handlers = [ConsoleHandler()]
    _LOGGER.setLevel(level)
    _LOGGER.propagate = False
