"""What this process may use: the CPUs of its allocation, not of the machine."""

import os


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
