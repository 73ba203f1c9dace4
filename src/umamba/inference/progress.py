"""Progress of a prediction: one bar in a terminal, a line a minute in a log file.

The time left follows from the last minutes, because a folder's first images may be smaller or read faster than others.
"""

import logging
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_RECENT = 180.0  # seconds from which the speed is estimated
_EVERY = 60.0  # seconds between two lines of a log file


class CaseProgress:
    """The bar of all cases; within a case it moves with the tiles that the networks compute."""

    def __init__(
        self,
        cases: int,
        shown: bool,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without any case done.

        Args:
            cases: number of cases.
            shown: show the progress.
            console: where it is shown; None: standard output.
            clock: returns seconds.
        """
        console = console or Console()
        live = console.is_terminal and not console.is_dumb_terminal
        self._lines, self._clock, self._said = shown and not live, clock, clock()
        self._count, self._done, self._of = cases, 0, ""
        text = TextColumn("Predicting {task.fields[cases]}")
        columns = (text, BarColumn(bar_width=20), TextColumn("{task.fields[tiles]}"), TimeRemainingColumn())
        self._progress = Progress(
            *columns,
            console=console,
            transient=True,
            disable=not shown or self._lines,
            speed_estimate_period=_RECENT,
            get_time=clock,
        )
        self._task = self._progress.add_task("", total=cases, cases=f"1 of {cases}", tiles="")

    def __enter__(self) -> "CaseProgress":
        if self._lines:
            log.info("Predicting %d image%s", self._count, "" if self._count == 1 else "s")
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last case is done, from the recent speed; None: not known yet."""
        return self._progress.tasks[0].time_remaining

    def case(self) -> None:
        """Count a case as done."""
        self._done += 1
        number = min(self._done + 1, self._count)
        self._progress.update(self._task, completed=self._done, cases=f"{number} of {self._count}", tiles="")
        self._say("")

    def tiles(self, done: int, total: int) -> None:
        """Show how many tiles of the case are done.

        Args:
            done: tiles that are computed.
            total: all tiles of the case.
        """
        text = f"tile {done} of {total}"
        self._progress.update(self._task, completed=self._done + done / max(1, total), tiles=text)
        self._say(f", {text} of the next")

    def _say(self, rest: str) -> None:
        if not self._lines or self._clock() - self._said < _EVERY:
            return
        self._said, left = self._clock(), self.seconds_left
        hours = "" if left is None else f", {_clock_time(left)} left"
        log.info("Predicting: %d of %d images done%s%s", self._done, self._count, rest, hours)


def _clock_time(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
