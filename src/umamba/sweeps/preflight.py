"""Check the resources that a study asks SLURM for against its plans and the partition, before it waits in a queue."""

import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from umamba.io import UserError
from umamba.records import RunFolder
from umamba.records.tables import read_metrics, seconds_per_epoch
from umamba.settings import SlurmSettings
from umamba.sweeps.ledger import PlannedRun, duration

# More patch workers than this do not speed up a training with one GPU. Each needs memory of its own.
MOST_WORKERS = 12
_BASE_GB = 6.0
_WORKER_GB = 1.0
_BYTES = 4
_NO_LIMIT = 10**6


@dataclass(frozen=True)
class Partition:
    """What the nodes of a partition have at most.

    Attributes:
        name: name of the partition; the default one ends in *.
        cpus: CPUs of a node, the most of all nodes.
        memory_gb: memory of a node, GiB, likewise.
        gpus: GPUs of a node, likewise.
        time_limit_s: time limit of a job, seconds; None: no limit.
        up: whether the partition runs jobs.
    """

    name: str
    cpus: int
    memory_gb: float
    gpus: int
    time_limit_s: float | None
    up: bool = True


def partitions() -> list[Partition]:
    """Return SLURM's partitions, the default one first; empty if SLURM is not installed or does not answer."""
    listed = _asked("sinfo", "-h", "-e", "-o", "%P|%c|%m|%G|%l|%a")
    found: dict[str, Partition] = {}
    for own in map(_partition, listed.splitlines()):  # a line for each kind of node of a partition
        found[own.name] = _larger(own, found.get(own.name, own))
    return sorted(found.values(), key=lambda entry: not entry.name.endswith("*"))


def cluster_obstacles(offered: Sequence[Partition]) -> list[str]:
    """Return a sentence for each reason why this machine cannot submit jobs: no sbatch, or no partition.

    Args:
        offered: the cluster's partitions.
    """
    if shutil.which("sbatch") is None:
        return ["sbatch was not found. Submit from a machine where SLURM is installed."]
    if not offered:
        return ["sinfo names no partition: it is not installed, or SLURM's controller does not answer. Ask: sinfo"]
    return []


def largest_array() -> int:
    """Return how many tasks SLURM allows in an array (MaxArraySize); a large number without SLURM's answer."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _asked("scontrol", "show", "config"))
    return max(1, int(found[1])) if found else _NO_LIMIT


def _asked(*command: str) -> str:
    """Return what a command of SLURM prints; empty if it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _partition(line: str) -> Partition:
    name, cpus, memory, gres, limit, state = line.split("|")
    gpus = sum(int(count) for count in re.findall(r"gpu(?::[\w.-]+)?:(\d+)", gres))
    gigabytes = float(memory.rstrip("+")) / 1024
    return Partition(name, int(cpus.rstrip("+")), gigabytes, gpus, seconds(limit), state == "up")


def _larger(first: Partition, second: Partition) -> Partition:
    """Return the most of each resource of two kinds of nodes of one partition."""
    return Partition(
        first.name,
        max(first.cpus, second.cpus),
        max(first.memory_gb, second.memory_gb),
        max(first.gpus, second.gpus),
        first.time_limit_s,
        first.up or second.up,
    )


def seconds(limit: str) -> float | None:
    """Convert a time limit to seconds.

    Args:
        limit: in SLURM's notation: [days-]hours:minutes:seconds, minutes, minutes:seconds, infinite, ...

    Returns:
        Seconds; None for no limit.

    Raises:
        UserError: the text is no time limit.

    >>> seconds("1-00:00:00"), seconds("30")
    (86400.0, 1800.0)
    """
    if limit.strip().lower() in ("infinite", "unlimited"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit.strip())
    if match is None:
        raise UserError(f"slurm.time_limit={limit}: must be written as SLURM does, such as 24:00:00 or 2-00:00:00.")
    days, first, second, third = (int(part) if part else None for part in match.groups())
    first = first or 0
    if days is not None:
        return float(days * 86400 + first * 3600 + (second or 0) * 60 + (third or 0))
    if third is not None:
        return float(first * 3600 + (second or 0) * 60 + third)
    return float(first * 60 + (second or 0))


def preflight(runs: Sequence[PlannedRun], request: SlurmSettings, offered: Sequence[Partition]) -> list[str]:
    """Check a request.

    Args:
        runs: the runs to train.
        request: the resources of each training.
        offered: the cluster's partitions, the default one first; empty: unknown, so that they are not checked.

    Returns:
        A sentence for each problem, with the value to ask for; empty if there is none.
    """
    remarks = [*_of_plans(runs, request), *_of_time(runs, request)]
    if offered:
        names = {entry.name.rstrip("*"): entry for entry in offered}
        for wanted in dict.fromkeys((request.partition, request.prepare_partition)):
            if wanted is not None and wanted not in names:
                remarks.append(f"partition {wanted}: does not exist. Choose one of {', '.join(names)}.")
        if request.partition is None and not offered[0].name.endswith("*"):
            remarks.append(f"partition: the cluster has no default. Give slurm.partition, one of {', '.join(names)}.")
        chosen = names.get(request.partition or offered[0].name.rstrip("*"))
        if chosen is not None:
            remarks += _of_partition(chosen, request)
    return remarks


def _of_plans(runs: Sequence[PlannedRun], request: SlurmSettings) -> list[str]:
    remarks = []
    processes = max(1, request.gpus)
    per_process = request.cpus // processes
    if request.gpus and per_process < MOST_WORKERS // 2:
        remarks.append(
            f"cpus {request.cpus}: {max(0, per_process - 1)} workers make patches for each GPU, so the GPU will wait "
            f"for patches. Ask for {processes * (MOST_WORKERS + 1)}, at least {processes * (MOST_WORKERS // 2 + 1)}."
        )
    if not request.gpus:
        remarks.append(
            "gpus 0: the trainings run on CPUs, which is fast enough for smoke=true only. Ask for slurm.gpus=1."
        )
    workers = min(MOST_WORKERS, max(1, per_process - 1))
    batch_gb = max((_batch_gb(run.folder) for run in runs), default=0.0)
    needed = math.ceil(processes * (_BASE_GB + workers * (_WORKER_GB + 2 * batch_gb)))
    if request.memory_gb < needed:
        remarks.append(
            f"memory {request.memory_gb} GB: {workers} patch workers need about {needed} GB. Ask for {needed} GB."
        )
    return remarks


def _batch_gb(folder: RunFolder) -> float:
    """Return the size in GB of a batch of images with their labels; 0 if the run has no plan yet."""
    configuration = folder.planned()
    if configuration is None:
        return 0.0
    voxels = math.prod(configuration.patch_size) * configuration.batch_size
    return voxels * (len(configuration.normalization) + 1) * _BYTES / 1e9


def _of_time(runs: Sequence[PlannedRun], request: SlurmSettings) -> list[str]:
    limit = seconds(request.time_limit)
    measured = {run.folder.path: seconds_per_epoch(read_metrics(run.folder.metrics), run.batches) for run in runs}
    known = {folder: epoch for folder, epoch in measured.items() if epoch is not None}
    if limit is None or not known:
        return []
    folder, slowest = max(known.items(), key=lambda item: item[1])
    if limit < 3 * slowest + request.warn_s:
        return [
            f"time limit {request.time_limit}: an epoch of {folder} takes {duration(slowest)}, and a training that is "
            f"requeued repeats the epoch it was in. Ask for {duration(20 * slowest)} or more."
        ]
    return []


def _of_partition(offered: Partition, request: SlurmSettings) -> list[str]:
    name = offered.name.rstrip("*")
    remarks = [] if offered.up else [f"partition {name}: it is down, so jobs wait. Name another partition."]
    remarks += [
        f"{what} {asked:g}: no node of partition {name} has more than {has:g}. Ask for {has:g}, or name another "
        "partition."
        for what, asked, has in (
            ("cpus", request.cpus, offered.cpus),
            ("memory (GB)", request.memory_gb, offered.memory_gb),
            ("gpus", request.gpus, offered.gpus),
        )
        if asked > has
    ]
    limit = seconds(request.time_limit)
    if offered.time_limit_s is not None and (limit is None or limit > offered.time_limit_s):
        remarks.append(
            f"time limit {request.time_limit}: partition {name} allows {duration(offered.time_limit_s)}. Ask for no "
            "more; a training that takes longer is requeued and continues."
        )
    return remarks
