"""What this process may use and does use: the CPUs of its allocation, not of the machine, and its memory."""

import os
import resource
import sys


def available_cpus() -> int:
    """Return the number of CPUs this process may use.

    SLURM's allocation counts first (`SLURM_CPUS_PER_TASK`), then the affinity mask (containers, `taskset`),
    then the machine.
    """
    allocated = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if allocated.isdigit() and int(allocated) > 0:
        return int(allocated)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """Return the memory this process holds now; where the system does not tell, the most it ever held."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the most memory this process ever held."""
    try:
        # Not ru_maxrss, which a process inherits from the one that started it.
        with open("/proc/self/status") as stream:
            return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
