"""Explain why a process that makes patches died: process, case, signal, and the setting to change."""

import re
import shutil
import signal
import traceback
from pathlib import Path

from umamba.io.resources import memory_bytes
from umamba.patches import PatchDataModule


def explain_worker_error(error: Exception, datamodule: PatchDataModule) -> str | None:
    """Return a message for an error that PyTorch's loader raised about a worker process.

    Args:
        error: the error that the loader raised.
        datamodule: the datamodule, which knows the case that each worker was reading.

    Returns:
        The message; None if the error has another cause.
    """
    text = str(error)
    if text.startswith("Caught ") and "in DataLoader worker process" in text:
        return text.strip().splitlines()[-1].split(": ", 1)[-1] if "UserError" in text.splitlines()[0] else None
    if "DataLoader worker" not in text:
        return None
    found = re.search(r"pid\(?s?\)? ?(\d+)", text)
    pid = int(found.group(1)) if found else None
    killed = re.search(r"killed by signal: ([^.]+)", text)
    by = killed.group(1).strip() if killed else _signal_by_exit_code(error, pid)
    how = f"was ended by signal {by}" if by else "ended unexpectedly"
    case = datamodule.case_in_work(pid) if pid is not None else None
    on_case = f" while it made a patch of case {case}" if case else ""
    bus = "Bus error" in f"{text} {by}" or "shared memory" in text
    advice = (
        "The shared memory is full: give the container more (docker: --shm-size=8g or --ipc=host), or lower "
        "data.num_workers or data.prefetch_factor."
        if bus
        else "Killed usually means that memory ran out: lower data.num_workers or data.prefetch_factor, or "
        "ask for more memory. If it is always the same case, look at that case."
    )
    return (
        f"A process that makes patches (pid {pid}) {how}{on_case}. {memory_report()} {advice} "
        "The same command continues after the last completed epoch."
    )


def _signal_by_exit_code(error: Exception, pid: int | None) -> str | None:
    """Return the signal that ended a process; None if no signal did, or it is unknown.

    PyTorch's message lacks the signal if the loader notices the death before the signal handler runs. The exit code
    then stands only in the local variables of the loader's frame.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for worker in frame.f_locals.get("failed_workers", ()):
            if worker.pid == pid and (worker.exitcode or 0) < 0:
                return signal.strsignal(-worker.exitcode)
    return None


def memory_report() -> str:
    """Return a sentence on the memory and shared memory that this process may use, and how much of it is free."""
    parts = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free, total = (int(values[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
        parts.append(f"memory {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
        if memory_bytes() < total:
            parts.append(f"limit of this job {memory_bytes() / 1e9:.1f} GB")
    if Path("/dev/shm").exists():
        usage = shutil.disk_usage("/dev/shm")
        parts.append(f"/dev/shm {usage.free / 1e9:.2f} of {usage.total / 1e9:.2f} GB free")
    return f"Now: {', '.join(parts)}." if parts else ""
