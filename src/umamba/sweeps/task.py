"""Run one training as a cluster job: record its state, and stop it in time when the cluster takes the node back.

SLURM sends SIGUSR1 some time before the time limit, and SIGTERM at preemption, requeue and cancellation; Ctrl-C sends
SIGINT. Each of them ends the training. The last checkpoint is that of the last completed epoch; the same command
continues from it.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from umamba.io import write_json
from umamba.records import RunFolder

# Seconds between updates of the record; the ledger waits for many of them before it calls a run killed.
HEARTBEAT_S = 30.0
_STOP_SIGNALS = {
    signal.SIGUSR1: "the time limit approached",
    signal.SIGTERM: "the cluster took the node back, or the job was cancelled",
    signal.SIGINT: "by Ctrl-C",
}
# Seconds in which a training must stop before it is killed; SLURM's usual KillWait is 30 s.
STOP_S = 20.0


def run_task(command: Sequence[str], folder: RunFolder, job: str | None = None) -> str:
    """Run a training and record its state in <folder>/task.json.

    Args:
        command: the training's command.
        folder: its run folder.
        job: SLURM's name of this array task, `<array>_<index>`; it is requeued when the time limit approaches. None:
            the training is no SLURM job.

    Returns:
        How the training ended: done, failed or stopped; elsewhere: another process trains this run, whose record stays
        as it is.
    """
    if folder.in_use():
        return "elsewhere"
    record = folder.task_file
    facts = {"job": job, "host": socket.gethostname(), "pid": os.getpid(), "command": shlex.join(command)}
    received: list[tuple[int, float]] = []
    write_json(record, {**facts, "state": "running"})
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    last_lines: deque[str] = deque(maxlen=200)
    reader = threading.Thread(target=_forward, args=(process, last_lines), daemon=True)
    reader.start()

    def stop(number: int, frame: FrameType | None) -> None:
        received.append((number, time.monotonic()))
        process.terminate()

    previous = {number: signal.signal(number, stop) for number in _STOP_SIGNALS}
    try:
        code = _wait(process, record, received)
        reader.join(timeout=5)
        if code and not received:
            # The training received the signal, and this process did not.
            received += [(number, 0.0) for number in _STOP_SIGNALS if code in (-number, 128 + number)]
        if received:
            number = received[0][0]
            why = _STOP_SIGNALS[signal.Signals(number)]
            write_json(record, {**facts, "state": "stopped", "reason": f"stopped: {why}"})
            if number == signal.SIGUSR1 and job:
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
    """Copy the training's standard error to ours, and keep its last lines."""
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)
        sys.stderr.flush()
        last_lines.append(line)


def _wait(process: "subprocess.Popen[str]", record: Path, received: Sequence[tuple[int, float]]) -> int:
    """Wait for the training and update the record; kill the training if it does not stop in time after a signal."""
    touched = time.monotonic()
    while True:
        try:
            return process.wait(timeout=1.0)  # a signal does not end the wait
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        if received and now - received[0][1] >= STOP_S:
            process.kill()
        elif now - touched >= HEARTBEAT_S and record.exists():  # restart=true deletes it with the run folder's content
            os.utime(record)
            touched = now


def failure(code: int, last_lines: Sequence[str]) -> str:
    """Return why a command failed: its message, the last line of its traceback, or the signal that ended it.

    Args:
        code: the exit code; a negative one is the signal.
        last_lines: the last lines of standard error.
    """
    if code < 0:
        return f"ended by {signal.Signals(-code).name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    lines = [line.strip() for line in last_lines if line.strip()]
    messages = [line for line in lines if line.startswith("Error:")]
    message = messages[-1].removeprefix("Error:").strip() if messages else (lines[-1] if lines else "no message")
    return f"exit code {code}: {message}"
