"""Leaving in time: at a signal, or when trainer.max_time is used up. The same command continues the run.

A signal ends the process at once; what is kept is the last completed epoch, so that a run continued afterwards sees the
patches that an uninterrupted one would have seen, and ends with the same weights.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from umamba.io import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class LeaveOnSignal(Callback):
    """Ends the process with a message and the exit code 128 + number; ranks that it has started get the signal, too.

    Args:
        folder: of the run, for the message.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = os.getpid()
        self.trainer: lightning.Trainer | None = None

    def leave(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: once, and not in worker processes, which inherit the handler."""
        if os.getpid() != self.process:
            return
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        print(
            f"{signal.Signals(number).name}: leaving. The same command continues after the last completed epoch: "
            f"{self.folder}",
            file=sys.stderr,
            flush=True,
        )
        launcher = self.trainer.strategy.launcher if self.trainer else None
        if launcher is not None:
            launcher.kill(signal.Signals(number))
        raise SystemExit(128 + number)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block."""
        previous = {number: signal.signal(number, self.leave) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the signals back from Lightning, which under SLURM would requeue, or only note them."""
        self.trainer = trainer
        for number in SIGNALS:
            signal.signal(number, self.leave)


class TimeBudget(Callback):
    """Ends training after the last epoch that fits into a total time, counted through all continuations.

    Args:
        seconds: the total; None: no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.used = 0.0
        self.start = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the epoch's clock."""
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add the epoch; stop if another one of its length would not fit."""
        epoch = time.monotonic() - self.start
        self.used += epoch
        if self.seconds is not None:
            trainer.should_stop = trainer.strategy.reduce_boolean_decision(self.used + epoch > self.seconds, all=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds used so far."""
        return {"used": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the seconds up again."""
        self.used = state_dict["used"]


def budget_seconds(max_time: Any) -> float | None:
    """Return the seconds of trainer.max_time, [DD:]HH:MM:SS or null.

    Raises:
        UserError: it is something else.
    """
    if max_time is None:
        return None
    match = re.fullmatch(r"(?:(\d+):)?(\d+):([0-5]?\d):([0-5]?\d)", str(max_time))
    if match is None:
        raise UserError(f"trainer.max_time={max_time}: give [DD:]HH:MM:SS, such as '12:00:00', or null.")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
