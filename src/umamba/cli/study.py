"""`umamba study`: list the studies, the state of each run of a study, or what a study can show; or train its runs."""

import logging
from collections.abc import Sequence

from rich.table import Table

from umamba.cli.planned_runs import planned_runs
from umamba.cli.share import share
from umamba.cli.words import keys_sentence
from umamba.io.escape import rich_text
from umamba.settings import PowerSettings
from umamba.sweeps import list_studies, read_study, run_state, state_table

log = logging.getLogger(__name__)
ARGUMENTS = "\n".join(
    [
        "Arguments: [STUDY] [key=value ...]; the overrides apply to every run, such as smoke=true or paths.runs=DIR.",
        "           run STUDY [key=value ...]: train the runs that are not done, one after another, on this machine.",
        "           power STUDY [power.KEY=VALUE ...] [key=value ...]: what the study will be able to show.",
        *keys_sentence(PowerSettings),
    ]
)


def main(arguments: Sequence[str]) -> int:
    """List the studies, show the states of one study's runs, train them, or show what the study will be able to show.

    Args:
        arguments: a study and overrides of every run, after the word run or power, if that is asked; empty: list the
            studies.

    Returns:
        The exit code; 1 if a run failed.

    Raises:
        UserError: the study does not exist, or one of its runs cannot be composed.
    """
    if not arguments:
        log.info(studies_table())
        return 0
    if arguments[0] == "run":
        from umamba.cli.study_run import study_run

        return study_run(arguments[1:])
    if arguments[0] == "power":
        from umamba.cli.study_power import study_power

        study_power(arguments[1:])
        return 0
    study = read_study(share("experiments"), arguments[0])
    states = [run_state(run) for run in planned_runs(study, tuple(arguments[1:]))]
    done = sum(state.state == "done" for state in states)
    log.info(study.question)
    log.info(state_table(states, f"{study.name}: {done} of {len(states)} done"))
    return 0


def studies_table() -> Table:
    """Return the table of all studies with their questions."""
    table = Table("study", "runs", "question", title="Studies", title_justify="left")
    for name in list_studies(share("experiments")):
        study = read_study(share("experiments"), name)
        count = len(study.runs) * len(study.folds) * len(study.seeds)
        table.add_row(rich_text(name), str(count), rich_text(study.question))
    return table
