"""A study on a SLURM cluster: see how far it is, check the request, submit what is not done.

python -m umamba.slurm state table3_organs_3d
python -m umamba.slurm submit table3_organs_3d --partition gpu --max-parallel 4
python -m umamba.slurm submit table3_organs_3d --gpus 0 --cpus 1 --memory-gb 4 +smoke=true
"""

import argparse
import logging
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from umamba.entry import fail
from umamba.io import UserError
from umamba.study import planned_runs, project_folder
from umamba.sweeps import PlannedRun, RunState, left_to_do, read_study, run_state, state_table
from umamba.sweeps.jobs import (
    Request,
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
from umamba.sweeps.preflight import partitions, preflight
from umamba.sweeps.task import run_task

VERBS = {
    "state": "print how far each run is, from files alone",
    "preflight": "check the request against the plans and the cluster",
    "submit": "submit what is not done; a finished study submits nothing",
    "dry-run": "print what submit would hand to sbatch",
    "prepare": "(run by SLURM) prepare the datasets of a list file",
    "task": "(run by SLURM) train one run of a list file",
}
EXIT_FAILED = 1
EXIT_STOPPED = 0  # a stopped task is no failure: it is requeued, or was cancelled on purpose


def arguments(given: list[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Return the parsed command line, and the overrides of every run."""
    verbs = "\n".join(f"  {verb:10} {text}" for verb, text in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="python -m umamba.slurm",
        description=__doc__,
        epilog=f"verbs:\n{verbs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="verb", help="what to do, see below")
    parser.add_argument("study", help="a folder of experiments/ (or, run by SLURM, a list file)")
    for field in fields(Request):
        option = f"--{field.name.replace('_', '-')}"
        if field.name == "extra":
            parser.add_argument(option, action="append", default=[], metavar="OPTION", help="further sbatch option")
        else:
            kind = int if isinstance(field.default, int) else str
            parser.add_argument(option, type=kind, default=field.default, help=f"default: {field.default}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of every run, as of train.py")
    parsed = parser.parse_intermixed_args(given)
    return parsed, tuple(parsed.overrides)


def request_of(parsed: argparse.Namespace) -> Request:
    """Return what each training asks for."""
    values = {field.name: getattr(parsed, field.name) for field in fields(Request)}
    return Request(**{**values, "extra": tuple(values["extra"])})


def list_folder(runs: list[PlannedRun], study: str) -> Path:
    """Return the folder of a study's list files and logs: <runs>/slurm/<study>."""
    return runs[0].folder.parents[3].absolute() / "slurm" / study


def show(states: list[RunState], study: str) -> None:
    """Print the table of states."""
    Console().print(state_table(states, f"{study}: {sum(s.state == 'done' for s in states)} of {len(states)} done"))


def submit_study(parsed: argparse.Namespace, overrides: tuple[str, ...]) -> None:
    """Submit (or print) the jobs of all runs that are neither done, nor running, nor queued."""
    project = project_folder()
    study = read_study(project / "experiments", parsed.study)
    runs = planned_runs(study, overrides)
    folder = list_folder(runs, study.name)
    queued = queued_tasks(folder)
    todo = [run for run in left_to_do([run_state(run) for run in runs]) if run.folder.absolute() not in queued]
    if not todo:
        print(f"Nothing to submit: of {len(runs)} runs all are done, running or queued.")
        return
    for remark in preflight(todo, request_of(parsed), partitions()):
        print(f"preflight: {remark}")
    collect = [f"study={study.folder.absolute()}", f"paths.runs={folder.parents[1]}"]
    if overrides:
        collect.append(f"overrides={list(overrides)!r}".replace(" ", ""))
    jobs = submission(write_list(folder, study.name, todo), request_of(parsed), sys.executable, project, collect)
    if parsed.verb == "dry-run":
        print(dumps(jobs), end="")
        jobs.list_file.unlink()
        return
    numbers = submit(jobs)
    print(
        f"Submitted {len(todo)} of {len(runs)} runs: jobs {numbers['prepare']} (prepare), {numbers['train']} (train), "
        f"{numbers['collect']} (report). Logs: {folder / 'logs'}"
    )


def prepare_list(list_file: Path) -> None:
    """Prepare every dataset and plan that the runs of a list need."""
    for overrides in prepared_overrides(list_file):
        kept = [text for text in overrides if not text.startswith(("fold=", "seed="))]
        subprocess.run([sys.executable, str(project_folder() / "prepare.py"), *kept], check=True)


def train_task(list_file: Path) -> int:
    """Train the run of this array task; return the exit code."""
    index, job = task_name(os.environ)
    overrides, folder = read_task(list_file, index)
    command = launched([sys.executable, str(project_folder() / "train.py"), *overrides], os.environ)
    print(f"task {index} of {list_file}: {' '.join(overrides)}", flush=True)
    return EXIT_FAILED if run_task(command, folder, job) == "failed" else EXIT_STOPPED


def main(given: list[str]) -> int:
    """Do what the command line says; return the exit code."""
    logging.basicConfig(format="%(message)s")
    parsed, overrides = arguments(given)
    if parsed.verb == "task":
        return train_task(Path(parsed.study))
    if parsed.verb == "prepare":
        prepare_list(Path(parsed.study))
    elif parsed.verb in ("submit", "dry-run"):
        submit_study(parsed, overrides)
    else:
        study = read_study(project_folder() / "experiments", parsed.study)
        runs = planned_runs(study, overrides)
        if parsed.verb == "state":
            show([run_state(run) for run in runs], study.name)
        else:
            remarks = preflight(runs, request_of(parsed), partitions())
            print("\n".join(remarks) or "The request suits the study.")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except UserError as error:
        fail(str(error))
