"""Shared by the benchmarks: measure time and memory of a command and its processes, and describe the machine."""

import os
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Measured:
    """Measurement of a command with all processes that it starts.

    Attributes:
        seconds: wall time.
        cpu_seconds: CPU time of the process tree.
        peak_gb: peak memory of the process tree, GiB.
        output: what it printed.
    """

    seconds: float
    cpu_seconds: float
    peak_gb: float
    output: str


def children(pid: int) -> list[int]:
    """Return the ids of a process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [each for child in task.read_text().split() for each in children(int(child))]
        except OSError:
            continue
    return found


def usage(pid: int) -> tuple[float, float]:
    """Return the CPU time (seconds) and resident memory (GB) of a process so far; zeros once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def proportional_gb(pid: int) -> float:
    """Return the proportional set size of a process, GiB (shared pages count in parts); slow to read."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**20


def measure(command: list[str], environment: dict[str, str]) -> Measured:
    """Run a command and measure it.

    Args:
        command: the command and its arguments.
        environment: its environment variables.

    Raises:
        SystemExit: the command failed; the message holds its output.
    """
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        peak, most, cpu = 0.0, 0.0, dict[int, float]()
        while process.poll() is None:
            begun = time.perf_counter()
            tree = children(process.pid)
            used = {pid: usage(pid) for pid in tree}
            cpu |= {pid: spent for pid, (spent, _) in used.items() if spent}
            resident = sum(memory for _, memory in used.values())
            if resident > 0.8 * most:  # the slow measure is read near the peak only
                most, peak = max(most, resident), max(peak, sum(proportional_gb(pid) for pid in tree))
            # Reading stops the command while it lasts, so that it may take a twentieth of the time.
            time.sleep(max(0.05, 20 * (time.perf_counter() - begun)))
        seconds = time.perf_counter() - start
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{text}")
    return Measured(seconds, sum(cpu.values()), peak, text)


def machine() -> str:
    """Return a line with the processor, the number of CPUs, and the versions of Python and numpy."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{model[0] if model else platform.processor()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"numpy {np.__version__}"
    )
