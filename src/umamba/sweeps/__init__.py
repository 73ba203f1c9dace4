"""Studies of many runs: read a study, find the state of each run, submit the remaining runs to SLURM."""

from umamba.sweeps.ledger import PlannedRun, RunState, left_to_do, run_state, state_table
from umamba.sweeps.study_file import StudyFile, list_studies, read_study

__all__ = [
    "PlannedRun",
    "RunState",
    "StudyFile",
    "left_to_do",
    "list_studies",
    "read_study",
    "run_state",
    "state_table",
]
