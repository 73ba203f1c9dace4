"""A study as SLURM jobs: prepare the datasets, train an array of runs, write the report; each waits for the previous.

A list file holds what the array's tasks do, so that a task needs its number and that file only. Lists are never
changed: a later submission, of what is not done by then, makes a new one.
"""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba.io import UserError, read_json, write_json
from umamba.records import RunFolder
from umamba.settings import SlurmSettings
from umamba.sweeps.ledger import PlannedRun


@dataclass(frozen=True)
class Submission:
    """A list file and the jobs that work on it, commands as they are given to the shell.

    Attributes:
        list_file: what the tasks do.
        prepare, train, collect: sbatch commands without their dependencies.
    """

    list_file: Path
    prepare: list[str]
    train: list[str]
    collect: list[str]


def write_list(folder: Path, study: str, runs: Sequence[PlannedRun]) -> Path:
    """Write the next list file of a study into `folder` and return it."""
    taken = [
        int(match[1]) for path in Path(folder).glob("list_*.json") if (match := re.match(r"list_(\d+)", path.name))
    ]
    path = Path(folder) / f"list_{max(taken, default=0) + 1:03d}.json"
    prepared: dict[str, tuple[str, ...]] = {}
    for run in runs:
        prepared.setdefault(run.preparation, run.overrides)
    write_json(
        path,
        {
            "study": study,
            "tasks": [{"overrides": list(run.overrides), "folder": str(run.folder.path.absolute())} for run in runs],
            "prepare": [list(overrides) for overrides in prepared.values()],
        },
    )
    return path


def read_task(list_file: Path, index: int) -> tuple[list[str], RunFolder]:
    """Return overrides and run folder of a task.

    Raises:
        UserError: the list has no such task.
    """
    tasks = read_json(list_file).get("tasks", [])
    if not 0 <= index < len(tasks):
        raise UserError(f"{list_file}: there is no task {index}; it has 0 to {len(tasks) - 1}.")
    return list(tasks[index]["overrides"]), RunFolder(Path(tasks[index]["folder"]))


def submission(
    list_file: Path, request: SlurmSettings, program: Sequence[str], script: Path, collect: Sequence[str]
) -> Submission:
    """Return the sbatch commands of a list file.

    Args:
        list_file: what `write_list` wrote.
        request: what a training asks for.
        program: the words that start this program on the cluster.
        script: array.sh.
        collect: arguments of the report.
    """
    content = read_json(list_file)
    logs = list_file.parent / "logs"
    common = ["sbatch", "--parsable", f"--chdir={Path.cwd()}", "--open-mode=append"]
    light = [
        *common,
        *([f"--partition={partition}"] if (partition := request.prepare_partition or request.partition) else []),
        f"--cpus-per-task={request.cpus}",
        f"--mem={request.memory_gb}G",
        f"--time={request.time_limit}",
        "--requeue",
        *request.extra,
    ]
    train = [
        *common,
        f"--job-name=umamba-{content['study']}",
        *([f"--partition={request.partition}"] if request.partition else []),
        *([f"--gres=gpu:{request.gpus}"] if request.gpus else []),
        f"--nodes={request.nodes}",
        f"--ntasks-per-node={max(1, request.gpus)}",
        f"--cpus-per-task={max(1, request.cpus // max(1, request.gpus))}",
        f"--mem={request.memory_gb}G",
        f"--time={request.time_limit}",
        f"--array=0-{len(content['tasks']) - 1}%{request.max_parallel}",
        f"--output={logs / '%A_%a.log'}",
        "--requeue",
        f"--signal=B:USR1@{request.warn_s}",
        *request.extra,
        str(script),
        program[0],
        str(list_file),
    ]
    prepare = [
        *light,
        "--job-name=umamba-prepare",
        f"--output={logs / '%j_prepare.log'}",
        f"--wrap={shlex.join([*program, 'slurm', 'prepare', str(list_file)])}",
    ]
    report = [
        *light,
        "--job-name=umamba-report",
        f"--output={logs / '%j_report.log'}",
        f"--wrap={shlex.join([*program, 'report', *collect])}",
    ]
    return Submission(list_file, prepare, train, report)


def submit(jobs: Submission) -> dict[str, str]:
    """Hand the three jobs to SLURM, each waiting for the one before; return their numbers.

    Raises:
        UserError: sbatch is missing or refuses.
    """
    (jobs.list_file.parent / "logs").mkdir(parents=True, exist_ok=True)
    numbers = {"prepare": _sbatch(jobs.prepare, None)}
    numbers["train"] = _sbatch(jobs.train, f"afterok:{numbers['prepare']}")
    numbers["collect"] = _sbatch(jobs.collect, f"afterany:{numbers['train']}")
    write_json(jobs.list_file.with_name(jobs.list_file.stem + "_jobs.json"), numbers)
    return numbers


def queued_tasks(folder: Path) -> dict[Path, str]:
    """Return the run folders that SLURM still has in its queue, with its state for each; empty without SLURM.

    Only used so that a second submission does not double what the first has queued.
    """
    found: dict[Path, str] = {}
    for jobs in sorted(Path(folder).glob("list_*_jobs.json")):
        tasks = read_json(jobs.with_name(jobs.name.replace("_jobs", "")))["tasks"]
        try:
            command = ["squeue", "-h", "-r", "-o", "%K %T", "-j", read_json(jobs)["train"]]
            listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        except FileNotFoundError:
            return {}
        for line in listed.splitlines():
            index, state = line.split(maxsplit=1)
            if index.isdigit():
                found[Path(tasks[int(index)]["folder"])] = state.lower()
    return found


def _sbatch(command: list[str], dependency: str | None) -> str:
    # SLURM_* of an enclosing job would be taken for options of the new one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    waits = [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []
    try:
        done = subprocess.run(
            [command[0], *waits, *command[1:]], capture_output=True, text=True, env=environment, check=False
        )
    except FileNotFoundError:
        raise UserError("sbatch was not found. Submit from a machine that has SLURM's commands.") from None
    if done.returncode:
        raise UserError(f"sbatch refused: {done.stderr.strip()}\n  {shlex.join(command)}")
    return done.stdout.strip().split(";")[0]


def task_name(environment: Any) -> tuple[int, str]:
    """Return the index of the array task that runs here, and SLURM's name of it.

    Raises:
        UserError: this is no array task.
    """
    try:
        index = int(environment["SLURM_ARRAY_TASK_ID"])
        return index, f"{environment['SLURM_ARRAY_JOB_ID']}_{index}"
    except KeyError as error:
        raise UserError(f"{error} is not set: this is to be run by SLURM, as a task of an array job.") from None


def launched(command: list[str], environment: Mapping[str, str]) -> list[str]:
    """Return a training's command as the allocation wants it: a process for each task, joined by Lightning.

    With one task it stays as it is; several are started by srun, and Lightning finds them in SLURM's environment.
    """
    if int(environment.get("SLURM_NTASKS", "1")) < 2:
        return command
    srun = [
        "srun",
        "--kill-on-bad-exit=1",
        "--wait=0",
        f"--cpus-per-task={environment.get('SLURM_CPUS_PER_TASK', '1')}",
    ]
    devices = [f"trainer.devices={environment['SLURM_NTASKS_PER_NODE']}"]
    return [*srun, *command, "trainer=ddp", *devices, f"trainer.num_nodes={environment['SLURM_NNODES']}"]


def dumps(jobs: Submission) -> str:
    """Return the commands as a person may type them."""
    return "\n".join(shlex.join(command) for command in (jobs.prepare, jobs.train, jobs.collect)) + "\n"


def prepared_overrides(list_file: Path) -> list[list[str]]:
    """Return the overrides of each dataset and plan that a list's runs need."""
    return [list(overrides) for overrides in json.loads(Path(list_file).read_text())["prepare"]]
