"""`umamba study`: list the studies, or the state of each run of a study, read from files only."""

import logging
from collections.abc import Sequence

from rich.table import Table

from umamba.cli.planned_runs import planned_runs
from umamba.cli.share import share
from umamba.io.escape import rich_text
from umamba.sweeps import list_studies, read_study, run_state, state_table

log = logging.getLogger(__name__)
ARGUMENTS = (
    "Arguments: [STUDY] [key=value ...]; the overrides apply to every run, such as smoke=true or paths.runs=DIR."
)


def main(arguments: Sequence[str]) -> None:
    """List the studies, or show the states of one study's runs.

    Args:
        arguments: a study and overrides of every run; empty: list the studies.

    Raises:
        UserError: the study does not exist, or one of its runs cannot be composed.
    """
    if not arguments:
        log.info(studies_table())
        return
    study = read_study(share("experiments"), arguments[0])
    states = [run_state(run) for run in planned_runs(study, tuple(arguments[1:]))]
    done = sum(state.state == "done" for state in states)
    log.info(study.question)
    log.info(state_table(states, f"{study.name}: {done} of {len(states)} done"))


def studies_table() -> Table:
    """Return the table of all studies with their questions."""
    table = Table("study", "runs", "question", title="Studies", title_justify="left")
    for name in list_studies(share("experiments")):
        study = read_study(share("experiments"), name)
        count = len(study.runs) * len(study.folds) * len(study.seeds)
        table.add_row(rich_text(name), str(count), rich_text(study.question))
    return table
