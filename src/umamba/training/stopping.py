"""Stop training at a signal or at the end of trainer.max_time. The same command continues the run.

A signal ends the process at once without saving the current epoch. A run that continues after the last completed epoch
sees the same patches as an uninterrupted run and ends with the same weights.
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


def _nothing(number: int, frame: FrameType | None) -> None:
    """Handle a signal by doing nothing."""


class LeaveOnSignal(Callback):
    """Ends the process with a message and the exit code 128 + number, and sends the signal to the ranks it started.

    Args:
        folder: the run folder, which the message names.
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
        # Logging could block here, because the interrupted code may hold its lock.
        sys.stderr.write(
            f"{signal.Signals(number).name}: leaving. The same command continues after the last completed epoch: "
            f"{self.folder}\n"
        )
        sys.stderr.flush()
        launcher = self.trainer.strategy.launcher if self.trainer else None
        if launcher is not None:
            launcher.kill(signal.Signals(number))
        # A signal to the whole process group ends the workers, too; PyTorch would raise a RuntimeError for each of
        # them, which would take the place of SystemExit while it leaves the training.
        signal.signal(signal.SIGCHLD, _nothing)
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
    """Ends training after the last epoch that fits into a total time, summed over all continuations.

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
            over = trainer.strategy.reduce_boolean_decision(self.used + epoch > self.seconds, all=False)
            trainer.should_stop = trainer.should_stop or over  # early stopping may have decided already

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds used so far."""
        return {"used": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seconds used so far."""
        self.used = state_dict["used"]
