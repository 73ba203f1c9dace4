"""`umamba slurm`: run a study on a SLURM cluster: check the request, submit the remaining runs."""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from umamba.cli.planned_runs import absent_datasets, planned_runs
from umamba.cli.share import share
from umamba.cli.words import keys_sentence, override_of, values_of
from umamba.io.errors import UserError
from umamba.settings import SlurmSettings, parse
from umamba.settings.validate import wrong_choice
from umamba.sweeps import PlannedRun, left_to_do, read_study, run_state
from umamba.sweeps.jobs import (
    dumps,
    launched,
    prepared_overrides,
    queued_tasks,
    read_task,
    submission,
    submit,
    task_name,
    write_list,
)
from umamba.sweeps.preflight import cluster_obstacles, largest_array, partitions, preflight
from umamba.sweeps.study_file import is_study
from umamba.sweeps.task import run_task

log = logging.getLogger(__name__)

VERBS = {
    "preflight": "check the request against the plans and the cluster",
    "submit": "submit the runs that are not done; a finished study submits nothing",
    "dry-run": "print the sbatch commands of submit",
    "prepare": "(run by SLURM) prepare the datasets of a list file",
    "task": "(run by SLURM) train one run of a list file",
}
ARGUMENTS = "\n".join(
    [
        "Arguments: VERB STUDY [slurm.KEY=VALUE ...] [KEY=VALUE ...]; keys without slurm. are overrides of every run.",
        *(f"  {verb:10} {text}" for verb, text in VERBS.items()),
        *keys_sentence(SlurmSettings),
    ]
)
PROGRAM = (sys.executable, "-m", "umamba")
EXIT_FAILED = 1
EXIT_STOPPED = 0  # because a stopped task is requeued, or somebody cancelled it


def main(arguments: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: the verb, the study (or list file), slurm.KEY=VALUE, and overrides of every run.

    Returns:
        The exit code; 1 if preflight found something that stops the jobs.

    Raises:
        UserError: a wrong verb, study, request or override; sbatch is not installed or refuses a job.
    """
    verb, study, request, overrides = _read(arguments)
    if verb == "task":
        return train_task(Path(study))
    if verb == "prepare":
        return prepare_list(Path(study))
    if verb == "preflight":
        runs = planned_runs(read_study(share("experiments"), study), overrides)
        offered = partitions()
        obstacles = [*cluster_obstacles(offered), *absent_datasets(runs)]
        remarks = [*obstacles, *preflight(runs, request, offered)]
        log.info("\n".join(remarks) or "The request fits the study.")
        return EXIT_FAILED if obstacles else 0
    submit_study(study, request, overrides, dry=verb == "dry-run")
    return 0


def submit_study(name: str, request: SlurmSettings, overrides: tuple[str, ...], dry: bool) -> None:
    """Submit the runs of a study that are not done, running or queued.

    Args:
        name: name of the study.
        request: the resources of each training.
        overrides: overrides of every run.
        dry: print the jobs instead of submitting them.

    Raises:
        UserError: the study or a dataset does not exist; sbatch is not installed or refuses a job.
    """
    study = read_study(share("experiments"), name)
    runs = planned_runs(study, overrides)
    folder = list_folder(runs, study.name)
    queued = queued_tasks(folder)
    todo = [run for run in left_to_do([run_state(run) for run in runs]) if run.folder.path.absolute() not in queued]
    if not todo:
        log.info("Nothing to submit: all %d runs are done, running or queued.", len(runs))
        return
    absent = absent_datasets(todo)
    if absent and not dry:
        raise UserError("\n".join(absent))
    offered = partitions()
    for remark in [*cluster_obstacles(offered), *absent, *preflight(todo, request, offered)]:
        log.info("preflight: %s", remark)
    collect = [override_of("study", study.folder.absolute()), override_of("paths.runs", folder.parents[1])]
    if overrides:
        collect.append(override_of("overrides", overrides))
    size = min(len(todo), largest_array()) if offered else len(todo)
    lists = [write_list(folder, study.name, todo[start : start + size]) for start in range(0, len(todo), size)]
    jobs = [submission(path, request, PROGRAM, share("slurm") / "array.sh", collect) for path in lists]
    if dry:
        log.info(dumps(jobs).rstrip())
        for path in lists:
            path.unlink()
        return
    if len(jobs) > 1:
        log.info("The cluster allows %d tasks in an array (MaxArraySize), so there are %d arrays.", size, len(jobs))
    numbers = submit(jobs)
    log.info(
        "Submitted %d of %d runs: jobs %s (prepare), %s (train), %s (report). Logs: %s",
        len(todo),
        len(runs),
        " ".join(entry["prepare"] for entry in numbers),
        " ".join(entry["train"] for entry in numbers),
        numbers[-1]["collect"],
        folder / "logs",
    )


def list_folder(runs: Sequence[PlannedRun], study: str) -> Path:
    """Return the folder of a study's list files and logs: <runs>/slurm/<study>.

    Args:
        runs: runs of the study, at least one.
        study: name of the study.
    """
    return runs[0].folder.path.parents[3].absolute() / "slurm" / study


def prepare_list(list_file: Path) -> int:
    """Prepare every dataset and plan that the runs of a list need.

    Args:
        list_file: the list file.

    Returns:
        The largest exit code of the preparations.
    """
    codes = [0]
    for overrides in prepared_overrides(list_file):
        kept = [text for text in overrides if not text.startswith(("fold=", "seed="))]
        codes.append(abs(subprocess.run([*PROGRAM, "prepare", *kept], check=False).returncode))
    return max(codes)


def train_task(list_file: Path) -> int:
    """Train the run of this array task.

    Args:
        list_file: the list file.

    Returns:
        The exit code, 0 also if the training was stopped.
    """
    index, job = task_name(os.environ)
    overrides, folder = read_task(list_file, index)
    command = launched([*PROGRAM, "train", *overrides], os.environ)
    log.info("task %d of %s: %s", index, list_file, shlex.join(overrides))
    ended = run_task(command, folder, job)
    if ended == "elsewhere":
        log.info("Another process trains this run: %s", folder.path)
    return EXIT_FAILED if ended == "failed" else EXIT_STOPPED


def _read(arguments: Sequence[str]) -> tuple[str, str, SlurmSettings, tuple[str, ...]]:
    """Return verb, study, request and the overrides of every run."""
    flags = [text for text in arguments if text.startswith("--")]
    if flags:
        key = flags[0].lstrip("-").split("=")[0].replace("-", "_")
        raise UserError(f"{flags[0]}: write slurm.{key}=VALUE instead. All keys: umamba slurm --help")
    if len(arguments) == 2 and arguments[0] in ("task", "prepare"):  # the path of a list file, with any characters
        return arguments[0], arguments[1], SlurmSettings(), ()
    words = [text for text in arguments if "=" not in text or is_study(text)]
    if not words or words[0] not in VERBS:
        wrong = words[0] if words else "(nothing)"
        raise UserError(wrong_choice("slurm", wrong, VERBS).replace("slurm=", "umamba slurm ", 1))
    if len(words) != 2:
        raise UserError(f"umamba slurm {words[0]}: give one study, such as table3_organs_3d. All: umamba study")
    own = [text.lstrip("+").removeprefix("slurm.") for text in arguments if text.lstrip("+").startswith("slurm.")]
    overrides = tuple(text for text in arguments if text not in words and not text.lstrip("+").startswith("slurm."))
    return words[0], words[1], parse(SlurmSettings, values_of(SlurmSettings, own)), overrides
