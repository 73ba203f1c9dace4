"""One training as a job: it keeps a record of itself, and leaves in time when the cluster wants the node back.

SLURM sends SIGUSR1 some time before the limit and SIGTERM at preemption, requeue and cancellation. Either ends the
training; its last checkpoint is that of the last completed epoch, and the same command continues from it.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from umamba.io import write_json
from umamba.records import RunFolder

# The record is touched this often; the ledger calls a run dead after many times this.
HEARTBEAT_S = 30.0
_LEAVING = (signal.SIGTERM, signal.SIGUSR1)
# How long a training may take to leave, less than SLURM's usual KillWait of 30 s.
_LEAVE_S = 20.0


def run_task(command: Sequence[str], folder: RunFolder, job: str | None = None) -> str:
    """Run a training and keep <folder>/task.json true; return how it ended: done, failed or stopped.

    Args:
        command: the training's command.
        folder: its run folder.
        job: SLURM's name of this array task, `<array>_<index>`; when the time limit nears, it is requeued.
    """
    record = folder.task_file
    facts = {"job": job, "host": socket.gethostname(), "pid": os.getpid(), "command": shlex.join(command)}
    received: list[int] = []
    write_json(record, {**facts, "state": "running"})
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    last_lines: deque[str] = deque(maxlen=200)
    reader = threading.Thread(target=_forward, args=(process, last_lines), daemon=True)
    reader.start()

    def leave(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.terminate()

    previous = {number: signal.signal(number, leave) for number in _LEAVING}
    try:
        code = _wait(process, record, received)
        reader.join(timeout=5)
        if code and not received:
            received += [
                number for number in _LEAVING if code in (-number, 128 + number)
            ]  # the signal went to the training alone
        if received:
            near_limit = received[0] == signal.SIGUSR1
            why = "the time limit came near" if near_limit else "the cluster took the node back, or it was cancelled"
            write_json(record, {**facts, "state": "stopped", "reason": f"stopped: {why}"})
            if near_limit and job:
                subprocess.run(["scontrol", "requeue", job], check=False)
            return "stopped"
        if code:
            write_json(record, {**facts, "state": "failed", "reason": failure(code, last_lines)})
            return "failed"
        write_json(record, {**facts, "state": "done"})
        return "done"
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _forward(process: "subprocess.Popen[str]", last_lines: deque[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)
        sys.stderr.flush()
        last_lines.append(line)


def _wait(process: "subprocess.Popen[str]", record: Path, received: Sequence[int]) -> int:
    """Wait for the training, touching the record; kill it if it does not leave in time."""
    while True:
        try:
            return process.wait(timeout=_LEAVE_S if received else HEARTBEAT_S)
        except subprocess.TimeoutExpired:
            if received:
                process.kill()
            elif record.exists():  # restart=true empties the run folder
                os.utime(record)


def failure(code: int, last_lines: Sequence[str]) -> str:
    """Return why a command failed: its message, the last line of its traceback, or the signal that ended it."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    lines = [line.strip() for line in last_lines if line.strip()]
    messages = [line for line in lines if line.startswith("Error:")]
    told = messages[-1].removeprefix("Error:").strip() if messages else (lines[-1] if lines else "no message")
    return f"exit code {code}: {told}"
