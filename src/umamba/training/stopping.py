"""Stop in time: at a signal, or when trainer.max_time is used up. The same command continues the run.

A signal ends the process at once and keeps the last completed epoch, because a run that continues there sees the
patches of an uninterrupted run and ends with the same weights.
"""

import os
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

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class LeaveOnSignal(Callback):
    """Ends the process with a message and the exit code 128 + number; the ranks that it started get the signal, too.

    Args:
        folder: the run folder, for the message.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = os.getpid()
        self.trainer: lightning.Trainer | None = None

    def leave(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, once; worker processes, which inherit the handler, ignore it."""
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
        """Handle the signals instead of Lightning, which under SLURM would requeue the job or only note the signal."""
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
        """Restore the seconds used so far."""
        self.used = state_dict["used"]
