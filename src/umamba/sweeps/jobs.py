"""A study as SLURM jobs: prepare the datasets, train an array of runs, write the report. Each waits for the one before.

A study with more runs than the cluster allows in an array has several lists: each is prepared and trained after the
one before, and the report waits for all.

A list file holds the run of each array task, so that a task needs only this file and its number. A list file is never
changed. A later submission writes a new one with the runs that are not done by then.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba.io import UserError, make_folder, read_json, write_json
from umamba.records import RunFolder
from umamba.settings import SlurmSettings
from umamba.settings.validate import read_record
from umamba.sweeps.ledger import PlannedRun


@dataclass(frozen=True)
class Submission:
    """A list file and the sbatch commands of its jobs, without their dependencies.

    Attributes:
        list_file: the runs of the array tasks.
        prepare: prepares the datasets.
        train: trains the runs, one for each array task.
        collect: writes the report.
    """

    list_file: Path
    prepare: list[str]
    train: list[str]
    collect: list[str]


def write_list(folder: Path, study: str, runs: Sequence[PlannedRun]) -> Path:
    """Write the next list file of a study.

    Args:
        folder: folder of the study's list files.
        study: the study's name.
        runs: the runs of the array tasks, in their order.

    Returns:
        The path of the new file, list_001.json or the next free number.
    """
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
    """Return the overrides and the run folder of an array task.

    Args:
        list_file: a file that `write_list` wrote.
        index: index of the task, from 0 on.

    Raises:
        UserError: the list has no task of this index.
    """
    tasks = _read_list(list_file).tasks
    if not 0 <= index < len(tasks):
        raise UserError(f"{list_file}: there is no task {index}; it has 0 to {len(tasks) - 1}.")
    return list(tasks[index].overrides), RunFolder(Path(tasks[index].folder))


def submission(
    list_file: Path, request: SlurmSettings, program: Sequence[str], script: Path, collect: Sequence[str]
) -> Submission:
    """Return the sbatch commands of a list file.

    Args:
        list_file: a file that `write_list` wrote.
        request: the resources of each training.
        program: the command line that starts this program on the cluster.
        script: path of array.sh.
        collect: arguments of `umamba report`.
    """
    content = _read_list(list_file)
    logs = str(list_file.parent / "logs").replace("%", "%%")  # because sbatch reads %A, %a and %j in this path
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
        f"--job-name=umamba-{content.study}",
        *([f"--partition={request.partition}"] if request.partition else []),
        *([f"--gres=gpu:{request.gpus}"] if request.gpus else []),
        f"--nodes={request.nodes}",
        f"--ntasks-per-node={max(1, request.gpus)}",
        f"--cpus-per-task={max(1, request.cpus // max(1, request.gpus))}",
        f"--mem={request.memory_gb}G",
        f"--time={request.time_limit}",
        f"--array=0-{len(content.tasks) - 1}%{request.max_parallel}",
        f"--output={logs}/%A_%a.log",
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
        f"--output={logs}/%j_prepare.log",
        f"--wrap={shlex.join([*program, 'slurm', 'prepare', str(list_file)])}",
    ]
    report = [
        *light,
        "--job-name=umamba-report",
        f"--output={logs}/%j_report.log",
        f"--wrap={shlex.join([*program, 'report', *collect])}",
    ]
    return Submission(list_file, prepare, train, report)


def submit(jobs: Sequence[Submission]) -> list[dict[str, str]]:
    """Submit jobs to SLURM: for each list its preparation and its array, and one report after the last array.

    If SLURM refuses a job, the jobs that it took before are cancelled, and the list files are deleted.

    Args:
        jobs: the commands of each list, from `submission`.

    Returns:
        For each list the job numbers of "prepare", "train" and "collect".

    Raises:
        UserError: sbatch is not installed, or refuses a job; jobs that could not be cancelled are named.
    """
    make_folder(jobs[0].list_file.parent / "logs")
    taken: list[str] = []
    arrays: list[str] = []
    numbers: list[dict[str, str]] = []

    def queue(command: list[str], dependency: str | None) -> str:
        taken.append(_sbatch(command, dependency))
        return taken[-1]

    try:
        for entry in jobs:
            prepare = queue(entry.prepare, None)
            # One array after the other, so that no more trainings run at the same time than max_parallel.
            after = f",afterany:{arrays[-1]}" if arrays else ""
            arrays.append(queue(entry.train, f"afterok:{prepare}{after}"))
            numbers.append({"prepare": prepare, "train": arrays[-1]})
        report = queue(jobs[-1].collect, f"afterany:{':'.join(arrays)}")
    except UserError as error:
        for entry in jobs:
            entry.list_file.unlink(missing_ok=True)
        raise UserError(f"{error}{_cancelled(taken)}") from None
    numbers = [{**entry, "collect": report} for entry in numbers]
    for entry, found in zip(jobs, numbers, strict=True):
        write_json(entry.list_file.with_name(entry.list_file.stem + "_jobs.json"), found)
    return numbers


def _cancelled(numbers: Sequence[str]) -> str:
    """Cancel jobs; return a sentence that says which are cancelled and which are still in the queue."""
    if not numbers:
        return ""
    command = ["scancel", *numbers]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        return f"\nThe jobs submitted before it are still in the queue ({problem}). Cancel them: {shlex.join(command)}"
    return f"\nThe jobs submitted before it were cancelled: {', '.join(numbers)}. Nothing of the study is in the queue."


def queued_tasks(folder: Path) -> dict[Path, str]:
    """Return the run folders whose tasks are still in SLURM's queue, each with SLURM's state; empty without SLURM.

    A second submission leaves these runs out, because the first one will train them.

    Args:
        folder: folder of the study's list files.
    """
    found: dict[Path, str] = {}
    for jobs in sorted(Path(folder).glob("list_*_jobs.json")):
        try:
            tasks = _read_list(jobs.with_name(jobs.name.replace("_jobs", ""))).tasks
            number = read_record(_Jobs, read_json(jobs)).train
        except UserError as error:
            raise UserError(
                f"{jobs}: does not tell which jobs are in the queue ({error}) Put back a copy. If squeue shows none of "
                "this study, delete the file."
            ) from None
        try:
            command = ["squeue", "-h", "-r", "-o", "%K %T", "-j", number]
            listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        except FileNotFoundError:
            return {}
        for line in listed.splitlines():
            index, state = line.split(maxsplit=1)
            if index.isdigit() and int(index) < len(tasks):
                found[Path(tasks[int(index)].folder)] = state.lower()
    return found


def _sbatch(command: list[str], dependency: str | None) -> str:
    # Inside another job, sbatch would read that job's SLURM_* variables as options of the new job.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    waits = [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []
    try:
        done = subprocess.run(
            [command[0], *waits, *command[1:]], capture_output=True, text=True, env=environment, check=False
        )
    except FileNotFoundError:
        raise UserError("sbatch was not found. Submit from a machine where SLURM is installed.") from None
    if done.returncode:
        raise UserError(f"sbatch refused: {done.stderr.strip()}\n  {shlex.join(command)}")
    return done.stdout.strip().split(";")[0]


def task_name(environment: Any) -> tuple[int, str]:
    """Return the index of the array task that runs in this process, and SLURM's name of the task.

    Args:
        environment: the environment variables of the process.

    Returns:
        The index, and `<array job>_<index>`.

    Raises:
        UserError: the process is not an array task.
    """
    try:
        index = int(environment["SLURM_ARRAY_TASK_ID"])
        return index, f"{environment['SLURM_ARRAY_JOB_ID']}_{index}"
    except KeyError as error:
        raise UserError(
            f"{error} is not set: only SLURM runs this command, as a task of an array job. Use umamba slurm submit."
        ) from None


def launched(command: list[str], environment: Mapping[str, str]) -> list[str]:
    """Return the command that starts a training in this SLURM allocation.

    If the allocation has several tasks (one for each GPU), srun starts a process for each, and Lightning connects them
    by SLURM's environment variables.

    Args:
        command: the command of a training with one process.
        environment: the environment variables of the allocation.
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


def dumps(jobs: Sequence[Submission]) -> str:
    """Return the commands as text for a shell, one a line.

    Args:
        jobs: the commands of each list, from `submission`.
    """
    commands = [command for entry in jobs for command in (entry.prepare, entry.train)] + [jobs[-1].collect]
    return "\n".join(map(shlex.join, commands)) + "\n"


def prepared_overrides(list_file: Path) -> list[list[str]]:
    """Return the overrides of one run for each dataset and plan that the runs of a list need.

    Args:
        list_file: a file that `write_list` wrote.
    """
    return [list(overrides) for overrides in _read_list(Path(list_file)).prepare]


@dataclass(frozen=True)
class _Task:
    overrides: tuple[str, ...]
    folder: str


@dataclass(frozen=True)
class _List:
    """The content of a list file."""

    study: str
    tasks: tuple[_Task, ...]
    prepare: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Jobs:
    """What is read of the numbers of submitted jobs."""

    train: str


def _read_list(path: Path) -> _List:
    try:
        return read_record(_List, read_json(path))
    except UserError as error:
        text = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: {text} It is the list of a submission; submit the study again.") from None
