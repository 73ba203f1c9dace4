"""`umamba study run`: train the runs of a study that are not done one after another on this machine."""

import logging
import shlex
import sys
from collections.abc import Sequence

from umamba.cli.planned_runs import absent_datasets, planned_runs
from umamba.cli.share import share
from umamba.cli.words import override_of
from umamba.io.errors import UserError
from umamba.sweeps import PlannedRun, left_to_do, read_study, run_state
from umamba.sweeps.study_file import is_study
from umamba.sweeps.task import run_task

log = logging.getLogger(__name__)
EXIT_FAILED = 1


def study_run(arguments: Sequence[str]) -> int:
    """Train the runs of a study one after another: all methods with the first seed, then with the next one.

    A run that was interrupted continues, a finished one is left alone, and a failed one does not keep the others from
    their work.

    Args:
        arguments: the study, and overrides of every run.

    Returns:
        The exit code; 1 if a run failed.

    Raises:
        UserError: no study or several, a run that cannot be composed, or a dataset that is not there.
    """
    names = [text for text in arguments if "=" not in text or is_study(text)]
    if len(names) != 1:
        raise UserError("umamba study run: give one study, such as controls_nuclei. All: umamba study")
    overrides = tuple(text for text in arguments if text not in names)
    runs = planned_runs(read_study(share("experiments"), names[0]), overrides)
    states = [run_state(run) for run in runs]
    todo = in_turn(left_to_do(states))
    absent = absent_datasets(todo)
    if absent:
        raise UserError("\n".join(absent))
    log.info("%d of %d runs are left to do.", len(todo), len(runs))
    running = sum(state.state == "running" for state in states)
    if running:
        log.info(
            "%d run elsewhere, or were killed in the last minutes; give the command again later for these.", running
        )
    failed = 0
    for number, run in enumerate(todo, 1):
        if run_state(run).state in ("running", "done"):  # by another command in the meantime
            log.info("Run %d of %d is trained elsewhere: %s", number, len(todo), shlex.join(run.overrides))
            continue
        log.info("Run %d of %d: %s", number, len(todo), shlex.join(run.overrides))
        ended = run_task([sys.executable, "-m", "umamba", "train", *run.overrides], run.folder)
        if ended == "stopped":
            log.info("Stopped. The same command continues.")
            return EXIT_FAILED
        failed += ended == "failed"
    log.info("Report: %s", shlex.join(["umamba", "report", *report_of(names[0], overrides)]))
    return EXIT_FAILED if failed else 0


def report_of(study: str, overrides: Sequence[str]) -> list[str]:
    """Return the arguments of `umamba report` for a study that was trained with overrides.

    Args:
        study: its name or the path of its folder.
        overrides: those of every run.
    """
    place = [text for text in overrides if text.startswith("paths.runs=")]
    others = [text for text in overrides if text not in place]
    return [override_of("study", study), *place, *([override_of("overrides", others)] if others else [])]


def in_turn(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return runs seed by seed and fold by fold, so that an unfinished study has as many trainings of each method.

    Args:
        runs: the runs, in the order of the study.
    """
    return sorted(runs, key=lambda run: (run.seed, str(run.fold)))
