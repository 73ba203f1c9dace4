"""The one voice of the program: `logging` under the name umamba, shown by the caller that wants it.

Rooms say what happens with `log.info`; a message may be text or anything that rich can print, such as a table. A library
shows nothing by itself. The command line shows all of it, and a notebook as long as it asks for progress.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

_LOGGER = logging.getLogger("umamba")


class ConsoleHandler(logging.Handler):
    """Prints messages: information on standard output, warnings and errors on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message; text is printed as it is, without markup."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        try:
            if isinstance(record.msg, str):
                print(record.getMessage(), file=stream, flush=True)
            else:
                Console(soft_wrap=True, highlight=False, file=stream).print(record.msg)
        except (OSError, ValueError):  # the reader of a pipe has gone
            self.handleError(record)


@contextmanager
def shown(progress: bool = True) -> Iterator[None]:
    """Show the messages of the block, if `progress` asks for it and nobody shows them already."""
    if not progress or any(isinstance(handler, ConsoleHandler) for handler in _LOGGER.handlers):
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
    """Return whether information is shown now; progress bars appear only beside it."""
    handlers = _LOGGER.handlers
    return _LOGGER.isEnabledFor(logging.INFO) and any(isinstance(handler, ConsoleHandler) for handler in handlers)


def show_messages(level: int = logging.INFO) -> None:
    """Show all messages from a level on, for the rest of the process."""
    _LOGGER.handlers = [ConsoleHandler()]
    _LOGGER.setLevel(level)
    _LOGGER.propagate = False
